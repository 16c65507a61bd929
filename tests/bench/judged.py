"""Clips of a checkpoint held against their captions: what bench sizes, patches and framing have in common.

VideoPipeline, SampleConfig, captions  ->  [Judged], and what it took
"""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple, TypedDict, cast

import torch
from torch import Tensor

from videogen.cli.judge import FIRST_SEED, case_of, count_as_json
from videogen.config.sample import SampleConfig, resolve_frames
from videogen.sampling.pipeline import ClipRequest, VideoPipeline
from videogen.toybox import draw_scene
from videogen.toybox.judge.scores import Case, Judged, tally
from videogen.toybox.judge.workers import Clip, crew, look

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "assets" / "bench"
TOKENS_AT_ONCE = 1280
FIRST_TRIAL = FIRST_SEED + 600_000_000
"""The first scene that settings are chosen on; bench mini, which says what they are worth, never sees those."""


class Score(TypedDict):
    """How many clips are right."""

    right: int
    clips: int
    effective_clips: float
    share: float
    interval: tuple[float, float]


Scores = dict[str, Score]


class Made(NamedTuple):
    """A clip of a checkpoint, for a caption and a seed."""

    case: Case
    seed: int
    frames: Tensor  # (t, h, w, 3) uint8


def cases_of(config: SampleConfig, num: int, first: int = FIRST_TRIAL) -> list[Case]:
    """Captions of scenes of the size and length that the settings ask for; none of them is drawn for training."""
    size, frames = (config.width, config.height), resolve_frames(config, 4)
    return [case_of(draw_scene(seed, sizes=(size,), lengths=(frames,))) for seed in range(first, first + num)]


def pack_size(pipeline: VideoPipeline, config: SampleConfig) -> int:
    """How many clips fit one pack."""
    _, t, h, w = pipeline.latent_shape(config)
    return max(1, TOKENS_AT_ONCE * math.prod(pipeline.transformer.base_patch) // (t * h * w))


def batches(
    pipeline: VideoPipeline, cases: Sequence[Case], num_seeds: int, config: SampleConfig
) -> list[list[tuple[Case, int]]]:
    """Captions and seeds in groups that fit one pack."""
    size = pack_size(pipeline, config)
    jobs = [(case, seed) for seed, case in enumerate(case for case in cases for _ in range(num_seeds))]
    return [jobs[i : i + size] for i in range(0, len(jobs), size)]


def make(pipeline: VideoPipeline, jobs: Sequence[tuple[Case, int]], config: SampleConfig) -> tuple[list[Made], float]:
    """The clips of one pack, and the seconds that a clip took to denoise."""
    began = time.perf_counter()
    latents = pipeline.sample([ClipRequest(case.prompt, seed) for case, seed in jobs], config)
    seconds = (time.perf_counter() - began) / len(jobs)
    clips = [torch.cat(list(pipeline.frames(latent))) for latent in latents]
    return [Made(case, seed, clip) for (case, seed), clip in zip(jobs, clips, strict=True)], seconds


def judge_clips(made: Sequence[Made]) -> list[Judged]:
    """What is seen in the clips, and which clauses hold."""
    with crew(len(made)) as judges:
        return list(judges.map(look, [Clip(one.case, one.seed, one.frames.numpy()) for one in made]))


def scores_of(judged: Sequence[Judged]) -> Scores:
    """Each clause, and all of them: how many clips are right, with the 95% interval."""
    return {name: cast("Score", count_as_json(one)) for name, one in tally(judged).items()}


def write_result(path: Path, result: Mapping[str, object]) -> None:
    """A measurement with its machine and date."""
    about = {"machine": f"{platform.machine()}, torch {torch.__version__}", "date": date.today().isoformat()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**about, **result}, indent=2) + "\n", encoding="utf-8")
