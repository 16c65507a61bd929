"""Judge clips in parallel, one process for each core.

[ClipToJudge]  ->  [JudgedClip], in the same order
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
from videogen.toybox.judge.scores import Case, JudgedClip
from videogen.toybox.judge.verdict import judge

CORES = os.cpu_count() or 1
MAX_CLIPS_IN_ONE_PROCESS = 16  # which are judged, a second each, before other processes are ready


class ClipToJudge(NamedTuple):
    """A clip with the case it is judged by; frames (t, h, w, 3) uint8."""

    case: Case
    seed: int
    frames: np.ndarray


def judge_clip(clip: ClipToJudge) -> JudgedClip:
    """Detect what one clip shows, judge its clauses and measure its quality."""
    found = read(clip.frames)
    holds = judge(found, clip.case.clauses)
    return JudgedClip(clip.case, clip.seed, found, holds, measure_quality(clip.frames, found, clip.case.clauses))


def worker_pool(num_clips: int) -> Executor:
    """Start one process for each core, or a thread of this process if there are too few clips to wait for them."""
    if CORES == 1 or num_clips <= MAX_CLIPS_IN_ONE_PROCESS:
        return ThreadPoolExecutor(1)
    # Workers are spawned, because a fork copies torch's locks but not the threads that hold them.
    return ProcessPoolExecutor(CORES, mp_context=get_context("spawn"), initializer=start_worker)


def start_worker() -> None:
    """Leave Ctrl-C in this worker process to its parent, and end with the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=exit_with_parent, daemon=True).start()


def exit_with_parent() -> None:
    """Wait for the parent process to end, and exit; a signal that kills the parent alone does not reach its workers."""
    if (parent := parent_process()) is not None:
        parent.join()
        os._exit(1)


def judge_in_parallel(clips: Iterable[ClipToJudge], num: int) -> Iterator[tuple[JudgedClip, ClipToJudge]]:
    """Judge num clips in batches of two for each core; the next batch is not produced while one is judged.

    Sampling a clip uses all cores as well, and its threads would wait for the workers.
    """
    clips = iter(clips)
    with worker_pool(num) as pool:
        while batch := list(islice(clips, 2 * CORES)):
            yield from zip(pool.map(judge_clip, batch), batch, strict=True)
