"""Train for a given time, as on a card that is rented by the minute: how many steps that is, the run finds out itself.

    python -m tests.bench.timed RECIPE.toml --minutes 9 --run.dir DIR [flags of train.py]  ->  DIR, rate fallen to zero

A first part is trained at a constant learning rate; its speed says how many steps the second has, over which the rate
falls. Both are train.py, the second resuming the first, and run.minutes stops them where time is short all the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

FOREVER = 10_000_000  # steps: the rate has not begun to fall
LAST = 10  # lines of the log whose speed counts: the first ones draw and encode every clip
SPARE = 0.96  # of the steps that the speed would allow


class Part(NamedTuple):
    """What the second part is asked for."""

    steps: int  # of both parts
    decay_share: float


def second_part(log: Path, seconds: float) -> Part:
    """So many steps more as the speed at the end of a log allows in a time."""
    lines = map(json.loads, log.read_text(encoding="utf-8").splitlines())
    found = [(line["step"], line["steps_per_second"]) for line in lines if "steps_per_second" in line]
    if not found:
        raise ValueError(f"{log} has no speed yet; give the first part more of the time with --first")
    more = max(1, int(SPARE * seconds * statistics.median(speed for _, speed in found[-LAST:])))
    steps = found[-1][0] + more
    return Part(steps, more / steps)


def main() -> None:
    """Both parts; what starting and saving take of the second's time is what they took of the first's."""
    parser = argparse.ArgumentParser(prog="timed", description=str(__doc__).split("\n")[0])
    parser.add_argument("recipe")
    parser.add_argument("--minutes", type=float, required=True, help="of both parts, starting and saving included")
    parser.add_argument("--first", type=float, default=0.4, help="share of the time that the first part trains")
    parser.add_argument("--run.dir", dest="run_dir", type=Path, required=True)
    args, more = parser.parse_known_args()
    words = [sys.executable, "train.py", args.recipe, "--run.dir", str(args.run_dir), *more]
    began, whole, first = time.monotonic(), 60 * args.minutes, 60 * args.minutes * args.first
    subprocess.run([*words, "--run.steps", str(FOREVER), "--run.minutes", str(first / 60)], check=True)
    spent = time.monotonic() - began
    seconds = whole - spent - (spent - first)
    part = second_part(args.run_dir / "log.jsonl", seconds)
    print(f"{part.steps:,} steps in all, the rate falls over the last {part.decay_share:.0%}", flush=True)
    last = ["--run.steps", str(part.steps), "--optim.decay-share", f"{part.decay_share:.4f}"]
    subprocess.run([*words, *last, "--run.minutes", str(seconds / 60)], check=True)


if __name__ == "__main__":
    main()
