"""After a resume a run's log and samples read as if nothing had happened."""

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import elsewhere, fit
from videogen.config.train import TrainConfig
from videogen.data.files import save_text
from videogen.training.dit_stage import DitStage
from videogen.training.progress import LOG, Meter, cut_log, read_log
from videogen.training.stages import make_stage
from videogen.training.trainer import Trainer
from videogen.training.vae_stage import VaeStage

SPEEDS = ("tokens_per_second", "steps_per_second")
RUN = {"steps": 24, "save_every": 6, "val_every": 8, "sample_every": 12, "sample_prompts": ("a red circle",)}


class Killed(BaseException):
    """Stands for a kill: nothing of the program catches it."""


def rows_of(recipe: TrainConfig) -> list[dict[str, float]]:
    lines = (recipe.run.dir / LOG).read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in SPEEDS} for line in lines]


def samples_of(recipe: TrainConfig) -> set[str]:
    return {path.name for path in (recipe.run.dir / "samples").rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def uninterrupted(finished: dict[str, TrainConfig], tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    recipe = elsewhere(finished["dit"], tmp_path_factory.mktemp("log") / "run", **RUN)
    torch.manual_seed(11)
    assert fit(recipe)
    return recipe


def die_in_step(stage: VaeStage | DitStage, step: int) -> None:
    original = stage.loss

    def loss(model: nn.Module, batch: object, number: int) -> dict[str, Tensor]:
        if number == step:
            raise Killed
        return original(model, batch, number)  # type: ignore[arg-type]

    stage.loss = loss  # type: ignore[method-assign,assignment]


def die_while_validating(stage: VaeStage | DitStage, nth: int) -> None:
    original, calls = stage.validate, 0

    def validate() -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls == nth:
            raise Killed
        return original()

    stage.validate = validate  # type: ignore[method-assign]


def die_while_sampling(stage: VaeStage | DitStage, nth: int) -> None:
    original, calls = stage.preview, 0

    def preview(step: int, out_dir: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == nth:
            raise Killed
        original(step, out_dir)

    stage.preview = preview  # type: ignore[method-assign]


def send_sigterm(stage: VaeStage | DitStage, step: int) -> None:
    original = stage.loss

    def loss(model: nn.Module, batch: object, number: int) -> dict[str, Tensor]:
        if number == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(model, batch, number)  # type: ignore[arg-type]

    stage.loss = loss  # type: ignore[method-assign,assignment]


@pytest.mark.parametrize(
    ("stop", "when"),
    [
        (die_in_step, 3), (die_in_step, 11), (die_in_step, 17), (die_in_step, 23), (die_while_validating, 1),
        (die_while_validating, 3), (die_while_sampling, 1), (die_while_sampling, 2), (send_sigterm, 2),
        (send_sigterm, 14), (send_sigterm, 23),
    ],
)  # fmt: skip
def test_a_resumed_run_has_the_log_and_the_samples_of_an_uninterrupted_one(
    stop: Callable[[VaeStage | DitStage, int], None],
    when: int,
    uninterrupted: TrainConfig,
    tmp_path: Path,
) -> None:
    """Steps are saved between two rows of the log, which are means over ten steps."""
    recipe = elsewhere(uninterrupted, tmp_path / "run")
    torch.manual_seed(11)
    stage = make_stage(recipe)
    stop(stage, when)
    trainer = Trainer(stage, recipe)  # type: ignore[arg-type]
    with contextlib.suppress(Killed):
        trainer.fit()
    with (recipe.run.dir / LOG).open("a", encoding="utf-8") as file:
        file.write('{"step": 20, "lo')  # as a kill leaves the row that was being written
    assert fit(recipe)
    assert rows_of(recipe) == rows_of(uninterrupted)
    assert samples_of(recipe) == samples_of(uninterrupted) == {"0.mp4", "step_000012.png", "step_000024.png"}


def test_a_run_that_left_in_between_leaves_no_row_of_its_own(uninterrupted: TrainConfig, tmp_path: Path) -> None:
    """A time limit validates where it stops, which the uninterrupted run does not."""
    recipe = elsewhere(uninterrupted, tmp_path / "run", minutes=1e-6)
    torch.manual_seed(11)
    assert not fit(recipe)
    assert [row["step"] for row in rows_of(recipe)] == [1]
    assert fit(elsewhere(recipe, recipe.run.dir, minutes=None))
    assert rows_of(recipe) == rows_of(uninterrupted)


def test_a_complete_run_without_its_checkpoint_writes_it_again(uninterrupted: TrainConfig, tmp_path: Path) -> None:
    run_dir = uninterrupted.run.dir
    recipe, weights = elsewhere(uninterrupted, tmp_path / "run"), Path("transformer") / "config.json"
    shutil.copytree(run_dir, recipe.run.dir)
    (recipe.run.dir / "checkpoint" / weights).write_bytes(b"")
    assert fit(recipe)
    assert (recipe.run.dir / "checkpoint" / weights).read_bytes() == (run_dir / "checkpoint" / weights).read_bytes()


def test_a_damaged_log_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    rows = ['{"step": 10, "loss": 1.0}', '{"step": 20, "lo{"step": 20, "loss": 0.5}', "[1]", "", '{"step": "x"}']
    again = ['{"step": 10, "loss": 2.0}', '{"step": 10, "val_loss": 3.0}', '{"step": 30, "loss": 0.']
    (tmp_path / LOG).write_bytes("\n".join((*rows, *again)).encode() + b"\xff")
    assert read_log(tmp_path) == [
        {"step": 10, "loss": 2.0}, {"step": 20, "loss": 0.5}, {"step": 10, "val_loss": 3.0},
    ]  # fmt: skip


def test_a_log_that_is_whole_is_not_written_again(tmp_path: Path) -> None:
    save_text(tmp_path / LOG, '{"step": 10, "loss": 1.0}\n{"step": 10, "val_loss": 2.0}\n')
    before = (tmp_path / LOG).stat()
    cut_log(tmp_path, 10, validates=True)
    assert (tmp_path / LOG).stat() == before
    cut_log(tmp_path, 10, validates=False)
    assert (tmp_path / LOG).read_text(encoding="utf-8") == '{"step": 10, "loss": 1.0}\n'


def test_a_meter_that_goes_on_counts_no_steps_of_before_in_its_speeds(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[dict[str, float]] = []

    class Log:
        def write(self, step: int, values: dict[str, float]) -> None:
            written.append(values)

    clock = iter((0.0, 100.0, 102.0, 103.0))
    monkeypatch.setattr("videogen.training.progress.time.monotonic", lambda: next(clock))
    meter = Meter(Log(), 1, [{"loss": 1.0, "tokens": 10.0}] * 6)  # type: ignore[arg-type]
    meter.start()
    for step in (7, 8, 9, 10):
        meter.add(step, {"loss": 2.0, "tokens": 10.0})
    assert written == [{"loss": 1.4, "tokens": 10.0, "tokens_per_second": 20.0, "steps_per_second": 2.0}]


def test_a_fifo_in_place_of_a_log_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log.jsonl")
    with pytest.raises(ValueError, match=r"log\.jsonl is no regular file; remove it to go on"):
        read_log(tmp_path)
