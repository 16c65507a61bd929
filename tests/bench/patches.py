"""Compare schedules of patch sizes: speed against prompt following, and against the clip of one size alone.

    videogen bench patches [--model FOLDER] [--schedules 1x4x4:0.3,1x2x2 ...]  ->  assets/bench/patches.json, .png

The one size is that in which clips of the checkpoint's default settings are finished, called the base here. Every
schedule gets the same captions and seeds. For each pack of clips the schedules take turns, and a schedule's speed is
the median over the packs of the base's seconds over its own.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

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
from videogen.config.sample import MINI
from videogen.models.hub import checkpoint_id, find_checkpoint
from videogen.packing.patch_schedule import last_patch, mean_token_share, patch_name
from videogen.sampling.pipeline import VideoPipeline
from videogen.sweep.plots import ACCENT, PAPER, QUIET, STYLE, new_figure

SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.75)
MAX_LOSS = 0.01
RULE = "the fastest schedule that loses no more than 1 point of the all-clauses score to base patches alone"


class Row(NamedTuple):
    """The speed and the quality of a schedule."""

    schedule: str
    tokens: float  # of a step, on average, against those of base patches
    seconds: float  # of a clip
    speed: float  # times as fast as base patches alone
    psnr_db: float
    all_clauses: float
    scores: Scores


@dataclass
class ScheduleClips:
    """A schedule and its clips; the first schedule of a list is the base patch alone."""

    schedule: str
    clips: list[BenchClip] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # of a clip, a value a pack


def psnr(clip: Tensor, reference: Tensor) -> float:
    """Compute the decibels between two clips (t, h, w, 3) uint8; 99 where they are equal."""
    error = (clip.float() - reference.float()).square().mean().clamp(min=255**2 / 10**9.9)
    return float(10 * torch.log10(255**2 / error))


def sample_schedules(
    pipeline: VideoPipeline, schedules: Sequence[str], *, num_clips: int, num_seeds: int
) -> list[ScheduleClips]:
    """Sample the clips of every schedule, pack by pack, in alternating order."""
    entries = [ScheduleClips(schedule) for schedule in schedules]
    cases = draw_cases(pipeline.defaults, num_clips)
    for turn, jobs in enumerate(group_into_packs(pipeline, cases, num_seeds, pipeline.defaults)):
        for entry in entries if turn % 2 else reversed(entries):
            clips, seconds = sample_pack(pipeline, jobs, replace(pipeline.defaults, patch=entry.schedule))
            entry.clips += clips
            entry.seconds.append(seconds)
    return entries


def make_rows(entries: Sequence[ScheduleClips], pipeline: VideoPipeline) -> list[Row]:
    """Compute the speed and the quality of each schedule."""
    base, rows = entries[0], []
    for entry in entries:
        scores = tally_scores(judge_clips(entry.clips))
        psnr_values = [psnr(a.frames, b.frames) for a, b in zip(entry.clips, base.clips, strict=True)]
        speed = statistics.median(a / b for a, b in zip(base.seconds, entry.seconds, strict=True))
        settings = replace(pipeline.defaults, patch=entry.schedule)
        final_patch = last_patch(pipeline.defaults, pipeline.transformer.patches)
        tokens, seconds = mean_token_share(settings, final_patch), statistics.median(entry.seconds)
        numbers = round(tokens, 3), round(seconds, 3), round(speed, 3), round(statistics.fmean(psnr_values), 2)
        rows.append(Row(entry.schedule, *numbers, scores["all"]["share"], scores))
    return rows


def pareto_front(rows: Sequence[Row], quality: str) -> list[str]:
    """List the schedules that no other one beats in both speed and a quality, from slow to fast."""
    best, front = -1.0, []
    for row in sorted(rows, key=lambda row: (-row.speed, -getattr(row, quality))):
        if getattr(row, quality) > best:
            best = getattr(row, quality)
            front.append(row.schedule)
    return front[::-1]


def choose_schedule(rows: Sequence[Row]) -> str:
    """Choose the default schedule by RULE; the base always qualifies."""
    qualified = [row for row in rows if row.all_clauses >= rows[0].all_clauses - MAX_LOSS - 1e-9]
    return max(qualified, key=lambda row: row.speed).schedule


def plot(rows: Sequence[Row], default: str, path: Path) -> None:
    """Plot all-clauses score and PSNR over speed, side by side, with the checkpoint's default large."""
    from matplotlib import rc_context

    with rc_context(STYLE):
        figure, axes = new_figure(9.6, 4.2, columns=2)
        for ax, quality, name in zip(axes, ("all_clauses", "psnr_db"), ("all clauses right", "PSNR, dB"), strict=True):
            shown = [row for row in rows if quality != "psnr_db" or row is not rows[0]]  # the base is its own reference
            best = pareto_front(shown, quality)
            line = sorted((row.speed, getattr(row, quality)) for row in shown if row.schedule in best)
            ax.plot(*zip(*line, strict=True), color=ACCENT, linewidth=1.2, zorder=1)
            for row in shown:
                colour = ACCENT if row.schedule in best else QUIET
                size = 10 if row.schedule == default else 6
                place = row.speed, getattr(row, quality)
                ax.plot(*place, "o", color=colour, markersize=size, markeredgecolor=PAPER)
                ax.annotate(row.schedule, place, fontsize=7, xytext=(4, 4), textcoords="offset points")
            ax.set_xlabel("times as fast as base patches alone")
            ax.set_ylabel(name)
        figure.savefig(path, dpi=120)


