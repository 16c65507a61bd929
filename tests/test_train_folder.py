"""A folder in, a checkpoint out: one plan, one run folder, the same checkpoint whatever stops the run on its way."""

from __future__ import annotations

import json
import re
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.conftest import assert_same_state
from tests.wan_folders import save
from videogen.cli.main import sample
from videogen.cli.train import train
from videogen.config.parsing import format_toml, load_toml
from videogen.config.sample import SampleConfig
from videogen.config.train import DataConfig, RunConfig, TrainConfig
from videogen.data import folder as folder_module
from videogen.data.folder import VideoFolder
from videogen.models.checkpoint_config import read_checkpoint_info
from videogen.sampling.clip_sampler import load_clip_sampler
from videogen.training import folder_lora, folder_plan, folder_run
from videogen.training.due import are_samples_due
from videogen.training.folder_plan import USED_SHARE, RunPlan, VaeChoice, expectation, fit_plan, read_plan
from videogen.training.run_checkpoints import newest_whole_step
from videogen.training.step_speed import DitSpeed
from videogen.training.trainer import Trainer

STEPS = folder_plan.LEAST_STEPS
RECIPES = sorted((Path(__file__).parent.parent / "configs").glob("*.toml"))


@pytest.fixture
def quick(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Choose tiny networks and the fewest steps, and measure nothing."""
    monkeypatch.setattr(folder_plan, "MINI", checkpoint)
    monkeypatch.setattr(folder_plan, "NETWORKS", ((1, 1), (1, 1)))
    monkeypatch.setattr(folder_plan, "CHANNELS", 4)
    monkeypatch.setattr(folder_plan, "compare_vaes", lambda clips: VaeChoice(20.0, 25.0, 0.01))
    monkeypatch.setattr(folder_plan, "measure_vae_step", lambda config: 10.0)
    monkeypatch.setattr(folder_plan, "measure_dit", lambda config, network, grid: DitSpeed(0.01, 1.0))
    monkeypatch.setattr(folder_plan, "step_speeds", lambda run: [])
    plan_vae = folder_plan.plan_vae

    def plan_small_vae(*args: object) -> TrainConfig:
        config = plan_vae(*args)  # type: ignore[arg-type]
        return replace(config, vae=replace(config.vae, width=8, batch_clips=1, crops=1))

    monkeypatch.setattr(folder_plan, "plan_vae", plan_small_vae)


@pytest.fixture
def silent_clips(clips_folder: Path, tmp_path: Path) -> Path:
    """Three clips without captions."""
    out = tmp_path / "my clips"
    out.mkdir()
    for path in sorted(clips_folder.rglob("*.mp4"))[:3]:
        shutil.copyfile(path, out / path.name)
    return out


@pytest.mark.usefixtures("quick")
def test_a_folder_without_captions_becomes_a_checkpoint_with_samples_beside_their_sources(
    silent_clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, words = tmp_path / "run", [str(silent_clips), "--minutes", "0.01", "--run", str(tmp_path / "run"), "--json"]
    assert train(words) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == {"checkpoint": str(run / "checkpoint"), "complete": True}
    assert "3 clips of" in said.err
    assert "no clip has a caption" in said.err
    assert f"{STEPS} steps" in said.err
    info = read_checkpoint_info(run / "checkpoint")
    entry = VideoFolder(DataConfig(folder=silent_clips, captions="optional"), (1, 2, 2)).entries[0]
    assert (info.defaults.size, info.defaults.frames) == (f"{entry.width}x{entry.height}", entry.frames)
    assert len(load_clip_sampler(info)([""])[0]) == entry.frames
    assert len(list((run / "results").glob("*-source.mp4"))) == len(list((run / "results").glob("*-sample.mp4"))) == 3
    page = (run / "results" / "index.html").read_text()
    assert page.count("<figure>") == 3
    assert "0-sample.mp4" in page
    # The same command has nothing left to do; with minutes it goes on from the result.
    assert train(words[:1] + words[3:]) == 0
    assert read_plan(run).stages[-1].run.steps == STEPS  # type: ignore[union-attr]
    assert train(words) == 0
    assert read_plan(run).stages[-1].run.steps > STEPS  # type: ignore[union-attr]
    assert "the learning rate rises again" in capsys.readouterr().err


@pytest.mark.usefixtures("quick")
def test_a_run_stopped_in_each_of_its_stages_ends_with_the_checkpoint_of_one_that_was_not(
    silent_clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    folder_run.train(silent_clips, minutes=0.01, run=straight)
    train_step, stops = Trainer.train_step, {("vae", 3), ("vae", 11), ("dit", 2), ("dit", 13)}

    def dying_step(self: Trainer, batch: object, step: int) -> dict[str, float]:
        if (self.config.stage, step) in stops:
            stops.remove((self.config.stage, step))
            raise OSError("no space left on device")
        return train_step(self, batch, step)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "train_step", dying_step)
    monkeypatch.setattr(folder_run, "write_results", dying_once(folder_run.write_results))
    deaths = 0
    while not (stopped / "results").is_dir():
        try:
            folder_run.train(silent_clips, minutes=0.01, run=stopped)
        except OSError:
            deaths += 1
    assert deaths == 5
    assert not stops
    for stage, run in (("vae", "vae"), ("dit", "")):
        assert_same_state(straight / run, stopped / run, STEPS)
        for path in sorted((straight / run / "checkpoint").rglob("*.safetensors")):
            assert path.read_bytes() == (stopped / path.relative_to(straight)).read_bytes(), (stage, path.name)


@pytest.mark.usefixtures("quick")
def test_a_full_disk_is_one_sentence_and_nothing_is_lost(
    silent_clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    folder_run.train(silent_clips, minutes=0.01, run=straight)
    words, named = [str(silent_clips), "--minutes", "0.01", "--run", str(stopped)], set[str]()
    for room in (2_000, 20_000, 50_000, 100_000, 200_000):  # bytes of the largest file that can be written, so far
        with largest_file(room):
            status = train(words)
        said = capsys.readouterr().err
        assert status == 1, f"{room} bytes were enough"
        found = re.search(r"could not write (.*): .*; [\d,]+ MB are free on its disk\n", said)
        assert found, said
        assert "Traceback" not in said
        named.add(Path(found[1]).relative_to(stopped).parts[0])
        assert not list(stopped.rglob("*.part*"))
    assert len(named) > 2, named
    assert train(words) == 0
    assert_same_state(straight, stopped, STEPS)


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """Let no file grow beyond a size within the context, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def dying_once(function: Callable[..., None]) -> Callable[..., None]:
    deaths: list[int] = []

    def call(*args: object) -> None:
        if not deaths:
            deaths.append(1)
            raise OSError("no space left on device")
        function(*args)

    return call


@pytest.mark.usefixtures("quick")
def test_the_plan_is_said_and_nothing_is_written(
    silent_clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert train([str(silent_clips), "--dry-run"]) == 0
    assert sorted(tmp_path.rglob("*")) == before
    said = capsys.readouterr().err
    assert "time: 30 minutes" in said
    assert str(Path("runs") / silent_clips.name) in said


@pytest.mark.usefixtures("quick")
def test_the_plan_is_written_as_recipes_that_are_read_again(silent_clips: Path, tmp_path: Path) -> None:
    words = [str(silent_clips), "--run", str(tmp_path / "run"), "--write-recipes", str(tmp_path / "recipes")]
    assert train(words) == 0
    vae, dit = (load_toml(TrainConfig, tmp_path / "recipes" / name) for name in ("vae.toml", "dit.toml"))
    assert (vae.stage, dit.stage, dit.dit.vae) == ("vae", "dit", tmp_path / "run" / "vae" / "checkpoint")
    assert train(words) == 2  # they are not written over


@pytest.mark.usefixtures("quick")
def test_a_run_is_of_one_folder_and_of_one_plan(
    silent_clips: Path, clips_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    folder_run.prepare_plan(run, 5.0, DataConfig(folder=silent_clips), lambda _: None)
    assert train([str(clips_folder), "--run", str(run)]) == 2
    assert "is a run of" in capsys.readouterr().err
    assert train([str(silent_clips), "--run", str(run), "--minutes", "7"]) == 2
    assert "was planned for 5 minutes and is not done" in capsys.readouterr().err
    (run / "plan.json").write_text('{"folder": 3}')
    assert train([str(silent_clips), "--run", str(run)]) == 2
    assert "plan.json is damaged" in capsys.readouterr().err
    assert train([str(silent_clips), "--minutes", "-1"]) == 2


def test_what_is_neither_a_folder_nor_a_recipe_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert train([]) == 2
    assert "a folder of videos or a recipe" in capsys.readouterr().err
    assert train(["no/such/folder"]) == 2
    assert "no folder no/such/folder; give a folder of videos" in capsys.readouterr().err


def test_the_shipped_vae_is_taken_where_it_reads_the_folder_well() -> None:
    assert VaeChoice(32.0, 29.0, 0.1).takes_shipped
    assert not VaeChoice(32.0, 31.5, 0.1).takes_shipped  # a new one will be better
    assert not VaeChoice(27.0, 24.0, 0.1).takes_shipped  # it reads it badly, if better


def test_the_toybox_is_read_well_by_the_shipped_vae(clips_folder: Path) -> None:
    choice = folder_plan.compare_vaes(VideoFolder(DataConfig(folder=clips_folder), (1, 2, 2)))
    assert choice.takes_shipped
    assert choice.read_seconds > 0


def test_the_largest_network_that_has_time_to_learn_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_plan, "measure_dit", lambda config, network, grid: DitSpeed(1e-3, 0.0))
    config = TrainConfig(data=DataConfig(token_budget=1000))  # a second a step, of the network that is measured
    widths = []
    for seconds in (100, 1600, 6000, 100_000):
        chosen, speed = folder_plan.choose_network(config, None, (1, 2, 2), seconds)
        widths.append(chosen.dit.num_attention_heads)
        assert seconds / speed.step_seconds(1000) >= folder_plan.STEPS_WANTED or widths[-1] == 3
    assert widths == [3, 4, 6, 16]


@pytest.mark.parametrize(
    ("speed", "words"), [(0.5, "slower"), (1.0, None), (4.0, "faster")], ids=["slower", "as planned", "faster"]
)
def test_steps_are_fitted_to_the_minutes_as_fast_as_they_turn_out_to_be(
    speed: float, words: str | None, tmp_path: Path
) -> None:
    """A step a second was measured: twenty minutes, 85% of them for steps, are 1,020."""
    dit = TrainConfig(stage="dit", run=RunConfig(dir=tmp_path / "run", steps=1020))
    vae = TrainConfig(stage="vae", run=RunConfig(dir=tmp_path / "run" / "vae", steps=60))
    plan = RunPlan("clips", 20.0, (vae, dit), ("a line",))
    assert fit_plan(plan) == plan  # nothing has been logged yet
    for run, steps, at in ((dit.run.dir, 150, speed), (vae.run.dir, 60, 1.0)):
        run.mkdir(parents=True, exist_ok=True)
        rows = [{"step": step, "loss": 1.0, "steps_per_second": at} for step in range(10, steps + 1, 10)]
        rows.append({"step": steps, "val_loss": 1.0})
        (run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    fitted = fit_plan(plan)
    if words is None:
        assert fitted == plan
    else:
        seconds = 60 + fitted.stages[-1].run.steps / speed
        assert seconds == pytest.approx(20 * 60 * USED_SHARE, abs=2)
        assert words in fitted.lines[-1]
        assert fit_plan(fitted) == fitted


@pytest.mark.usefixtures("quick")
def test_a_run_on_a_machine_that_became_slow_keeps_to_its_minutes(
    silent_clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_run, "FITTED_AT", (0.5,))
    monkeypatch.setattr(folder_plan, "LEAST_STEPS", 2)
    monkeypatch.setattr(folder_plan, "step_speeds", lambda run: [(newest_whole_step(run), 0.01)])
    folder_run.train(silent_clips, minutes=20, run=tmp_path / "run")
    plan = read_plan(tmp_path / "run")
    assert plan is not None
    assert "slower" in plan.lines[-1]
    assert newest_whole_step(tmp_path / "run") == plan.stages[-1].run.steps
    assert (tmp_path / "run" / "results" / "index.html").is_file()


def test_more_is_promised_of_more_views() -> None:
    assert len({expectation(views, clips) for views, clips in ((10, 9), (100, 9), (1000, 9), (1000, 900))}) == 4


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_the_same_after_it_was_written(path: Path, tmp_path: Path) -> None:
    recipe = load_toml(TrainConfig, path)
    (tmp_path / "again.toml").write_text(format_toml(recipe), encoding="utf-8")
    assert load_toml(TrainConfig, tmp_path / "again.toml") == recipe


def test_a_written_config_keeps_awkward_values(tmp_path: Path) -> None:
    config = TrainConfig(
        run=RunConfig(sample_prompts=('say "hi"', "naïve 日本")), sample=SampleConfig(guidance_interval=(0.1, 0.9))
    )
    (tmp_path / "x.toml").write_text(format_toml(config), encoding="utf-8")
    assert load_toml(TrainConfig, tmp_path / "x.toml") == config


def test_a_clip_is_decoded_once_where_decoded_copies_are_kept(
    silent_clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DataConfig(folder=silent_clips, captions="optional", decoded=tmp_path / "decoded")
    clips = VideoFolder(data, (1, 2, 2))
    first = clips.read(0).video
    plain = VideoFolder(replace(data, decoded=None), (1, 2, 2)).read(0).video
    assert (first - plain).abs().max() <= 1 / 255 + 1e-6  # half a step of 8 bits in -1 ... 1
    (kept,) = data.decoded.rglob("*.safetensors")  # type: ignore[union-attr]
    monkeypatch.setattr(folder_module, "read_video", lambda *args, **kwargs: pytest.fail("decoded again"))
    assert torch.equal(clips.read(0).video, first)
    kept.write_bytes(b"cut")
    with pytest.raises(pytest.fail.Exception):
        clips.read(0)


def test_samples_become_ever_rarer(finished: dict[str, TrainConfig]) -> None:
    run = replace(finished["dit"].run, steps=1000, sample_every=10, sample_rarer=True)
    assert [step for step in range(1, 1001) if are_samples_due(run, step)] == [10, 20, 40, 80, 160, 320, 640, 1000]


@pytest.fixture
def quick_lora(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the fewest steps, whatever a step takes, and measure nothing."""
    monkeypatch.setattr(folder_lora, "measure_model", lambda config, info: DitSpeed(0.01, 1.0))
    monkeypatch.setattr(folder_lora, "SAMPLE_STEPS", 2)


@pytest.mark.usefixtures("quick_lora")
def test_a_folder_becomes_a_lora_of_a_model_with_samples_beside_their_sources(
    silent_clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, run = tmp_path / "wan", tmp_path / "run"
    save("T2V 2.1", model)
    words = [str(silent_clips), "--lora", "--model", str(model), "--run", str(run)]
    assert train([*words, "--minutes", "0.01", "--data.max-tokens", "24"]) == 0
    said = capsys.readouterr()
    assert "LoRA: rank 8" in said.err
    assert "too few steps for a LoRA to show" in said.err
    assert f"--model {model} --lora {run / 'checkpoint'}" in said.err
    assert [path.suffix for path in (run / "checkpoint").glob("*.safetensors")] == [".safetensors"]
    assert not (run / "checkpoint" / "transformer").exists()
    assert len(list((run / "results").glob("*-sample.mp4"))) == 3
    assert sample(["a cat", "--model", str(model), "--lora", str(run / "checkpoint"), "--steps", "1",
                   "--size", "16x16", "--frames", "1", "--out", str(tmp_path / "a.png")]) == 0  # fmt: skip
    assert train(words) == 0  # it has nothing left to do
    assert train(words[:1] + words[4:]) == 2
    assert "trains a LoRA of" in capsys.readouterr().err


def test_the_rank_grows_with_the_clips_and_the_steps_fit_the_time(
    silent_clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save("T2V 2.1", tmp_path / "wan")
    data = DataConfig(folder=silent_clips, captions="optional", max_tokens=24)
    monkeypatch.setattr(folder_lora, "RANKS", ((3, 2), (100, 5)))
    steps = []
    for seconds in (1e-4, 0.1, 10.0):
        monkeypatch.setattr(folder_lora, "measure_model", lambda config, info, each=seconds: DitSpeed(each, 0.0))
        (stage,) = folder_lora.make_lora_plan(tmp_path / "run", 2.0, data, tmp_path / "wan").stages
        assert stage.dit.lora_rank == 5
        steps.append(stage.run.steps)
    assert steps[0] > steps[1] > steps[2] == STEPS  # the first by the views that are wanted, the second by the time


def test_what_no_lora_can_be_trained_of_is_refused(
    silent_clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind, reason in (
        ("T2V A14B", "two transformers"),
        ("TI2V 5B", "cells of 16 pixels"),
        ("I2V 2.1", "begins with an image"),
    ):
        save(kind, tmp_path / kind)
        assert train([str(silent_clips), "--lora", "--model", str(tmp_path / kind)]) == 2
        assert reason in capsys.readouterr().err
    for words in (["--lora"], ["--model", str(tmp_path)]):
        assert train([str(silent_clips), *words]) == 2
        assert "--lora and --model FOLDER go together" in capsys.readouterr().err
    with pytest.raises(ValueError, match="go together"):
        folder_run.train(silent_clips, lora=True)
