"""Schedules of patch sizes: speed against prompt following, and against the clip that one size alone would make.

    videogen bench patches [--model FOLDER] [--schedules 1x4x4:0.3,1x2x2 ...]  ->  assets/bench/patches.json, .png

The one size is that in which clips of the checkpoint's default settings are finished, called the base here. Every
schedule gets the same captions and seeds. For each pack of clips the schedules take turns, and a schedule's speed is
the median over the packs of the base's seconds over its own.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tests.bench.judged import BENCH, Made, Scores, batches, cases_of, judge_clips, make, scores_of, write_result
from videogen.config.sample import MINI
from videogen.models.hub import checkpoint_id, find_checkpoint
from videogen.packing.patch_schedule import last_patch, mean_share, patch_name
from videogen.sampling.pipeline import VideoPipeline
from videogen.sweep.plots import ACCENT, PAPER, QUIET, STYLE, new_figure

SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.75)
MOST_LOST = 0.01
RULE = "the fastest schedule that loses no more than 1 point of the all-clauses score to base patches alone"


class Row(NamedTuple):
    """What a schedule gives and takes."""

    schedule: str
    tokens: float  # of a step, on average, against those of base patches
    seconds: float  # of a clip
    speed: float  # times as fast as base patches alone
    psnr_db: float
    all_clauses: float
    scores: Scores


@dataclass
class Tried:
    """A schedule and its clips; the first one tried is the base patch alone."""

    schedule: str
    made: list[Made] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # of a clip, a value a pack


def psnr(clip: Tensor, reference: Tensor) -> float:
    """Decibels between two clips (t, h, w, 3) uint8; 99 where they are equal."""
    error = (clip.float() - reference.float()).square().mean().clamp(min=255**2 / 10**9.9)
    return float(10 * torch.log10(255**2 / error))


def try_all(pipeline: VideoPipeline, schedules: Sequence[str], *, num_clips: int, num_seeds: int) -> list[Tried]:
    """Make the clips of every schedule, pack by pack, in another order each time."""
    tried = [Tried(schedule) for schedule in schedules]
    cases = cases_of(pipeline.defaults, num_clips)
    for turn, jobs in enumerate(batches(pipeline, cases, num_seeds, pipeline.defaults)):
        for one in tried if turn % 2 else reversed(tried):
            made, seconds = make(pipeline, jobs, replace(pipeline.defaults, patch=one.schedule))
            one.made += made
            one.seconds.append(seconds)
    return tried


def rows_of(tried: Sequence[Tried], pipeline: VideoPipeline) -> list[Row]:
    """What each schedule gives and takes."""
    base, rows = tried[0], []
    for one in tried:
        scores = scores_of(judge_clips(one.made))
        near = [psnr(a.frames, b.frames) for a, b in zip(one.made, base.made, strict=True)]
        faster = statistics.median(a / b for a, b in zip(base.seconds, one.seconds, strict=True))
        settings = replace(pipeline.defaults, patch=one.schedule)
        whole = last_patch(pipeline.defaults, pipeline.transformer.patches)
        tokens, seconds = mean_share(settings, whole), statistics.median(one.seconds)
        numbers = round(tokens, 3), round(seconds, 3), round(faster, 3), round(statistics.fmean(near), 2)
        rows.append(Row(one.schedule, *numbers, scores["all"]["share"], scores))
    return rows


def undominated(rows: Sequence[Row], quality: str) -> list[str]:
    """The schedules that no other one beats in speed and a quality at once, from slow to fast."""
    best, found = -1.0, []
    for row in sorted(rows, key=lambda row: (-row.speed, -getattr(row, quality))):
        if getattr(row, quality) > best:
            best = getattr(row, quality)
            found.append(row.schedule)
    return found[::-1]


def choose(rows: Sequence[Row]) -> str:
    """The default schedule by RULE; the base is always one of those that keep to it."""
    kept = [row for row in rows if row.all_clauses >= rows[0].all_clauses - MOST_LOST - 1e-9]
    return max(kept, key=lambda row: row.speed).schedule


def plot(rows: Sequence[Row], default: str, path: Path) -> None:
    """Both curves beside each other, the checkpoint's default large: all clauses, and PSNR, over speed."""
    from matplotlib import rc_context

    with rc_context(STYLE):
        figure, axes = new_figure(9.6, 4.2, columns=2)
        for ax, quality, name in zip(axes, ("all_clauses", "psnr_db"), ("all clauses right", "PSNR, dB"), strict=True):
            shown = [row for row in rows if quality != "psnr_db" or row is not rows[0]]  # the base is its own reference
            best = undominated(shown, quality)
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


def measure(pipeline: VideoPipeline, schedules: Sequence[str], *, num_clips: int, num_seeds: int) -> list[Row]:
    """A row for the base patch alone, and one for each schedule."""
    known = pipeline.transformer.patches
    base = last_patch(pipeline.defaults, known)
    others = [patch for patch in known if math.prod(patch) > math.prod(base)]
    if not others:
        raise ValueError(f"this model has no patches coarser than {patch_name(base)}; train it with dit.patches first")
    default = [f"{patch_name(patch)}:{share},{patch_name(base)}" for patch in others for share in SHARES]
    listed = list(dict.fromkeys([patch_name(base), *(schedules or default)]))
    return rows_of(try_all(pipeline, listed, num_clips=num_clips, num_seeds=num_seeds), pipeline)


def main() -> None:
    """Measure everything and write assets/bench/patches.json and .png."""
    parser = argparse.ArgumentParser(prog="videogen bench patches", description=str(__doc__).split("\n")[0])
    parser.add_argument("--model", type=Path, default=MINI, help="checkpoint folder")
    parser.add_argument("--schedules", nargs="*", default=[], help="such as 1x4x4:0.3,1x2x2; default several shares")
    parser.add_argument("--clips", type=int, default=128, help="captions")
    parser.add_argument("--seeds", type=int, default=2, help="clips a caption")
    parser.add_argument("--out", type=Path, default=BENCH / "patches.json")
    args = parser.parse_args()
    model = find_checkpoint(args.model)
    pipeline = VideoPipeline.load(model)
    rows = measure(pipeline, args.schedules, num_clips=args.clips, num_seeds=args.seeds)
    chosen = choose(rows)
    for row in rows:
        print(f"{row.schedule:24} {row.speed:5.2f}x  {row.all_clauses:6.1%}  {row.psnr_db:5.1f} dB")
    print(f"{RULE}: {chosen}")
    found = {"rule": RULE, "chosen": chosen, "rows": [row._asdict() for row in rows]}
    fronts = {quality: undominated(rows, quality) for quality in ("all_clauses", "psnr_db")}
    write_result(args.out, {"checkpoint": checkpoint_id(model), **found, "undominated": fronts})
    plot(rows, pipeline.defaults.patch, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
