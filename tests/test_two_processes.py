"""Two processes train the model that one trains which takes both of their packs in every step."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from tests.conftest import STAGES, elsewhere, fit, state_of
from tests.test_cli import QUICK
from videogen.cli.main import sample
from videogen.config.parsing import to_mapping
from videogen.config.train import TrainConfig
from videogen.models.vae import VideoVAE
from videogen.sampling.pipeline import VideoPipeline
from videogen.training.frozen_models import load_part
from videogen.training.run_checkpoints import Stretch, count_packs, load_progress
from videogen.training.stages import make_stage
from videogen.training.trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent
TORCHRUN = "-m torch.distributed.run --nproc-per-node 2 --rdzv-backend c10d --rdzv-endpoint localhost:0"
pytestmark = pytest.mark.slow


class JointTrainer(Trainer):  # type: ignore[type-arg]
    """Trains in one process what several would train, where it is told that there are so many: all packs of a step."""

    def batches(self) -> Iterator[tuple[object, ...]]:  # type: ignore[override]
        start = self.batch_number(self.step) - count_packs(self.earlier)
        num = self.accelerator.num_processes
        return zip(*(self.stage.batches(start + rank, num, self.earlier) for rank in range(num)), strict=True)

    def forward_backward(self, batches: tuple[object, ...], step: int) -> dict[str, float]:  # type: ignore[override]
        losses = []
        for rank, of_rank in enumerate(batches):
            (part,) = self.stage.split(of_rank, self.config.data.token_budget)
            losses.append(self.stage.loss(self.objective, part, self.batch_number(step) + rank))
        weights = torch.stack([terms.pop("weight") for terms in losses])
        self.accelerator.backward((weights * torch.stack([terms["loss"] for terms in losses])).sum() / weights.sum())
        return {name: value.item() for name, value in losses[0].items()}  # the first process logs


def fit_jointly(recipe: TrainConfig, num: int = 2) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Accelerator, "num_processes", property(lambda self: num))
        trainer = JointTrainer(make_stage(recipe), recipe)  # type: ignore[arg-type]
        assert trainer.fit()


def with_packs(recipe: TrainConfig, packs: int) -> TrainConfig:
    """Let each process train several packs in a step, of which an epoch has a few."""
    data, optim = replace(recipe.data, token_budget=80), replace(recipe.optim, accumulate=packs)
    return replace(recipe, data=data, optim=optim)


def resume(recipe: TrainConfig, run_dir: Path) -> TrainConfig:
    """Copy a run as it was after four steps."""
    names = ("step_000004", "config.json", "clips.json")
    for name in names:
        source = recipe.run.dir / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, run_dir / name)
    return elsewhere(recipe, run_dir)


@pytest.fixture(scope="module")
def runs(finished: dict[str, TrainConfig], tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrainConfig]:
    """Train each stage in two processes: from the beginning, and on from four steps of one process."""
    place = tmp_path_factory.mktemp("runs")
    recipes: dict[str, TrainConfig] = {}
    for stage in STAGES:
        recipe = replace(finished[stage], run=replace(finished[stage].run, mixed_precision="no"))
        recipes[f"{stage} anew"] = elsewhere(recipe, place / f"{stage}-anew")
        (place / f"{stage}-on").mkdir()
        recipes[f"{stage} on"] = resume(recipe, place / f"{stage}-on")
        recipes[f"{stage} of two packs"] = with_packs(elsewhere(recipe, place / f"{stage}-packs"), 2)
    file = place / "recipes.json"
    file.write_text(json.dumps([to_mapping(recipe) for recipe in recipes.values()]), encoding="utf-8")
    command = [sys.executable, *TORCHRUN.split(), str(ROOT / "tests" / "two_processes.py"), str(file)]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return recipes


def assert_same_run(run_dir: Path, other: Path) -> None:
    """Compare the losses of the last steps, and all that a run goes on with."""
    ours, theirs = (load_progress(place, 8) for place in (run_dir, other))
    assert ours.stretches == theirs.stretches
    losses = [torch.tensor([row["loss"] for row in progress.window]) for progress in (ours, theirs)]
    assert len(losses[0]) == 8
    torch.testing.assert_close(*losses, atol=1e-6, rtol=0)  # float32, only the order of sums differs
    assert_near_states(run_dir, other)


def assert_near_states(run_dir: Path, other: Path) -> None:
    """Compare the weights, their averages and the optimizer's state."""
    states = [state_of(place, 8) for place in (run_dir, other)]
    assert states[0].keys() == states[1].keys()
    # AdamW divides by the root of tiny second moments, which makes differences of rounding larger in a few weights.
    distances = {name: (value - states[1][name]).abs().max().item() for name, value in states[0].items()}
    assert {name: distance for name, distance in distances.items() if distance > 2e-4} == {}


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_have_the_losses_of_one_with_the_same_batch(
    stage: str, runs: dict[str, TrainConfig], tmp_path: Path
) -> None:
    fit_jointly(elsewhere(runs[f"{stage} anew"], tmp_path / "run"))
    assert_same_run(runs[f"{stage} anew"].run.dir, tmp_path / "run")


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_of_two_packs_a_step_train_what_one_of_four_does(
    stage: str, runs: dict[str, TrainConfig], tmp_path: Path
) -> None:
    recipe = with_packs(elsewhere(runs[f"{stage} of two packs"], tmp_path / "run"), 4)
    assert fit(recipe)
    other = runs[f"{stage} of two packs"].run.dir
    assert load_progress(recipe.run.dir, 8).stretches == load_progress(other, 8).stretches == [Stretch(4, 8)]
    assert_near_states(recipe.run.dir, other)


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_go_on_with_the_run_of_one(stage: str, runs: dict[str, TrainConfig], tmp_path: Path) -> None:
    recipe = runs[f"{stage} on"]
    assert load_progress(recipe.run.dir, 8).stretches == [Stretch(1, 4), Stretch(2, 4)]
    (tmp_path / "run").mkdir()
    fit_jointly(resume(recipe, tmp_path / "run"))
    assert_same_run(recipe.run.dir, tmp_path / "run")