def measure(
    pipeline: VideoPipeline,
    schedules: Sequence[str],
    *,
    num_clips: int,
    num_seeds: int,
    shares: Sequence[float] = SHARES,
) -> list[Row]:
    """Measure the base patch alone, and every schedule: a row each."""
    patch_sizes = pipeline.transformer.patches
    base = last_patch(pipeline.defaults, patch_sizes)
    coarser = [patch for patch in patch_sizes if math.prod(patch) > math.prod(base)]
    if not coarser:
        raise ValueError(f"this model has no patches coarser than {patch_name(base)}; train it with dit.patches first")
    default = [f"{patch_name(patch)}:{share},{patch_name(base)}" for patch in coarser for share in shares]
    listed = list(dict.fromkeys([patch_name(base), *(schedules or default)]))
    return make_rows(sample_schedules(pipeline, listed, num_clips=num_clips, num_seeds=num_seeds), pipeline)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure everything and write assets/bench/patches.json and .png."""
    parser = make_parser("patches", __doc__)
    parser.add_argument("--model", type=Path, default=MINI, help="checkpoint folder")
    parser.add_argument("--schedules", nargs="*", default=[], help="such as 1x4x4:0.3,1x2x2; default --shares of each")
    parser.add_argument("--shares", type=float, nargs="*", default=SHARES, help="of the steps in a coarser patch")
    parser.add_argument("--clips", type=int, default=128, help="captions")
    parser.add_argument("--seeds", type=int, default=2, help="clips a caption")
    args = parse_flags(parser, argv, {"clips": 1, "seeds": 1, "shares": SHARES[:1]})
    model = find_checkpoint(args.model)
    pipeline = VideoPipeline.load(model)
    rows = measure(pipeline, args.schedules, num_clips=args.clips, num_seeds=args.seeds, shares=args.shares)
    choice = choose_schedule(rows)
    for row in rows:
        print(f"{row.schedule:24} {row.speed:5.2f}x  {row.all_clauses:6.1%}  {row.psnr_db:5.1f} dB")
    print(f"{RULE}: {choice}")
    summary = {"rule": RULE, "chosen": choice, "rows": [row._asdict() for row in rows]}
    fronts = {quality: pareto_front(rows, quality) for quality in ("all_clauses", "psnr_db")}
    write_result(args.out, {"checkpoint": checkpoint_id(model), **summary, "undominated": fronts})
    if args.out is not None:
        plot(rows, pipeline.defaults.patch, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
