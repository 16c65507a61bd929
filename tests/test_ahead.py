"""Clips that other processes read: in order, to the bit, and without a process that stays behind."""

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
from videogen.data.prefetch import ahead, count_workers, unwrap, wrap
from videogen.models.vae import VideoVAE
from videogen.training import caches
from videogen.training.batches import Fetched, Step
from videogen.training.caches import LatentCache
from videogen.training.dit_stage import DitStage
from videogen.training.stages import make_stage
from videogen.training.trainer import Trainer
from videogen.training.vae_stage import VaeStage


class Result(NamedTuple):
    name: str
    arrays: dict[str, np.ndarray]
    more: list[object]


def of_many_kinds() -> Result:
    half = np.arange(24, dtype=np.float16).reshape(2, 3, 4)
    arrays = {"half": half, "bytes": np.arange(5, dtype=np.uint8), "none": np.zeros((0, 3)), "flag": np.array([True])}
    return Result("a", arrays, [half.transpose(2, 0, 1), None, (1, "b")])


def test_what_is_wrapped_is_unwrapped_to_the_bit() -> None:
    first, again = of_many_kinds(), unwrap(wrap(of_many_kinds()))
    assert isinstance(again, Result)
    assert again.name == first.name
    assert again.arrays.keys() == first.arrays.keys()
    for name, array in first.arrays.items():
        assert again.arrays[name].dtype == array.dtype
        assert np.array_equal(again.arrays[name], array)
    assert np.array_equal(again.more[0], first.more[0])  # type: ignore[arg-type]
    assert again.more[1:] == first.more[1:]
    again.arrays["half"] += 1  # it is the receiver's own


def test_all_arrays_of_a_result_travel_in_one_block() -> None:
    arrays = [np.random.default_rng(i).random((100, 7 + i)) for i in range(30)]
    parcel = wrap(arrays)
    assert parcel.arrays.nbytes >= sum(array.nbytes for array in arrays)
    assert len(parcel.rest) < 10_000


class Slowly:
    """The earlier keys take the longest."""

    def __call__(self, key: int) -> tuple[int, int, np.ndarray]:
        time.sleep(0.02 * (3 - key % 4))
        return key, os.getpid(), np.full(1000, key)


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_results_come_in_the_order_of_the_keys(num_workers: int) -> None:
    found = list(ahead(Slowly(), range(17), num_workers))
    assert [key for key, _, _ in found] == list(range(17))
    assert all((array == key).all() for key, _, array in found)
    processes = {process for _, process, _ in found}
    assert len(processes) == max(1, num_workers)
    assert (os.getpid() in processes) == (num_workers == 0)


def test_endless_keys_are_asked_for_a_few_at_a_time() -> None:
    asked: list[int] = []

    def keys():  # noqa: ANN202
        for key in count():
            asked.append(key)
            yield key

    assert len(list(islice(ahead(Slowly(), keys(), 2), 5))) == 5
    assert len(asked) < 15


def test_no_process_stays_behind() -> None:
    results = ahead(Slowly(), count(), 2)
    next(results)
    assert len(multiprocessing.active_children()) == 2
    results.close()  # type: ignore[attr-defined]
    assert multiprocessing.active_children() == []


def fails(key: int) -> int:
    if key == 2:
        raise ValueError("there is no clip 2")
    return key


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_failure_reaches_who_asked(num_workers: int) -> None:
    results = ahead(fails, range(5), num_workers)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="there is no clip 2"):
        next(results)


def draws(key: int) -> float:
    return float(torch.rand(()))


def test_reading_ahead_draws_nothing_from_the_common_generator() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    list(ahead(draws, range(4), 2))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_gpu_has_a_worker_a_core_but_one_and_a_cpu_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert count_workers(None, torch.device("cpu")) == 0
    assert count_workers(None, torch.device("cuda", 0)) == 7
    assert count_workers(3, torch.device("cpu")) == 3
    assert count_workers(0, torch.device("cuda")) == 0
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # as torchrun says it
    assert count_workers(None, torch.device("cuda")) == 1
    with pytest.raises(ValueError, match=r"data\.workers must be 0 or more, got -1"):
        DataConfig(workers=-1)


