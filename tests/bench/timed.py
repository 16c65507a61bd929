"""Train for a given time, as on a rented card: the run itself finds out how many steps that is.

    python -m tests.bench.timed RECIPE.toml --minutes 9 --run.dir DIR [flags of train.py]  ->  DIR, rate fallen to zero

A first part is trained at a constant learning rate; its speed determines the steps of the second, over which the rate
falls. Both are train.py, the second resuming the first, and run.minutes stops them if time runs short all the same.
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

FOREVER = 10_000_000  # steps, among which the rate does not begin to fall
LAST = 10  # lines of the log whose speed counts: at the first ones every clip is still rendered and encoded
SPARE = 0.96  # of the steps that the speed would allow


class Part(NamedTuple):
    """The settings of the second part."""

    steps: int  # of both parts
    decay_share: float


def plan_second_part(log: Path, seconds: float) -> Part:
    """Plan as many more steps as fit the seconds at the speed of a log's last lines."""
    lines = map(json.loads, log.read_text(encoding="utf-8").splitlines())
    speeds = [(line["step"], line["steps_per_second"]) for line in lines if "steps_per_second" in line]
    if not speeds:
        raise ValueError(f"{log} has no speed yet; give the first part more of the time with --first")
    num_more = max(1, int(SPARE * seconds * statistics.median(speed for _, speed in speeds[-LAST:])))
    steps = speeds[-1][0] + num_more
    return Part(steps, num_more / steps)


def main() -> None:
    """Train both parts; the second is assumed to take as long to start and save as the first."""
    parser = argparse.ArgumentParser(prog="timed", description=str(__doc__).split("\n")[0])
    parser.add_argument("recipe")
    parser.add_argument("--minutes", type=float, required=True, help="of both parts, starting and saving included")
    parser.add_argument("--first", type=float, default=0.4, help="share of the time that the first part trains")
    parser.add_argument("--run.dir", dest="run_dir", type=Path, required=True)
    args, train_flags = parser.parse_known_args()
    words = [sys.executable, "train.py", args.recipe, "--run.dir", str(args.run_dir), *train_flags]
    began, total_seconds, first_seconds = time.monotonic(), 60 * args.minutes, 60 * args.minutes * args.first
    subprocess.run([*words, "--run.steps", str(FOREVER), "--run.minutes", str(first_seconds / 60)], check=True)
    elapsed = time.monotonic() - began
    seconds = total_seconds - elapsed - (elapsed - first_seconds)
    part = plan_second_part(args.run_dir / "log.jsonl", seconds)
    print(f"{part.steps:,} steps in all, the rate falls over the last {part.decay_share:.0%}", flush=True)
    decay_words = ["--run.steps", str(part.steps), "--optim.decay-share", f"{part.decay_share:.4f}"]
    subprocess.run([*words, *decay_words, "--run.minutes", str(seconds / 60)], check=True)


if __name__ == "__main__":
    main()
