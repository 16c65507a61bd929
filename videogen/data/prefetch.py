"""Work that other processes do ahead of time, in order: clips are read while the network trains on those before.

    work, keys  ->  work(key) for one key after the other

What work gives may hold NumPy arrays anywhere. All of a result's arrays travel in one block of shared memory: a tensor
each would take a file handle each, and a pack has hundreds.
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
MOST_WORKERS = 16
ALIGNED = 64  # bytes: where an array may begin


class Parcel(NamedTuple):
    """A result without its arrays, and their bytes end to end."""

    rest: bytes
    arrays: Tensor  # (bytes,) uint8
    starts: list[int]
    sizes: list[int]


def wrap(result: object) -> Parcel:
    """Take the arrays out of a result (PEP 574)."""
    buffers: list[pickle.PickleBuffer] = []
    rest = pickle.dumps(result, protocol=5, buffer_callback=buffers.append)
    sizes = [buffer.raw().nbytes for buffer in buffers]
    *starts, end = accumulate((-(-size // ALIGNED) * ALIGNED for size in sizes), initial=0)
    arrays = torch.empty(end, dtype=torch.uint8)
    block = arrays.numpy()
    for start, size, buffer in zip(starts, sizes, buffers, strict=True):
        block[start : start + size] = np.frombuffer(buffer.raw(), np.uint8)
    return Parcel(rest, arrays, starts, sizes)


def unwrap(parcel: Parcel) -> object:
    """The result again; its arrays lie in the parcel."""
    block, spans = parcel.arrays.numpy(), zip(parcel.starts, parcel.sizes, strict=True)
    return pickle.loads(parcel.rest, buffers=[block[start : start + size].data for start, size in spans])


@dataclass
class Wrapped(Generic[Key, Result], torch.utils.data.Dataset[Parcel]):
    """The work as a data set: what stands at a key is made when it is asked for."""

    work: Callable[[Key], Result]

    def __getitem__(self, key: Key) -> Parcel:  # pyright: ignore[reportIncompatibleMethodOverride]
        return wrap(self.work(key))


def undisturbed(worker: int) -> None:
    """A worker leaves Ctrl-C to the training process, which saves first, and ends when that tells it to.

    It is a group of its own: timeout, or a shell, sends a SIGTERM to all of the training process's.
    """
    if hasattr(os, "setpgrp"):  # not on Windows
        os.setpgrp()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def as_it_is(parcel: Parcel) -> Parcel:
    """In place of putting results together."""
    return parcel


def ahead(work: Callable[[Key], Result], keys: Iterable[Key], num_workers: int) -> Iterator[Result]:
    """Results in the order of the keys, two of each worker ahead; without workers each is made when it is asked for."""
    if not num_workers:
        yield from map(work, keys)
        return
    parcels = torch.utils.data.DataLoader(
        Wrapped(work),
        batch_size=None,
        sampler=keys,
        num_workers=num_workers,
        collate_fn=as_it_is,  # pyright: ignore[reportArgumentType]
        worker_init_fn=undisturbed,
        generator=torch.Generator(),  # or each epoch would draw from the one that everybody draws from
    )
    for parcel in parcels:
        yield unwrap(parcel)  # type: ignore[misc]


def count_workers(asked: int | None, device: torch.device) -> int:
    """How many read ahead: as asked, or one a core for a GPU and none for a CPU, whose cores train."""
    if asked is not None:
        return asked
    if device.type == "cpu":
        return 0
    cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(cores - 1, MOST_WORKERS))
