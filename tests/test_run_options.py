"""Runs keep as many steps as they are told, resume and report where they are told, and say if they are not done."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import assert_same_state, elsewhere, fit
from videogen.cli.train import train
from videogen.config.parsing import format_toml
from videogen.config.train import RunConfig, TrainConfig
from videogen.training.run_checkpoints import saved_steps
from videogen.training.trainer import Trainer


def write_recipe(recipe: TrainConfig, path: Path) -> Path:
    path.write_text(format_toml(recipe), encoding="utf-8")
    return path


@pytest.mark.parametrize(("keep", "kept"), [(1, [8]), (3, [4, 6, 8]), (0, [2, 4, 6, 8])])
def test_the_newest_steps_are_kept(
    keep: int, kept: list[int], finished: dict[str, TrainConfig], tmp_path: Path
) -> None:
    recipe = elsewhere(finished["vae"], tmp_path / "run", keep=keep, save_every=2)
    assert fit(recipe)
    assert saved_steps(recipe.run.dir) == kept


def test_a_run_resumes_at_the_step_it_is_told_and_sets_the_later_ones_aside(
    finished: dict[str, TrainConfig], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished["vae"].run.dir, tmp_path / "run"))
    recipe = elsewhere(finished["vae"], run, resume="4", keep=0)
    assert fit(recipe)
    assert saved_steps(run) == [4, 8]
    assert (run / "step_000008.aside").is_dir()
    assert_same_state(run, finished["vae"].run.dir, 8)
    steps = [line for line in (run / "log.jsonl").read_text().splitlines() if '"step": 8' in line]
    assert len(steps) <= 2  # of one end of the run: its loss and its validation


def test_a_run_begins_anew_where_it_is_told_to(finished: dict[str, TrainConfig], tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished["vae"].run.dir, tmp_path / "run"))
    recipe = elsewhere(finished["vae"], run, resume="none", seed=5)
    assert fit(recipe)
    with pytest.raises(AssertionError):
        assert_same_state(run, finished["vae"].run.dir, 8)


def test_a_step_that_was_not_saved_is_refused(finished: dict[str, TrainConfig], tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished["vae"].run.dir, tmp_path / "run"))
    with pytest.raises(ValueError, match=r"the steps saved in .* are 4, 8; give one of them, or latest"):
        fit(elsewhere(finished["vae"], run, resume="5"))
    for wrong in ("newest", "-1", "4.0"):
        with pytest.raises(ValueError, match=r"run\.resume must be latest, none or the number of a step"):
            RunConfig(resume=wrong)
    with pytest.raises(ValueError, match=r"run\.keep must be 0 or more"):
        RunConfig(keep=-1)


def test_trackers_take_settings_losses_and_samples(finished: dict[str, TrainConfig], tmp_path: Path) -> None:
    recipe = elsewhere(
        finished["dit"], tmp_path / "run", report_to="tensorboard", sample_every=8, sample_prompts=("a cat",)
    )
    assert fit(recipe)
    (events,) = {path.parent for path in recipe.run.dir.rglob("events*") if path.parent.name == "tensorboard"}
    log = EventAccumulator(str(events)).Reload()
    assert "samples" in log.Tags()["images"]
    assert any(name.startswith("val_") for name in log.Tags()["scalars"])
    none = elsewhere(finished["vae"], tmp_path / "none", report_to="none")
    assert fit(none)
    assert not list(none.run.dir.rglob("events*"))


@pytest.mark.parametrize(("name", "reason"), [
    ("tensorbored", "run.report_to must be auto, none, or of"), ("wandb", "needs a package that is not installed"),
])  # fmt: skip
def test_a_tracker_that_is_not_there_is_refused(
    name: str, reason: str, finished: dict[str, TrainConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = elsewhere(finished["vae"], tmp_path / "run", report_to=name)
    assert train([str(write_recipe(recipe, tmp_path / "recipe.toml"))]) == 2
    assert reason in capsys.readouterr().err
    assert not list((tmp_path / "run").rglob("step_*"))


def test_a_run_that_ends_before_its_last_step_has_a_status_of_its_own(
    finished: dict[str, TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = elsewhere(finished["vae"], tmp_path / "run")
    path = write_recipe(replace(recipe, run=replace(recipe.run, minutes=1e-6)), tmp_path / "recipe.toml")
    assert train([str(path)]) == 75
    monkeypatch.setattr(Trainer, "fit", lambda self: True)
    assert train([str(path)]) == 0
