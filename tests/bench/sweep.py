"""Time a sweep against plain loops that make the same clips: over one warm pipeline, and over sample.py processes.

    videogen bench sweep  ->  assets/bench/sweep.json

The loops write the same MP4s and nothing else; the sweep also measures them and writes its rows. They alternate in one
run; the result is medians, and the ratio of medians. The processes are too slow for the whole sweep: they make a few of
its clips, and the ratio is of their mean seconds to the sweep's.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

import torch

from tests.bench.flags import make_parser, parse_flags
from tests.bench.machine import processor_name, write_json
from videogen.config.parsing import to_mapping
from videogen.data.video_io import write_video
from videogen.sampling.pipeline import VideoPipeline
from videogen.sweep.axes import read_axes
from videogen.sweep.plan import Plan, Run, lock_folder
from videogen.sweep.runner import Worker

ROOT = Path(__file__).parents[2]
PROMPT = "a large red circle moves right on a black background"


class Extent(NamedTuple):
    """What is swept, and how often everything is measured."""

    axes: tuple[str, ...] = ("steps=4,8,16", "guidance=1,3,5", "sampler=euler,dpmpp_2m")
    seeds: int = 2
    rounds: int = 3
    processes: int = 3


SMALL = Extent(("steps=1,2", "guidance=1,3"), seeds=1, rounds=1, processes=1)


def time_call(call: Callable[[], object]) -> float:
    """Measure the wall-clock seconds of a call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def run_warm_loop(pipeline: VideoPipeline, runs: list[Run], out: Path) -> None:
    """Make the clips as a user does without a sweep: one call of the pipeline a clip."""
    for run in runs:
        (frames,) = pipeline([run.prompt], run.config, seeds=[run.seed])
        settings = {"prompt": run.prompt, "seed": run.seed, **to_mapping(run.config)}
        write_video(out / f"{run.key}.mp4", frames, fps=run.config.fps, settings=settings, overwrite=True)


def run_sweep(pipeline: VideoPipeline, plan: Plan, out: Path, *, overwrite: bool = True) -> None:
    """Make the same clips by a sweep, begun anew."""
    with lock_folder(out, plan, overwrite=overwrite):
        Worker(pipeline, plan, out).run(plan.runs())


def time_processes(plan: Plan, runs: list[Run], out: Path) -> list[float]:
    """Measure the seconds of sample.py, once a clip."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    process_seconds = []
    for run in runs:
        words = [run.prompt, *plan.flags(run), "--out", str(out / "clip.mp4"), "--overwrite"]
        command = [sys.executable, str(ROOT / "sample.py"), *words]
        process_seconds.append(
            time_call(lambda c=command: subprocess.run(c, check=True, capture_output=True, env=environment))
        )
    return process_seconds


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write assets/bench/sweep.json."""
    args = parse_flags(make_parser("sweep", __doc__), argv)
    extent = SMALL if args.small else Extent()
    pipeline = VideoPipeline.load(ROOT / "assets" / "mini")
    bases = tuple(Run(PROMPT, seed, pipeline.defaults) for seed in range(extent.seeds))
    plan = Plan(bases=bases, axes=read_axes(extent.axes), defaults=pipeline.defaults)
    runs = plan.runs()
    times: dict[str, list[float]] = {"warm_loop": [], "sweep": []}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        (out / "loop").mkdir()
        run_warm_loop(pipeline, runs[:1], out / "loop")
        for _ in range(extent.rounds):
            times["warm_loop"].append(time_call(lambda: run_warm_loop(pipeline, runs, out / "loop")))
            times["sweep"].append(time_call(lambda: run_sweep(pipeline, plan, out / "sweep")))
            print({name: round(values[-1], 2) for name, values in times.items()}, flush=True)
        some_runs = runs[:: len(runs) // extent.processes][: extent.processes]
        process_seconds = time_processes(plan, some_runs, out)
    loop_seconds, sweep_seconds = (statistics.median(values) for values in times.values())
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    result = {
        "machine": f"{processor_name()}, {torch.get_num_threads()} threads on {cores} cores, torch {torch.__version__}",
        "date": date.today().isoformat(),
        "commit": commit.strip(),
        "axes": list(extent.axes),
        "seeds": extent.seeds,
        "clips": len(runs),
        "rounds": extent.rounds,
        "warm_loop_seconds": round(loop_seconds, 2),
        "sweep_seconds": round(sweep_seconds, 2),
        "over_warm_loop": round(loop_seconds / sweep_seconds, 2),
        "process_seconds_per_clip": round(statistics.mean(process_seconds), 2),
        "sweep_seconds_per_clip": round(sweep_seconds / len(runs), 3),
        "over_processes": round(statistics.mean(process_seconds) / (sweep_seconds / len(runs)), 1),
    }
    print(json.dumps(result, indent=2))
    write_json(args.out, result)


if __name__ == "__main__":
    main()
