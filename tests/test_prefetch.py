"""Worker processes read clips in order and bit for bit, and none outlives the run."""

import multiprocessing
import os
import pickle
import time
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from tests.conftest import STAGES, assert_same_state, elsewhere, fit, tiny_recipe
from videogen.config.train import DataConfig, TrainConfig
from videogen.data.prefetch import count_workers, from_parcel, prefetch, to_parcel
from videogen.data.shards import ShardStore
from videogen.models.vae import VideoVAE
from videogen.training.batches import PartialBatch, TrainingBatch
from videogen.training.caches import LatentCache
from videogen.training.dit_stage import DitStage
from videogen.training.stages import make_stage
from videogen.training.trainer import Trainer
from videogen.training.vae_stage import VaeStage


class Result(NamedTuple):
    name: str
    arrays: dict[str, np.ndarray]
    more: list[object]


def result_of_many_dtypes() -> Result:
    half = np.arange(24, dtype=np.float16).reshape(2, 3, 4)
    arrays = {"half": half, "bytes": np.arange(5, dtype=np.uint8), "none": np.zeros((0, 3)), "flag": np.array([True])}
    return Result("a", arrays, [half.transpose(2, 0, 1), None, (1, "b")])


def test_unwrap_restores_a_wrapped_result_bit_for_bit() -> None:
    first, again = result_of_many_dtypes(), from_parcel(to_parcel(result_of_many_dtypes()))
    assert isinstance(again, Result)
    assert again.name == first.name
    assert again.arrays.keys() == first.arrays.keys()
    for name, array in first.arrays.items():
        assert again.arrays[name].dtype == array.dtype
        assert np.array_equal(again.arrays[name], array)
    assert np.array_equal(again.more[0], first.more[0])  # type: ignore[arg-type]
    assert again.more[1:] == first.more[1:]
    again.arrays["half"] += 1  # the receiver owns its arrays and may write to them


def test_wrap_joins_all_arrays_of_a_result_in_one_block() -> None:
    arrays = [np.random.default_rng(i).random((100, 7 + i)) for i in range(30)]
    parcel = to_parcel(arrays)
    assert parcel.arrays.nbytes >= sum(array.nbytes for array in arrays)
    assert len(parcel.pickled) < 10_000


class SlowWork:
    """Takes longest for the earlier keys, so that later results are ready first."""

    def __call__(self, key: int) -> tuple[int, int, np.ndarray]:
        time.sleep(0.02 * (3 - key % 4))
        return key, os.getpid(), np.full(1000, key)


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_results_come_in_the_order_of_the_keys(num_workers: int) -> None:
    results = list(prefetch(SlowWork(), range(17), num_workers))
    assert [key for key, _, _ in results] == list(range(17))
    assert all((array == key).all() for key, _, array in results)
    processes = {process for _, process, _ in results}
    assert len(processes) == max(1, num_workers)
    assert (os.getpid() in processes) == (num_workers == 0)


def test_only_a_few_keys_of_an_endless_iterator_are_taken_ahead() -> None:
    taken: list[int] = []

    def keys():  # noqa: ANN202
        for key in count():
            taken.append(key)
            yield key

    assert len(list(islice(prefetch(SlowWork(), keys(), 2), 5))) == 5
    assert len(taken) < 15


def test_closing_the_results_ends_every_worker_process() -> None:
    results = prefetch(SlowWork(), count(), 2)
    next(results)
    assert len(multiprocessing.active_children()) == 2
    results.close()  # type: ignore[attr-defined]
    assert multiprocessing.active_children() == []


def fail_at_2(key: int) -> int:
    if key == 2:
        raise ValueError("there is no clip 2")
    return key


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_in_a_worker_is_raised_in_the_main_process(num_workers: int) -> None:
    results = prefetch(fail_at_2, range(5), num_workers)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="there is no clip 2"):
        next(results)


def random_number(key: int) -> float:
    return float(torch.rand(()))


def test_prefetching_leaves_the_global_random_state_unchanged() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    list(prefetch(random_number, range(4), 2))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_default_is_no_worker_on_cpu_and_one_per_core_but_one_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert count_workers(None, torch.device("cpu")) == 0
    assert count_workers(None, torch.device("cuda", 0)) == 7
    assert count_workers(3, torch.device("cpu")) == 3
    assert count_workers(0, torch.device("cuda")) == 0
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # torchrun sets this
    assert count_workers(None, torch.device("cuda")) == 1
    with pytest.raises(ValueError, match=r"data\.workers must be 0 or more, got -1"):
        DataConfig(workers=-1)


