"""A run that is interrupted loses no more than the steps since its last checkpoint."""

import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import STAGES, assert_same_state, elsewhere, fit, state_of
from videogen.config.train import TrainConfig
from videogen.interruption import StopRequest
from videogen.sampling.pipeline import VideoPipeline
from videogen.training import run_checkpoints
from videogen.training.run_checkpoints import saved_steps
from videogen.training.stages import make_stage
from videogen.training.trainer import Trainer

ROOT = Path(__file__).parent.parent


def kill_while_saving(trainer: Trainer, num_files: int) -> None:
    """Save in a child process that kills itself with SIGKILL half-way through its num_files-th file."""
    child = os.fork()
    if child == 0:
        original, count = run_checkpoints.save_tensors, 0

        def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
            nonlocal count
            count += 1
            if count == num_files:
                original(tensors, path)
                with path.open("r+b") as file:
                    file.truncate(path.stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            original(tensors, path)

        run_checkpoints.save_tensors = save_tensors  # in the child process alone
        try:
            trainer.save()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.parametrize("num_files", [1, 3, 4])
def test_a_kill_while_saving_leaves_the_old_checkpoint_whole(
    num_files: int, finished: dict[str, TrainConfig], tmp_path: Path
) -> None:
    recipe = elsewhere(finished["dit"], tmp_path / "run")
    shutil.copytree(finished["dit"].run.dir, recipe.run.dir)
    shutil.rmtree(recipe.run.dir / "step_000008")
    trainer = Trainer(make_stage(recipe), recipe)
    trainer.step = 6
    kill_while_saving(trainer, num_files)
    assert saved_steps(recipe.run.dir) == [4]
    assert_same_state(recipe.run.dir, finished["dit"].run.dir, 4)
    VideoPipeline.load(recipe.run.dir / "checkpoint")
    assert fit(recipe)  # the same command resumes and overwrites the unfinished files
    assert_same_state(recipe.run.dir, finished["dit"].run.dir, 8)
    assert list(recipe.run.dir.glob("*.part")) == []


def test_an_error_while_exporting_leaves_the_old_checkpoint_and_the_live_weights(
    finished: dict[str, TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = elsewhere(finished["dit"], tmp_path / "run")
    shutil.copytree(finished["dit"].run.dir, recipe.run.dir)
    trainer = Trainer(make_stage(recipe), recipe)
    live = [p.detach().clone() for p in trainer.stage.model.parameters()]

    def raise_disk_full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trainer.stage.model, "save_pretrained", raise_disk_full)
    with pytest.raises(OSError, match="No space left"):
        trainer.save()
    assert all(map(torch.equal, live, trainer.stage.model.parameters()))
    VideoPipeline.load(recipe.run.dir / "checkpoint")
    assert saved_steps(recipe.run.dir)[-1] == 8


@pytest.mark.parametrize("name", STAGES)
def test_a_non_finite_loss_stops_the_run_and_leaves_the_last_checkpoint(
    name: str, finished: dict[str, TrainConfig], tmp_path: Path
) -> None:
    recipe = elsewhere(finished[name], tmp_path / "run")
    trainer = Trainer(stage := make_stage(recipe), recipe)
    original = stage.loss

    def loss(model: nn.Module, batch: object, step: int) -> dict[str, Tensor]:
        losses = original(model, batch, step)  # type: ignore[arg-type]
        return losses | {"loss": losses["loss"] * (float("nan") if step == 5 else 1.0)}

    stage.loss = loss  # type: ignore[method-assign,assignment]
    with pytest.raises(FloatingPointError, match=r"loss is nan .* at step 5; what was saved is whole"):
        trainer.fit()
    assert saved_steps(recipe.run.dir) == [4]
    assert all(p.isfinite().all() for p in trainer.stage.model.parameters())
    assert fit(recipe)
    assert all(value.isfinite().all() for value in state_of(recipe.run.dir, 8).values())


def test_a_signal_saves_the_run_before_anything_is_measured(
    finished: dict[str, TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scheduler may wait for only ten seconds before it kills the run, and a measurement may fail."""
    recipe = elsewhere(finished["dit"], tmp_path / "run")
    trainer = Trainer(stage := make_stage(recipe), recipe)

    def validate() -> dict[str, float]:
        assert saved_steps(recipe.run.dir) == [trainer.step]
        raise OSError(28, "No space left on device")

    original = stage.loss

    def loss(model: nn.Module, batch: object, step: int) -> dict[str, Tensor]:
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(model, batch, step)  # type: ignore[arg-type]

    monkeypatch.setattr(stage, "validate", validate)
    with monkeypatch.context() as patch:
        patch.setattr(stage, "loss", loss)
        assert not trainer.fit()  # saved, and nothing was measured
    assert saved_steps(recipe.run.dir) == [3]
    trainer = Trainer(stage, recipe)
    with pytest.raises(OSError, match="No space left"):
        trainer.save_and_validate(leaving=True, interrupted=False)


def test_processes_that_resume_at_different_steps_are_refused(
    finished: dict[str, TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines do not share the run folder, so only the first has the checkpoint."""
    recipe = elsewhere(finished["dit"], tmp_path / "run")
    trainer = Trainer(make_stage(recipe), recipe)
    monkeypatch.setattr(trainer.accelerator, "gather", lambda step: torch.cat([step, step + 500]))
    with pytest.raises(ValueError, match=r"at steps \[0, 500\]; give all of them the same folder"):
        trainer.check_ranks_agree()


def test_a_finished_run_restores_the_signal_handlers(finished: dict[str, TrainConfig], tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    recipe = elsewhere(finished["dit"], tmp_path / "run", steps=1)
    assert fit(recipe)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_only_a_second_ctrl_c_stops_a_run_before_it_has_saved(first: signal.Signals) -> None:
    """torchrun sends SIGTERM to processes that already had the terminal's Ctrl-C: they must go on saving."""
    with StopRequest() as stop:
        for number in (first, signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), number)
            assert stop.signal == first
        with pytest.raises(KeyboardInterrupt):
            stop.check()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_outside_of_the_main_thread_no_signal_is_taken() -> None:
    before = signal.getsignal(signal.SIGINT)

    def loop() -> object:
        with StopRequest() as stop:
            stop.check()
            return signal.getsignal(signal.SIGINT)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(loop).result() == before


@pytest.mark.parametrize("workers", [0, 2])
def test_sigterm_saves_a_checkpoint_and_names_the_step_it_resumes_from(
    workers: int, finished: dict[str, TrainConfig], clips_folder: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """Run train.py as a user does, and stop it as a scheduler does: with a signal to its whole process group."""
    run_dir = tmp_path / "run"
    (tmp_path / "tiny.toml").write_text(
        f'stage = "dit"\n[data]\nfolder = "{clips_folder}"\nmax_tokens = 40\ntoken_budget = 80\nval_clips = 2\n'
        f"workers = {workers}\n"
        f'[dit]\nvae = "{checkpoint}"\ntext = "{checkpoint}"\nnum_layers = 1\nnum_attention_heads = 2\n'
        "attention_head_dim = 12\nffn_dim = 32\n[run]\nsteps = 1000000\nsave_every = 1000000\nval_every = 1000000\n"
        f'sample_every = 0\ndir = "{run_dir}"\n',
        encoding="utf-8",
    )
    command = [sys.executable, str(ROOT / "train.py"), str(tmp_path / "tiny.toml")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=env, start_new_session=True, **pipes)  # type: ignore[call-overload]
    try:
        deadline = time.monotonic() + 120
        while not (run_dir / "log.jsonl").is_file() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 75, err  # not done: a scheduler may queue it anew
    (step,) = saved_steps(run_dir)
    assert step >= 10  # the log's first line comes after ten steps
    assert f"stopped at step {step} of 1000000; the same command goes on" in err
    assert str(run_dir / "checkpoint") in out
    VideoPipeline.load(run_dir / "checkpoint")
    state_of(run_dir, step)