@pytest.mark.parametrize("stage", STAGES)
def test_one_process_goes_on_with_the_run_of_two(stage: str, runs: dict[str, TrainConfig], tmp_path: Path) -> None:
    fit_jointly(elsewhere(runs[f"{stage} anew"], tmp_path / "joint"))
    for name, source in (("joint on", tmp_path / "joint"), ("on", runs[f"{stage} anew"].run.dir)):
        (tmp_path / name).mkdir()
        recipe = resume(elsewhere(runs[f"{stage} anew"], source), tmp_path / name)
        assert fit(recipe)
        assert load_progress(recipe.run.dir, 8).stretches == [Stretch(2, 4), Stretch(1, 4)]
    assert_same_run(tmp_path / "on", tmp_path / "joint on")


def test_the_checkpoints_of_two_processes_open_in_one(runs: dict[str, TrainConfig]) -> None:
    assert VideoPipeline.from_pretrained(runs["dit anew"].run.dir / "checkpoint").transformer.config["num_layers"] == 2
    assert load_part(VideoVAE, runs["vae anew"].run.dir / "checkpoint", "vae").config["width"] == 8


def test_two_processes_share_the_clips_of_a_command(checkpoint: Path, tmp_path: Path) -> None:
    words = ["a red circle", "a blue square", "a star", "--model", str(checkpoint), "--dtype", "float32", *QUICK]
    assert sample([*words, "--out", str(tmp_path / "alone")]) == 0
    command = [
        sys.executable,
        *TORCHRUN.split(),
        "--",
        str(ROOT / "sample.py"),
        *words,
        "--out",
        str(tmp_path / "both"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    clips = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("alone", "both")]
    assert len(clips[0]) == 3
    assert clips[0] == clips[1]
    assert all(done.stdout.count(name) == 1 for name in clips[0])
