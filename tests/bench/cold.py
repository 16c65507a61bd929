"""Measure the command in a new process, beside what it cannot do without: `import torch`, and the clip itself.

    videogen bench cold [--rounds 7]  ->  assets/bench/cold.json

The three are measured in turns, in seconds of the CPU as well, which other programs on the machine change less. Compare
machines by the ratio of the command to `import torch` and the clip, which is 1 for a program that starts at once.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.bench.flags import ROOT, make_parser, parse_flags
from tests.bench.machine import Rows, publish

PROMPT = "a red circle moves right"
IN_THIS_PROCESS = """
import sys, time
from videogen.cli.known_material import Material
from videogen.cli.provenance import provenance
from videogen.cli.sample import make_clips, load, list_rows, parse_args, plan_jobs
args, info = parse_args(sys.argv[1:])
jobs, pipeline = plan_jobs(list_rows(args, info), args, info), load(args, info)
list(make_clips(pipeline, jobs, args, info, provenance(args), Material()))
wall, cpu = time.perf_counter(), time.process_time()
list(make_clips(pipeline, jobs, args, info, provenance(args), Material()))
print(time.perf_counter() - wall, time.process_time() - cpu)
"""


class Seconds(NamedTuple):
    """Seconds of the clock and of the CPU."""

    wall: float
    cpu: float


def time_process(words: Sequence[str]) -> Seconds:
    """Measure a process from start to end, its children included."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(words, check=True, capture_output=True, cwd=ROOT)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Seconds(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def time_warm_clip(words: Sequence[str]) -> Seconds:
    """Measure the second of two clips of a process that has loaded everything: text, denoising, decoding, encoding."""
    command = [sys.executable, "-c", IN_THIS_PROCESS, *words]
    process = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    return Seconds(*map(float, process.stdout.split()[-2:]))


def measure(words: Sequence[str] = (), rounds: int = 7) -> Rows:
    """Measure the command with further flags, in turns with its parts; medians, and the ratio of each round's."""
    seconds: dict[str, list[Seconds]] = {}
    with tempfile.TemporaryDirectory() as out:
        sample = [PROMPT, *words, "--out", str(Path(out) / "clip.mp4"), "--overwrite"]
        for _ in range(rounds):
            for name, second in (
                ("import torch", time_process([sys.executable, "-c", "import torch"])),
                ("a clip, warm", time_warm_clip(sample)),
                ("sample.py", time_process([sys.executable, "sample.py", *sample])),
                ("sample.py --dry-run", time_process([sys.executable, "sample.py", *sample, "--dry-run"])),
                ("sample.py --help", time_process([sys.executable, "sample.py", "--help"])),
            ):
                seconds.setdefault(name, []).append(second)
    rows = {
        name: {key: round(statistics.median(getattr(s, key) for s in values), 3) for key in Seconds._fields}
        for name, values in seconds.items()
    }
    parts = list(zip(seconds["sample.py"], seconds["import torch"], seconds["a clip, warm"], strict=True))
    for name, combine in (
        ("sample.py beyond both", lambda whole, torch, clip: whole - torch - clip),
        ("sample.py over both", lambda whole, torch, clip: whole / (torch + clip)),
    ):
        rows[name] = {
            key: round(statistics.median(combine(*(getattr(s, key) for s in part)) for part in parts), 3)
            for key in Seconds._fields
        }
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write assets/bench/cold.json."""
    parser = make_parser("cold", __doc__)
    parser.add_argument("--rounds", type=int, default=7)
    args = parse_flags(parser, argv, {"rounds": 1})
    os.environ["HF_HUB_OFFLINE"] = "1"
    publish(args.out, {"seconds": measure(rounds=args.rounds)})


if __name__ == "__main__":
    main()
