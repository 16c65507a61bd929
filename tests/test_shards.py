"""Small tensors in large files: found again by their keys, whatever becomes of the files."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.conftest import assert_same_state, elsewhere, fit
from videogen.config.train import TrainConfig
from videogen.data import shards
from videogen.data.folder import VideoFolder
from videogen.data.shards import HEADER, INDEX, KEY_BYTES, ShardStore
from videogen.training.dry_run import format_plan, plan_folder
from videogen.training.stages import make_stage


def key(number: int) -> bytes:
    return number.to_bytes(KEY_BYTES)


def tensors(number: int) -> dict[str, Tensor]:
    return {"latent": torch.full((4, 2, 3, 3), number).half(), "kinds": torch.arange(number)}


def fill(folder: Path, numbers: range) -> ShardStore:
    store = ShardStore(folder)
    for number in numbers:
        store.save(key(number), tensors(number))
    return store


def found(store: ShardStore, numbers: range) -> list[int]:
    """List the numbers whose tensors are found, and check these."""
    loaded = {number: store.load(key(number)) for number in numbers}
    for number, values in loaded.items():
        if values is not None:
            assert all(torch.equal(values[name], value) for name, value in tensors(number).items())
            assert values.keys() == tensors(number).keys()
    return [number for number, values in loaded.items() if values is not None]


def test_what_was_saved_is_found_in_other_sessions_and_by_other_processes(tmp_path: Path) -> None:
    store = fill(tmp_path, range(5))
    assert found(store, range(7)) == [0, 1, 2, 3, 4]
    again = pickle.loads(pickle.dumps(store))
    again.save(key(5), tensors(5))
    assert found(store, range(7)) == found(again, range(7)) == [0, 1, 2, 3, 4, 5]
    if (child := os.fork()) == 0:
        store.save(key(6), tensors(6))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    store.save(key(7), tensors(7))
    assert found(store, range(8)) == list(range(8))
    assert len(list(tmp_path.glob("*.shard"))) == 3  # one for each process


def test_the_last_saved_of_a_key_counts(tmp_path: Path) -> None:
    store = fill(tmp_path, range(2))
    store.save(key(0), {"latent": torch.ones(1)})
    assert (store.load(key(0)) or {}).keys() == {"latent"}
    assert [record.key for record in store.records()] == [key(1), key(0)]  # as they lie on disk


def empty(path: Path) -> None:
    path.write_bytes(b"")


def zeros(path: Path) -> None:
    path.write_bytes(bytes(8192))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("damage", [Path.unlink, empty, zeros, cut, fifo])
def test_an_index_that_is_missing_or_damaged_is_made_again(
    damage: Callable[[Path], object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path, range(300))
    damage(tmp_path / INDEX)
    with caplog.at_level(logging.WARNING):
        store = ShardStore(tmp_path)
        assert found(store, range(301)) == list(range(300))
    assert ("made again" in caplog.text) == (damage is not Path.unlink)
    store.save(key(300), tensors(300))
    assert found(ShardStore(tmp_path), range(301)) == list(range(301))


def test_a_damaged_record_is_not_found_and_the_others_are(tmp_path: Path) -> None:
    store = fill(tmp_path, range(5))
    (path,) = tmp_path.glob("*.shard")
    data = bytearray(path.read_bytes())
    places = [record.start for record in store.records()]
    for place in (places[1] + HEADER.size + 200, places[3] + 9):  # in a content, and in a key
        data[place] ^= 1
    path.write_bytes(data)
    assert found(ShardStore(tmp_path), range(5)) == [0, 2, 4]
    store.save(key(1), tensors(1))
    assert found(store, range(5)) == [0, 1, 2, 4]


@pytest.mark.parametrize("damage", [Path.unlink, empty, zeros, cut, fifo])
def test_what_a_damaged_shard_lacks_is_not_found(damage: Callable[[Path], object], tmp_path: Path) -> None:
    fill(tmp_path, range(10))
    (path,) = tmp_path.glob("*.shard")
    damage(path)
    left = found(ShardStore(tmp_path), range(10))
    assert left == list(range(len(left)))
    assert 0 < len(left) < 10 if damage is cut else not left
    (tmp_path / INDEX).unlink()
    assert found(ShardStore(tmp_path), range(10)) == left


def test_a_full_disk_is_named_and_half_a_record_harms_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = fill(tmp_path, range(2))

    class FullDisk(shards.FileIO):
        def write(self, data: bytes) -> int:  # type: ignore[override]
            return super().write(data[:100])

    with monkeypatch.context() as patch:
        patch.setattr(shards, "FileIO", FullDisk)
        store.shard = None
        with pytest.raises(OSError, match=r"could not write .*\.shard: no space left on device"):
            store.save(key(2), tensors(2))
    store.save(key(3), tensors(3))
    assert found(store, range(4)) == [0, 1, 3]
    (tmp_path / INDEX).unlink()
    assert found(ShardStore(tmp_path), range(4)) == [0, 1, 3]


# --- the latents of a run


def test_cached_and_uncached_training_are_the_same(
    finished: dict[str, TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The finished run encoded every clip itself; with its latents no clip is read."""
    recipe = elsewhere(finished["dit"], tmp_path / "run")
    shutil.copytree(finished["dit"].run.dir / "latents", recipe.run.dir / "latents")

    def refuse(*_: object) -> None:
        raise AssertionError("a clip was read")

    monkeypatch.setattr(VideoFolder, "read", refuse)
    torch.manual_seed(11)
    assert fit(recipe)
    assert_same_state(recipe.run.dir, finished["dit"].run.dir, 8)


def test_more_latents_than_are_allowed_are_refused_before_any_is_made(
    finished: dict[str, TrainConfig], tmp_path: Path
) -> None:
    recipe = elsewhere(finished["dit"], tmp_path / "run")
    stage = make_stage(recipe)
    made = [stage.load_clips([index]).latents[0] for index in range(10)]  # type: ignore[union-attr]
    assert stage.cache_bytes == sum(latent.nbytes for latent in made)
    enough, less = (replace(recipe, data=replace(recipe.data, cache_gb=gb)) for gb in (1e-4, 1e-6))
    assert "MB of latents on disk" in format_plan(plan_folder(enough), enough)
    make_stage(enough)
    for refused in (make_stage, plan_folder):
        with pytest.raises(ValueError, match=r"the latents of 10 clips take about .* GB, and data.cache_gb is 1e-06; "):
            refused(less)
