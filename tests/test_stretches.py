"""A run that goes on with another number of processes trains every pack once, and no noise twice."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from itertools import count, islice
from pathlib import Path

import pytest

from tests.conftest import elsewhere, tiny_recipe
from videogen.config.train import TrainConfig
from videogen.data.splits import CLIPS, hold_out_by_order
from videogen.packing.bin_packing import Dealt, balance_ranks, deal_packs
from videogen.training.batches import BatchRequest
from videogen.training.dit_stage import DitStage
from videogen.training.run_checkpoints import PROGRESS, Stretch, load_progress
from videogen.training.stages import make_stage
from videogen.training.trainer import Trainer


@pytest.fixture
def stage(clips_folder: Path, checkpoint: Path, tmp_path: Path) -> DitStage:
    recipe = tiny_recipe("dit", clips_folder, checkpoint, tmp_path / "run", steps=500)
    stage = make_stage(replace(recipe, dit=replace(recipe.dit, patches={"1x2x4": 0.25})))
    assert isinstance(stage, DitStage)
    return stage


def requests_of(stage: DitStage, stretches: list[Stretch]) -> list[BatchRequest]:
    """List the packs of a run whose number of processes changed, in the order of steps and ranks."""
    requests = list[BatchRequest]()
    for place, (processes, steps) in enumerate(stretches):
        ranks = [stage.batch_requests(rank, processes, stretches[:place]) for rank in range(processes)]
        requests += [next(rank) for _ in range(steps) for rank in ranks]
    return requests


@pytest.mark.parametrize("stretches", [[(2, 7), (1, 30)], [(1, 5), (2, 20)], [(3, 4), (2, 5), (1, 1), (4, 9)]])
def test_a_run_of_several_numbers_of_processes_trains_every_clip_once_an_epoch_and_no_noise_twice(
    stage: DitStage, stretches: list[tuple[int, int]]
) -> None:
    requests = requests_of(stage, [Stretch(*stretch) for stretch in stretches])
    assert [request.number for request in requests] == list(range(len(requests)))  # what seeds the noise
    for patch in stage.model.patches:
        packs = [(request.epoch, tuple(request.indices)) for request in requests if request.patch == patch]
        planned = Counter((epoch, tuple(indices)) for epoch, indices in islice(stage.packs(patch), 3 * len(packs)))
        assert not Counter(packs) - planned  # none twice
        epochs = Counter(epoch for epoch, _ in packs)
        assert all(epochs[epoch] == sum(e == epoch for e, _ in planned.elements()) for epoch in range(max(epochs) - 1))


def test_packs_left_of_a_window_are_dealt_first() -> None:
    for num in (0, 1, 5, 8, 12):
        dealt = list(islice(balance_ranks(count(), lambda pack: -pack % 7, 2, steps=4), num))
        rest = list(islice(deal_packs(count(), lambda pack: -pack % 7, 1, 4, dealt=[Dealt(2, 4, num)]), 16))
        window = -(-num // 8) * 8  # the packs of two ranks and four steps are reordered among themselves
        assert sorted(dealt + rest[: window - num]) == list(range(window))
        assert rest[window - num :] == list(range(window, num + 16))


def test_one_stretch_is_the_run_as_it_was(stage: DitStage) -> None:
    for every in (1, 2, 3):
        whole = list(islice(stage.batch_requests(0, every), 20))
        assert list(islice(stage.batch_requests(6 * every, every), 5)) == whole[6:11]


def test_a_run_keeps_the_count_of_its_packs_and_says_when_a_step_trains_more(
    finished: dict[str, TrainConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = elsewhere(finished["dit"], tmp_path / "run")
    assert list(load_progress(finished["dit"].run.dir, 4).stretches) == [(1, 4)]
    shutil.copytree(finished["dit"].run.dir / "step_000004", step := recipe.run.dir / "step_000004")
    (step / "manifest.json").unlink()
    (step / PROGRESS).write_text(json.dumps({"window": [], "stretches": [[2, 3], [3, 1]]}), encoding="utf-8")
    trainer = Trainer(make_stage(recipe), recipe)
    assert "unlike before, a step trains 1 packs, was 3" in caplog.text
    assert [trainer.batch_number(number) for number in (4, 5, 8)] == [9, 10, 13]
    assert trainer.fit()
    assert list(load_progress(recipe.run.dir, 8).stretches) == [(2, 3), (3, 1), (1, 4)]


def test_a_run_of_an_earlier_version_resumes_with_its_own_held_out_clips(
    finished: dict[str, TrainConfig], tmp_path: Path
) -> None:
    recipe = elsewhere(finished["dit"], tmp_path / "run")
    shutil.copytree(finished["dit"].run.dir / "step_000004", step := recipe.run.dir / "step_000004")
    (step / "manifest.json").unlink()
    (step / PROGRESS).write_text('{"window": []}', encoding="utf-8")
    stage = make_stage(recipe)
    names = stage.folder.names()
    old = hold_out_by_order(names, 2, recipe.run.seed)
    assert len(old) == 2
    assert {names[index] for index in stage.val_indices} == set(old)
    assert Trainer(stage, recipe).fit()
    shutil.rmtree(step)
    assert set(json.loads((recipe.run.dir / CLIPS).read_text(encoding="utf-8"))["held_out"]) == set(old)
    assert make_stage(recipe).val_indices == stage.val_indices