# --- training


def with_workers(recipe: TrainConfig) -> TrainConfig:
    return replace(recipe, data=replace(recipe.data, workers=2))


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_whose_clips_are_read_ahead_is_the_run_without_to_the_bit(
    stage: str, finished: dict[str, TrainConfig], tmp_path: Path
) -> None:
    recipe = elsewhere(finished[stage], tmp_path / "run")
    torch.manual_seed(11)
    assert fit(with_workers(recipe))
    assert_same_state(recipe.run.dir, finished[stage].run.dir, 8)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("stage", STAGES)
def test_a_file_that_breaks_is_named_once_whoever_reads_it(
    stage: str, own_clips: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_recipe(stage, own_clips, checkpoint, tmp_path / "run", steps=12)
    trainer = Trainer(made := make_stage(with_workers(recipe)), recipe)
    broken = made.folder.entries[made.train[0]].path  # type: ignore[union-attr]
    broken.write_bytes(broken.read_bytes()[:500])
    assert trainer.fit()
    assert capsys.readouterr().err.count(f"not used: {broken}") == 1


def test_what_goes_to_another_process_is_light(finished: dict[str, TrainConfig]) -> None:
    """It may be pickled, where processes are not forked: no network goes with it."""
    dit, vae = (make_stage(finished[name]) for name in ("dit", "vae"))
    assert isinstance(dit, DitStage)
    assert isinstance(vae, VaeStage)
    for light in (dit.reader, vae.cutter):
        assert len(pickle.dumps(light)) < 20_000


def test_a_linear_encoder_goes_with_the_reader_to_the_bit(
    clips_folder: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """What the reader hands over is whole, and what the VAE itself says of the clip; any other encoder stays behind."""
    vae = VideoVAE(4, 8, [0.1] * 4, [0.5] * 4, linear_encoder=True)
    alone = vae.encoder_alone()
    assert alone is not None
    assert sum(weight.numel() for weight in alone.parameters()) == 768 * 4 + 4
    clip = torch.rand(1, 3, 5, 16, 24)
    assert torch.equal(alone.encode(clip), vae.encode(clip))
    assert VideoVAE(4, 8).encoder_alone() is None
    stage = DitStage(tiny_recipe("dit", clips_folder, checkpoint, tmp_path / "run"))
    ask = next(stage.asks(0, 1))
    stage.reader.cache = LatentCache(stage.folder, "another encoder's", tmp_path / "latents")  # nothing is there yet
    for encoder, made in ((None, Fetched), (alone, Step), (None, Step)):  # the last from disk
        stage.reader.encoder = encoder
        assert isinstance(stage.reader.fetch(ask), made)


def test_compiling_is_for_the_dit(finished: dict[str, TrainConfig], tmp_path: Path) -> None:
    recipe = elsewhere(finished["vae"], tmp_path / "run")
    recipe = replace(recipe, run=replace(recipe.run, compile=True))
    with pytest.raises(ValueError, match=r"run\.compile is for the DiT's blocks; leave it out where the VAE is"):
        Trainer(make_stage(recipe), recipe)


def test_a_full_disk_is_said_and_is_no_fault_of_the_clip(
    clips_folder: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Met by whoever reads ahead, and said by the run, which stops: no clip is left out for it."""
    stage = DitStage(tiny_recipe("dit", clips_folder, checkpoint, tmp_path / "run"))
    stage.reader.encoder = VideoVAE(4, 8, [0.1] * 4, [0.5] * 4, linear_encoder=True).encoder_alone()
    stage.cache = stage.reader.cache = LatentCache(stage.folder, "another encoder's", tmp_path / "latents")

    def full(*_: object) -> None:
        raise OSError("could not write x: no space left on device")

    monkeypatch.setattr(caches, "save_tensors", full)
    with pytest.raises(OSError, match="no space left on device"):
        next(stage.batches(0))
    assert stage.folder.problems == []  # type: ignore[union-attr]
