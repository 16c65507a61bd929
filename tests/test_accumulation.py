"""A step of several packs, one after another, is the step of one pack that holds the clips of all of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, islice
from pathlib import Path

import pytest
import torch

from tests.conftest import STAGES, assert_same_state, elsewhere, fit, state_of, tiny_recipe
from tests.test_out_of_memory import assert_same_gradient
from videogen.config.train import OptimConfig, TrainConfig
from videogen.packing.noise import NoiseLevels
from videogen.packing.packs import PackedText
from videogen.training.batches import TrainingBatch
from videogen.training.dit_stage import DitStage
from videogen.training.dry_run import format_plan, plan_folder
from videogen.training.flow_matching import FlowTask
from videogen.training.progress import read_log
from videogen.training.run_checkpoints import Stretch, load_progress
from videogen.training.stages import make_stage
from videogen.training.trainer import Trainer
from videogen.training.vae_stage import VaeStage


def accumulating(recipe: TrainConfig, run_dir: Path, packs: int = 2, **run: object) -> TrainConfig:
    """Let a step have several packs, of which an epoch has a few."""
    recipe = elsewhere(recipe, run_dir, **run)
    data, optim = replace(recipe.data, token_budget=80), replace(recipe.optim, accumulate=packs)
    return replace(recipe, data=data, optim=optim)


def join(tasks: Sequence[FlowTask]) -> FlowTask:
    """Lay the clips of several packs, each with its noise and levels, end to end as one pack."""
    first = [0, *accumulate(len(task.levels.values) for task in tasks)]
    index = [task.levels.index + offset for task, offset in zip(tasks, first, strict=False)]
    grids = tuple(grid for task in tasks for grid in task.clean.grids)
    return tasks[0]._replace(
        clean=tasks[0].clean._replace(tokens=torch.cat([task.clean.tokens for task in tasks]), grids=grids),
        noise=torch.cat([task.noise for task in tasks]),
        levels=NoiseLevels(torch.cat([task.levels.values for task in tasks]), torch.cat(index)),
        text=PackedText(
            torch.cat([task.text.tokens for task in tasks]),
            tuple(length for task in tasks for length in task.text.lengths),
            torch.cat([task.text.weights for task in tasks]),
        ),
        weight=torch.cat([task.weight for task in tasks]),
        total_weight=torch.stack([task.total_weight for task in tasks]).sum(),
    )


class OnePackTrainer(Trainer):  # type: ignore[type-arg]
    """Trains the packs of a step as one large pack, in one pass."""

    def forward_backward(self, batches: Sequence[TrainingBatch], step: int) -> dict[str, float]:
        losses = self.stage.loss(self.objective, join([self.stage.flow_task(batch) for batch in batches]), 0)  # type: ignore[attr-defined]
        losses.pop("weight")
        self.accelerator.backward(losses["loss"])
        return {name: value.item() for name, value in losses.items()}


@pytest.fixture(scope="module")
def accumulated(finished: dict[str, TrainConfig], tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrainConfig]:
    """Train each stage in eight steps of two packs."""
    recipes = {}
    for stage in STAGES:
        recipes[stage] = accumulating(finished[stage], tmp_path_factory.mktemp(stage) / "run")
        assert fit(recipes[stage])
    return recipes


def test_two_packs_in_a_step_have_the_gradient_of_one_that_holds_both(
    finished: dict[str, TrainConfig], tmp_path: Path
) -> None:
    recipe = accumulating(finished["dit"], tmp_path / "run", packs=3)
    stages = make_stage(recipe), make_stage(recipe)
    one, several = OnePackTrainer(stages[0], recipe), Trainer(stages[1], recipe)
    batches = next(several.batches())
    assert len({stages[0].flow_task(batch).total_weight.item() for batch in batches}) == 3  # type: ignore[union-attr]
    losses = [trainer.compute_gradient(batches, 0) for trainer in (one, several)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)
    assert_same_gradient(*stages)


def test_two_packs_in_a_step_have_the_losses_and_weights_of_one_that_holds_both(
    accumulated: dict[str, TrainConfig], tmp_path: Path
) -> None:
    recipe = elsewhere(accumulated["dit"], tmp_path / "run")
    assert OnePackTrainer(make_stage(recipe), recipe).fit()
    windows = [load_progress(run.run.dir, 8).window for run in (recipe, accumulated["dit"])]
    assert len(windows[0]) == 8
    for ours, theirs in zip(*windows, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6)
    states = [state_of(run.run.dir, 8) for run in (recipe, accumulated["dit"])]
    for name, value in states[0].items():
        # AdamW divides by the root of tiny second moments, which makes differences of rounding larger in a few weights.
        torch.testing.assert_close(value, states[1][name], atol=2e-5, rtol=1e-4, msg=name)


def test_the_packs_of_a_step_count_by_their_weights_in_the_vae_too(
    finished: dict[str, TrainConfig], tmp_path: Path
) -> None:
    recipe = accumulating(finished["vae"], tmp_path / "run")
    recipe = replace(recipe, vae=replace(recipe.vae, crop=0))  # whole clips, whose pixels differ
    stages = make_stage(recipe), make_stage(recipe)
    trainers = [Trainer(stage, recipe) for stage in stages]
    batches = next(trainers[0].batches())
    values = trainers[0].compute_gradient(batches, 0)
    losses = [stages[1].loss(stages[1].objective, batch, number) for number, batch in enumerate(batches)]
    weights = torch.stack([of_pack.pop("weight") for of_pack in losses])
    assert weights[0] != weights[1]
    for name in ("loss", "l1", "kl"):
        mean = (weights * torch.stack([of_pack[name] for of_pack in losses])).sum() / weights.sum()
        assert values[name] == pytest.approx(mean.item(), abs=1e-6)
        if name == "loss":
            mean.backward()
    assert_same_gradient(*stages)


@pytest.mark.parametrize("stage", STAGES)
def test_an_accumulating_run_that_is_stopped_after_every_step_ends_the_same_bit_for_bit(
    stage: str, accumulated: dict[str, TrainConfig], tmp_path: Path
) -> None:
    recipe = elsewhere(accumulated[stage], tmp_path / "run", minutes=1e-9)
    torch.manual_seed(99)
    for _ in range(7):
        assert not fit(recipe)
    assert fit(recipe)
    assert_same_state(recipe.run.dir, accumulated[stage].run.dir, 8)


def test_what_was_consumed_is_counted_in_packs(accumulated: dict[str, TrainConfig], tmp_path: Path) -> None:
    recipe = accumulated["dit"]
    assert load_progress(recipe.run.dir, 8).stretches == [Stretch(2, 8)]
    stage = make_stage(replace(recipe, dit=replace(recipe.dit, patches={"1x2x4": 0.25})))
    assert isinstance(stage, DitStage)
    requests = list(islice(stage.batch_requests(0, 1), 40))
    assert [request.number for request in requests] == list(range(40))
    assert all(one.patch == two.patch for one, two in zip(requests[::2], requests[1::2], strict=True))
    assert [request.patch for request in requests[::2]] == list(map(stage.patch_of_step, range(20)))
    assert list(islice(stage.batch_requests(12, 1), 5)) == requests[12:17]
    of_ranks = [islice(stage.batch_requests(rank, 2), 20) for rank in (0, 1)]  # two processes, two packs each
    four = make_stage(accumulating(stage.config, tmp_path / "run", packs=4))
    assert isinstance(four, DitStage)
    dealt = [request for pair in zip(*of_ranks, strict=True) for request in pair]
    assert dealt == list(islice(four.batch_requests(0, 1), 40))


def test_the_last_share_of_the_vaes_steps_has_whole_clips_in_all_packs_of_a_step(
    finished: dict[str, TrainConfig], tmp_path: Path
) -> None:
    recipe = accumulating(finished["vae"], tmp_path / "run", packs=3)
    stage = VaeStage(replace(recipe, vae=replace(recipe.vae, whole_share=0.25)))
    requests = list(islice(stage.crop_requests(0, 1), 24))
    assert [request.whole for request in requests] == [False] * 18 + [True] * 6
    assert next(stage.crop_requests(15, 1)) == requests[15]


def test_a_run_goes_on_with_other_packs_a_step_and_trains_none_twice(
    accumulated: dict[str, TrainConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = elsewhere(accumulated["dit"], tmp_path / "run", minutes=1e-9)
    for _ in range(3):
        assert not fit(recipe)
    single = replace(recipe, optim=replace(recipe.optim, accumulate=1), run=replace(recipe.run, minutes=None))
    trainer = Trainer(make_stage(single), single)
    assert "unlike before, a step trains 1 packs, was 2" in caplog.text
    assert [trainer.batch_number(step) for step in (3, 4)] == [6, 7]
    assert trainer.fit()
    assert load_progress(recipe.run.dir, 8).stretches == [Stretch(2, 3), Stretch(1, 5)]


def test_out_of_memory_in_the_second_pack_starts_the_step_over(
    finished: dict[str, TrainConfig], tmp_path: Path
) -> None:
    recipe = accumulating(finished["dit"], tmp_path / "run", steps=1)
    stages = make_stage(recipe), make_stage(recipe)
    trainers = [Trainer(stage, recipe) for stage in stages]
    batches, calls, loss = next(trainers[0].batches()), list[int](), stages[1].loss

    def fail_once(*args: object) -> dict[str, torch.Tensor]:
        calls.append(len(calls))
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return loss(*args)  # type: ignore[arg-type]

    stages[1].loss = fail_once  # type: ignore[method-assign,assignment]
    losses = [trainer.compute_gradient(batches, 0) for trainer in trainers]
    assert trainers[1].max_tokens_per_pass < trainers[0].max_tokens_per_pass
    assert len(calls) > 4
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert_same_gradient(*stages)


def test_the_log_counts_the_tokens_of_all_packs_of_a_step(
    finished: dict[str, TrainConfig], clips_folder: Path, checkpoint: Path, tmp_path: Path
) -> None:
    recipe = tiny_recipe("dit", clips_folder, checkpoint, tmp_path / "run", steps=10)
    rows = {}
    for packs in (1, 2):
        assert fit(accumulating(recipe, tmp_path / str(packs), packs, steps=20 // packs))
        rows[packs] = [row for row in read_log(tmp_path / str(packs)) if "lr" in row]
    single, double = rows[1], rows[2][0]  # ten steps of two packs are twenty of one
    for name, factor in (("tokens", 1.0), ("clips", 1.0), ("fill", 0.5)):
        assert double[name] == pytest.approx(factor * sum(float(str(row[name])) for row in single))
    assert double["loss"] != single[0]["loss"]


def test_a_bad_step_names_the_clips_of_all_its_packs(finished: dict[str, TrainConfig], tmp_path: Path) -> None:
    recipe = accumulating(finished["vae"], tmp_path / "run")
    trainer = Trainer(stage := make_stage(recipe), recipe)
    stage.model.decoder.linear.weight.data.fill_(torch.nan)  # type: ignore[union-attr]
    with pytest.raises(FloatingPointError, match=r"of the clips .* at step 0; ") as error:
        trainer.fit()
    named = str(error.value).partition("of the clips ")[2].partition(" the loss")[0].split(", ")
    assert len(named) == 2 * recipe.vae.batch_clips


@pytest.mark.parametrize("stage", STAGES)
def test_a_dry_run_counts_steps_of_several_packs(stage: str, finished: dict[str, TrainConfig], tmp_path: Path) -> None:
    recipe = elsewhere(finished[stage], tmp_path / "run")
    single, double = (plan_folder(accumulating(recipe, tmp_path / "run", packs)) for packs in (1, 2))
    assert double.steps_per_epoch == -(-single.steps_per_epoch // 2)
    assert (double.packs_per_epoch, double.memory_gb) == (single.packs_per_epoch, single.memory_gb)
    text = format_plan(double, accumulating(recipe, tmp_path / "run"))
    if stage == "vae":
        assert f"{double.steps_per_epoch} steps an epoch of 4 clips each" in text
    else:
        assert f"2 a step, {double.steps_per_epoch} steps on one device" in text
        assert double.seconds_per_step is not None
        assert single.seconds_per_step is not None
        assert double.seconds_per_step == pytest.approx(2 * single.seconds_per_step)  # both by one measured speed
    assert "packs_per_epoch" in json.dumps(double.__dict__)


def test_no_pack_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match="accumulate must be"):
        OptimConfig(accumulate=0)