# --- training


def with_workers(recipe: TrainConfig) -> TrainConfig:
    return replace(recipe, data=replace(recipe.data, workers=2))


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_with_workers_equals_the_run_without_bit_for_bit(
    stage: str, finished: dict[str, TrainConfig], tmp_path: Path
) -> None:
    recipe = elsewhere(finished[stage], tmp_path / "run")
    torch.manual_seed(11)
    assert fit(with_workers(recipe))
    assert_same_state(recipe.run.dir, finished[stage].run.dir, 8)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("name", STAGES)
def test_a_file_that_breaks_during_training_is_reported_once(
    name: str, own_clips: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_recipe(name, own_clips, checkpoint, tmp_path / "run", steps=12)
    trainer = Trainer(stage := make_stage(with_workers(recipe)), recipe)
    broken = stage.folder.entries[stage.train_indices[0]].path  # type: ignore[union-attr]
    broken.write_bytes(broken.read_bytes()[:500])
    assert trainer.fit()
    assert capsys.readouterr().err.count(f"not used: {broken}") == 1


def test_what_a_worker_receives_pickles_to_less_than_20_kb(finished: dict[str, TrainConfig]) -> None:
    """Where processes are not forked it is pickled, so it must not hold a network."""
    dit, vae = (make_stage(finished[name]) for name in ("dit", "vae"))
    assert isinstance(dit, DitStage)
    assert isinstance(vae, VaeStage)
    for work in (dit.reader, vae.crop_loader):
        assert len(pickle.dumps(work)) < 20_000


def test_a_linear_encoder_works_in_the_reader_and_equals_the_vae_bit_for_bit(
    clips_folder: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """With it the reader builds whole batches; any other encoder stays in the training process."""
    vae = VideoVAE(4, 8, [0.1] * 4, [0.5] * 4, linear_encoder=True)
    alone = vae.linear_encoder_copy()
    assert alone is not None
    assert sum(weight.numel() for weight in alone.parameters()) == 768 * 4 + 4
    clip = torch.rand(1, 3, 5, 16, 24)
    assert torch.equal(alone.encode(clip), vae.encode(clip))
    assert VideoVAE(4, 8).linear_encoder_copy() is None
    stage = DitStage(tiny_recipe("dit", clips_folder, checkpoint, tmp_path / "run"))
    request = next(stage.batch_requests(0, 1))
    stage.reader.cache = LatentCache(stage.folder, "another encoder's", tmp_path / "latents")  # an empty cache
    for encoder, batch in ((None, PartialBatch), (alone, TrainingBatch), (None, TrainingBatch)):  # the last from disk
        stage.reader.encoder = encoder
        assert isinstance(stage.reader.read_batch(request), batch)


def test_compiling_is_refused_for_the_vae(finished: dict[str, TrainConfig], tmp_path: Path) -> None:
    recipe = elsewhere(finished["vae"], tmp_path / "run")
    recipe = replace(recipe, run=replace(recipe.run, compile=True))
    with pytest.raises(ValueError, match=r"run\.compile is for the DiT's blocks; leave it out where the VAE is"):
        Trainer(make_stage(recipe), recipe)


def test_a_full_disk_stops_the_run_and_is_not_reported_as_an_unreadable_clip(
    clips_folder: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader meets the error first and passes over it; the training process raises it and leaves no clip out."""
    stage = DitStage(tiny_recipe("dit", clips_folder, checkpoint, tmp_path / "run"))
    stage.reader.encoder = VideoVAE(4, 8, [0.1] * 4, [0.5] * 4, linear_encoder=True).linear_encoder_copy()
    stage.cache = stage.reader.cache = LatentCache(stage.folder, "another encoder's", tmp_path / "latents")

    def raise_disk_full(*_: object) -> None:
        raise OSError("could not write x: no space left on device")

    monkeypatch.setattr(ShardStore, "save", raise_disk_full)
    with pytest.raises(OSError, match="no space left on device"):
        next(stage.batches(0))
    assert stage.folder.problems == []  # type: ignore[union-attr]
