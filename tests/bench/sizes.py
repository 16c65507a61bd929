"""Measure how well clips that are larger and longer than trained follow their captions, for each position scaling.

    videogen bench sizes [--model FOLDER] [--clips 64] [--seeds 2]  ->  assets/bench/sizes.json

The trained size is that of the checkpoint's defaults. Every setting gets the same captions and seeds. Beside them stand
the world's own clips of the same sizes, which show what the judge itself can see there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch

from tests.bench.flags import make_parser, parse_flags
from tests.bench.judged import (
    BenchClip,
    Scores,
    draw_cases,
    group_into_packs,
    judge_clips,
    sample_pack,
    tally_scores,
    write_result,
)
from videogen.cli.judge import render_case
from videogen.config.sample import MINI, POSITION_SCALINGS, SampleConfig, resolve_frames
from videogen.models.hub import checkpoint_id, find_checkpoint
from videogen.sampling.pipeline import VideoPipeline

SCALES = ((1.0, 1.0), (1.5, 1.0), (2.0, 1.0), (1.0, 1.5), (1.0, 2.0), (2.0, 2.0))  # of the trained area and duration
SMALL_SCALES = ((1.0, 1.0), (1.0, 1.5))


class Row(NamedTuple):
    """The scores of the clips of one scale and position scaling."""

    area: float
    duration: float
    size: str
    frames: int
    position_scaling: str
    scores: Scores

    def __str__(self) -> str:
        share, (low, high) = self.scores["all"]["share"], self.scores["all"]["interval"]
        where = f"area {self.area}x, duration {self.duration}x ({self.size}, {self.frames} frames)"
        return f"{where}, {self.position_scaling}: all clauses {share:.1%} ({low:.1%} to {high:.1%})"


def scale_size(config: SampleConfig, area: float, duration: float, *, stride: int, time_stride: int) -> SampleConfig:
    """Scale the settings to the possible size nearest in area and shape, and to the nearest possible length."""
    sides = range(stride, 3 * max(config.width, config.height), stride)
    shape, target_area = config.width / config.height, area * config.width * config.height

    def distance(width: int, height: int) -> float:
        return abs(math.log(width * height / target_area)) + abs(math.log(width / height / shape))

    width, height = min(product(sides, sides), key=lambda size: distance(*size))
    frames = 1 + time_stride * round((duration * resolve_frames(config, time_stride) - 1) / time_stride)
    return replace(config, size=f"{width}x{height}", frames=frames, seconds=None)


def list_scalings(area: float, duration: float) -> list[str]:
    """List the position scalings that matter at a scale: none at the trained size, RIFLEx at longer clips alone."""
    if area == duration == 1:
        return ["none"]
    return [kind for kind in POSITION_SCALINGS if kind != "riflex" or duration > 1]


def measure(
    pipeline: VideoPipeline, *, num_clips: int, num_seeds: int, scales: Sequence[tuple[float, float]] = SCALES
) -> list[Row]:
    """Measure every position scaling at each scale, and the world's own clips: a row each."""
    rows: list[Row] = []
    stride = pipeline.vae.space_stride * max(pipeline.transformer.base_patch[1:])
    for area, duration in scales:
        config = scale_size(pipeline.defaults, area, duration, stride=stride, time_stride=pipeline.vae.time_stride)
        cases = draw_cases(config, num_clips)
        about = area, duration, config.size, config.frames
        world_clips = judge_clips([BenchClip(case, 0, torch.from_numpy(render_case(case).copy())) for case in cases])
        rows.append(Row(*about, "the world's own", tally_scores(world_clips)))
        for kind in list_scalings(area, duration):
            settings = replace(config, position_scaling=kind)
            packs = [
                sample_pack(pipeline, jobs, settings)[0]
                for jobs in group_into_packs(pipeline, cases, num_seeds, settings)
            ]
            judged = judge_clips([clip for pack in packs for clip in pack])
            rows.append(Row(*about, kind, tally_scores(judged)))
            print(rows[-1], flush=True)
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Measure everything and write assets/bench/sizes.json."""
    parser = make_parser("sizes", __doc__)
    parser.add_argument("--model", type=Path, default=MINI, help="checkpoint folder")
    parser.add_argument("--clips", type=int, default=64, help="captions at each size")
    parser.add_argument("--seeds", type=int, default=2, help="clips a caption")
    args = parse_flags(parser, argv, {"clips": 1, "seeds": 1})
    model = find_checkpoint(args.model)
    pipeline = VideoPipeline.load(model)
    pipeline.set_progress_bar_config(disable=True)
    scales = SMALL_SCALES if args.small else SCALES
    rows = measure(pipeline, num_clips=args.clips, num_seeds=args.seeds, scales=scales)
    write_result(args.out, {"checkpoint": checkpoint_id(model), "rows": [row._asdict() for row in rows]})


if __name__ == "__main__":
    main()
