"""Judge clips of a checkpoint by their captions: what bench framing, halfway, mini, patches and sizes share.

VideoPipeline, SampleConfig, captions  ->  [BenchClip]  ->  [JudgedClip]  ->  Scores, a result file
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple, TypedDict, cast

import torch
from torch import Tensor

from tests.bench.machine import write_json
from videogen.cli.judge import FIRST_SEED, case_of, count_as_json
from videogen.config.sample import SampleConfig, resolve_frames
from videogen.sampling.pipeline import ClipRequest, VideoPipeline
from videogen.toybox import draw_scene
from videogen.toybox.judge.scores import Case, JudgedClip, tally
from videogen.toybox.judge.workers import ClipToJudge, judge_clip, worker_pool

TOKENS_PER_PACK = 1280
FIRST_TRIAL = FIRST_SEED + 600_000_000
"""The first scene that settings are chosen on; bench mini, which measures their worth, never sees these scenes."""


class Score(TypedDict):
    """The clips that are right, as a number and as a share with its 95% interval."""

    right: int
    clips: int
    effective_clips: float
    share: float
    interval: tuple[float, float]


Scores = dict[str, Score]


class BenchClip(NamedTuple):
    """A clip to judge, with its caption and its seed."""

    case: Case
    seed: int
    frames: Tensor  # (t, h, w, 3) uint8


def draw_cases(config: SampleConfig, num: int, first: int = FIRST_TRIAL) -> list[Case]:
    """Draw captions of scenes of the settings' size and length; none of them is drawn for training."""
    size, frames = (config.width, config.height), resolve_frames(config, 4)
    return [case_of(draw_scene(seed, sizes=(size,), lengths=(frames,))) for seed in range(first, first + num)]


def clips_per_pack(pipeline: VideoPipeline, config: SampleConfig) -> int:
    """Count the clips that fit one pack."""
    _, t, h, w = pipeline.latent_shape(config)
    return max(1, TOKENS_PER_PACK * math.prod(pipeline.transformer.base_patch) // (t * h * w))


def group_into_packs(
    pipeline: VideoPipeline, cases: Sequence[Case], num_seeds: int, config: SampleConfig
) -> list[list[tuple[Case, int]]]:
    """Group captions, each with its seeds, into packs."""
    num_clips = clips_per_pack(pipeline, config)
    jobs = [(case, seed) for seed, case in enumerate(case for case in cases for _ in range(num_seeds))]
    return [jobs[i : i + num_clips] for i in range(0, len(jobs), num_clips)]


def sample_pack(
    pipeline: VideoPipeline, jobs: Sequence[tuple[Case, int]], config: SampleConfig
) -> tuple[list[BenchClip], float]:
    """Sample the clips of one pack, and measure the seconds that a clip took to denoise."""
    began = time.perf_counter()
    latents = pipeline.sample([ClipRequest(case.prompt, seed) for case, seed in jobs], config)
    seconds = (time.perf_counter() - began) / len(jobs)
    clips = [torch.cat(list(pipeline.frames(latent))) for latent in latents]
    return [BenchClip(case, seed, clip) for (case, seed), clip in zip(jobs, clips, strict=True)], seconds


def judge_clips(clips: Sequence[BenchClip]) -> list[JudgedClip]:
    """Judge which clauses of its caption each clip fulfils."""
    with worker_pool(len(clips)) as judges:
        return list(judges.map(judge_clip, [ClipToJudge(clip.case, clip.seed, clip.frames.numpy()) for clip in clips]))


def tally_scores(judged: Sequence[JudgedClip]) -> Scores:
    """Count for each clause, and for all of them, the clips that are right."""
    return {name: cast("Score", count_as_json(proportion)) for name, proportion in tally(judged).items()}


def write_result(path: Path | None, result: Mapping[str, object]) -> dict[str, object]:
    """Write a measurement with its machine and date, if there is to be a file, and return what that holds."""
    about = {"machine": f"{platform.machine()}, torch {torch.__version__}", "date": date.today().isoformat()}
    write_json(path, {**about, **result})
    return {**about, **result}
