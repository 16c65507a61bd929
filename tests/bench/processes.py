"""Measure the tokens a second of two processes with one thread each against those of one process with one thread.

    videogen bench processes  ->  assets/bench/processes.json

Each measurement is a training of its own, launched as the guide says, on a copy of the latents of the first; the ways
take turns. The network is of the default checkpoint's width and depth, and a pack has 28 clips and 19 images.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.bench.flags import make_parser, parse_flags  # noqa: E402
from tests.bench.machine import publish  # noqa: E402

MINI = ROOT / "assets" / "mini"
SHARDS = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0", "--config_file"]
WAYS = {
    "one process": [sys.executable],
    "two processes": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--"],
    "two processes, weights in shards": [*SHARDS, str(ROOT / "configs" / "fsdp.yaml"), "--num_processes", "2"],
}
RECIPE = (
    f"--dit.vae {MINI} --dit.text {MINI} --data.toybox 96 --data.val-clips 0 --optim.optimizer adamw "
    "--run.mixed-precision no --run.val-every 1000000 --run.save-every 1000000 --run.sample-every 0"
)
ROWS = 10  # steps of a row of the log


def train(run: Path, steps: int) -> None:
    """Train in a run folder, as one of its processes; the first prints the median tokens a second of the later rows."""
    from videogen.cli.train import train as train_command

    recipe = [str(ROOT / "configs" / "toybox-dit.toml"), *RECIPE.split(), "--run.sample-prompts"]
    if status := train_command([*recipe, "--run.dir", str(run), "--run.steps", str(steps)]):
        raise SystemExit(status)
    if os.environ.get("RANK", "0") == "0":
        rows = map(json.loads, (run / "log.jsonl").read_text(encoding="utf-8").splitlines())
        print(statistics.median([row["tokens_per_second"] for row in rows if "tokens_per_second" in row][1:]))


def measure(way: str, run: Path, steps: int, latents: Path) -> float:
    """Train in processes of their own, in a new run folder with the latents of another, and return the speed."""
    if latents.is_dir():
        shutil.copytree(latents, run / "latents")
    command = [*WAYS[way], str(Path(__file__).resolve()), "--train", str(run), "--steps", str(steps)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return float(done.stdout.splitlines()[-1].split()[0])


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write assets/bench/processes.json."""
    parser = make_parser("processes", __doc__)
    parser.add_argument("--steps", type=int, default=40, help=f"of each training, whose first {ROWS} do not count")
    parser.add_argument("--turns", type=int, default=3, help="trainings of each way")
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)  # what each of the processes does
    args = parse_flags(parser, argv, {"steps": 2 * ROWS, "turns": 1})
    if args.steps < 2 * ROWS:
        parser.error(f"--steps must be at least {2 * ROWS}, got {args.steps}")
    if args.train is not None:
        train(args.train, args.steps)
        return
    speeds: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        runs = [Path(folder) / str(number) for number in range(args.turns * len(WAYS))]
        for number, run in enumerate(runs):
            way = list(WAYS)[number % len(WAYS)]
            speeds[way].append(measure(way, run, args.steps, runs[0] / "latents"))
            print(f"{way}: {speeds[way][-1]:,.0f} tokens/s", file=sys.stderr, flush=True)
    alone = statistics.median(speeds["one process"])
    rows = {
        way: {
            "tokens a second": round(statistics.median(measured)),
            "times one process": round(statistics.median(measured) / alone, 3),
        }
        for way, measured in speeds.items()
    }
    publish(args.out, {"training": rows})


if __name__ == "__main__":
    main()
