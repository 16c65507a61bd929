"""Clips judged side by side, a core each.

[Clip]  ->  [Judged], in the same order
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from itertools import islice
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import NamedTuple

import numpy as np

from videogen.toybox.judge.quality import measure_quality
from videogen.toybox.judge.read_clip import read
from videogen.toybox.judge.scores import Case, Judged
from videogen.toybox.judge.verdict import judge

CORES = os.cpu_count() or 1
FEW = 16  # clips that are judged, a second each, before other processes are ready


class Clip(NamedTuple):
    """A clip to be judged; frames (t, h, w, 3) uint8."""

    case: Case
    seed: int
    frames: np.ndarray


def look(clip: Clip) -> Judged:
    """Judge one clip."""
    found = read(clip.frames)
    holds = judge(found, clip.case.clauses)
    return Judged(clip.case, clip.seed, found, holds, measure_quality(clip.frames, found, clip.case.clauses))


def crew(num_clips: int) -> Executor:
    """Who judges so many clips: a process a core, or where they are few a thread of this one."""
    if CORES == 1 or num_clips <= FEW:
        return ThreadPoolExecutor(1)
    # Spawned, for this process may have threads of torch's.
    return ProcessPoolExecutor(CORES, mp_context=get_context("spawn"), initializer=begin)


def begin() -> None:
    """In each process of a crew: Ctrl-C is for the one that started it to answer, and without that one it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """Wait until the process that started this one is gone, which a signal to it alone may bring about."""
    if (parent := parent_process()) is not None:
        parent.join()
        os._exit(1)


def look_each(clips: Iterable[Clip], num: int) -> Iterator[tuple[Judged, Clip]]:
    """Judge clips as they come, of which there are num: while some are looked at, the next are not yet made.

    To make a clip takes all cores as well, and its threads would wait for those that judge.
    """
    source = iter(clips)
    with crew(num) as pool:
        while some := list(islice(source, 2 * CORES)):
            yield from zip(pool.map(look, some), some, strict=True)
