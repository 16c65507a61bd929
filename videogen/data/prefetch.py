"""Run work in other processes ahead of its use, in order: clips are read while the network trains on earlier ones.

    work, keys  ->  work(key) for one key after the other

Results may hold NumPy arrays anywhere. All arrays of a result travel in one block of shared memory: a tensor for each
would take a file handle each, and a pack has hundreds.
"""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

Key = TypeVar("Key")
Result = TypeVar("Result")
MAX_WORKERS = 16
ALIGNMENT = 64  # bytes; every array begins at a multiple


class Parcel(NamedTuple):
    """A pickled result whose arrays lie outside the pickle, end to end in one tensor."""

    pickled: bytes
    arrays: Tensor  # (bytes,) uint8
    starts: list[int]
    sizes: list[int]


def to_parcel(result: object) -> Parcel:
    """Pickle a result with its arrays out of band (PEP 574)."""
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(result, protocol=5, buffer_callback=buffers.append)
    sizes = [buffer.raw().nbytes for buffer in buffers]
    *starts, end = accumulate((-(-size // ALIGNMENT) * ALIGNMENT for size in sizes), initial=0)
    arrays = torch.empty(end, dtype=torch.uint8)
    block = arrays.numpy()
    for start, size, buffer in zip(starts, sizes, buffers, strict=True):
        block[start : start + size] = np.frombuffer(buffer.raw(), np.uint8)
    return Parcel(pickled, arrays, starts, sizes)


def from_parcel(parcel: Parcel) -> object:
    """Restore the result; its arrays are views of the parcel's memory."""
    block, spans = parcel.arrays.numpy(), zip(parcel.starts, parcel.sizes, strict=True)
    return pickle.loads(parcel.pickled, buffers=[block[start : start + size].data for start, size in spans])


@dataclass
class WorkDataset(Generic[Key, Result], torch.utils.data.Dataset[Parcel]):
    """A dataset whose item at a key is the parcel of work(key)."""

    work: Callable[[Key], Result]

    def __getitem__(self, key: Key) -> Parcel:  # pyright: ignore[reportIncompatibleMethodOverride]
        return to_parcel(self.work(key))


def init_worker(worker: int) -> None:
    """Let a worker ignore Ctrl-C, which the training process handles by saving first, and end by that one's SIGTERM.

    It leaves the process group: timeout, or a shell, sends SIGTERM to the whole group of the training process.
    """
    if hasattr(os, "setpgrp"):  # Windows has none.
        os.setpgrp()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def identity(parcel: Parcel) -> Parcel:
    """Return the parcel: a collate function that leaves results apart, and that spawned workers can unpickle."""
    return parcel


def prefetch(work: Callable[[Key], Result], keys: Iterable[Key], num_workers: int) -> Iterator[Result]:
    """Yield work(key) in the order of the keys; each worker is two results ahead, without workers each is lazy."""
    if not num_workers:
        yield from map(work, keys)
        return
    parcels = torch.utils.data.DataLoader(
        WorkDataset(work),
        batch_size=None,
        sampler=keys,
        num_workers=num_workers,
        collate_fn=identity,  # pyright: ignore[reportArgumentType]
        worker_init_fn=init_worker,
        generator=torch.Generator(),  # The default draws a seed from the global generator at every epoch.
    )
    for parcel in parcels:
        yield from_parcel(parcel)  # type: ignore[misc]


def count_workers(requested: int | None, device: torch.device) -> int:
    """Return the requested number of workers, by default one a core for a GPU and none for a CPU, whose cores train."""
    if requested is not None:
        return requested
    if device.type == "cpu":
        return 0
    cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(cores - 1, MAX_WORKERS))
