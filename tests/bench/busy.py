"""Measure guided steps and training steps beside other busy processes, with threads that sleep or spin while waiting.

    videogen bench busy  ->  assets/bench/busy.json

Each measurement is a new process, since torch reads the setting when it is loaded; the ways take turns. The clip has
320 tokens, the pack of training 1,280, and the network is of the default checkpoint's width and depth.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.bench.flags import make_parser, parse_flags  # noqa: E402
from tests.bench.machine import Rows, publish  # noqa: E402
from videogen.cli.threads import SPIN_COUNT, WAITING_SETTINGS  # noqa: E402

KINDS = ("sampling", "training")
ENVIRONMENTS = {
    "one thread": {"OMP_NUM_THREADS": "1"},
    "all, spinning": {},
    "all, sleeping": {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": SPIN_COUNT},
}
STEP = """
import statistics, sys, time, torch
from tests.bench.busy import make_step
step = make_step(sys.argv[1])
step()
times = []
for _ in range(int(sys.argv[2])):
    began = time.perf_counter()
    step()
    times.append(time.perf_counter() - began)
print(statistics.median(times))
"""


def make_step(kind: str) -> Callable[[], None]:
    """Make a function that takes one guided step of a clip, or one forward and backward pass of a training pack."""
    import torch

    from videogen.models.dit import VideoDiT
    from videogen.packing.noise import shared_level
    from videogen.packing.packs import PackedText, PackedVideo

    torch.manual_seed(0)
    dit = VideoDiT(
        patch_size=(1, 2, 2), num_attention_heads=4, attention_head_dim=64, in_channels=32, out_channels=32,
        text_dim=384, ffn_dim=1024, num_layers=8, prediction="preconditioned",
    )  # fmt: skip
    num_clips, grid = (2, (5, 8, 8)) if kind == "sampling" else (16, (5, 4, 4))
    num_tokens = num_clips * grid[0] * grid[1] * grid[2]
    video = PackedVideo(torch.randn(num_tokens, 128), (grid,) * num_clips, (1, 2, 2))
    text = PackedText(torch.randn(20 * num_clips, 384), (20,) * num_clips, torch.ones(20 * num_clips))
    levels = shared_level(torch.tensor([0.7]), num_tokens)

    def sample() -> None:
        with torch.inference_mode():
            dit(video, levels, text)

    def train() -> None:
        dit(video, levels, text).square().mean().backward()

    return sample if kind == "sampling" else train


@contextmanager
def busy_processes(num: int) -> Iterator[None]:
    """Keep some other processes busy."""
    with ExitStack() as stack:
        for _ in range(num):
            process = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(process.kill)
        yield


def time_step(kind: str, way: str, repeats: int) -> float:
    """Measure the median seconds of a step in a new process."""
    clean = {name: value for name, value in os.environ.items() if name not in (*WAITING_SETTINGS, "OMP_NUM_THREADS")}
    command = [sys.executable, "-c", STEP, kind, str(repeats)]
    options = {"check": True, "capture_output": True, "text": True, "cwd": ROOT}
    return float(subprocess.run(command, env=clean | ENVIRONMENTS[way], **options).stdout.split()[-1])


def measure(kind: str, *, rounds: int, repeats: int, busy: Sequence[int]) -> Rows:
    """Measure the steps of one kind beside numbers of busy processes: medians in milliseconds, and their ratios.

    Each row is printed as soon as it is there, since all of them take minutes.
    """
    rows: Rows = {}
    for num in busy:
        times: dict[str, list[float]] = {way: [] for way in ENVIRONMENTS}
        with busy_processes(num):
            for _ in range(rounds):
                for way in ENVIRONMENTS:
                    times[way].append(time_step(kind, way, repeats))
        medians = {way: statistics.median(values) for way, values in times.items()}
        rows[f"{num} busy"] = {
            **{f"{way}, ms": round(1000 * seconds, 1) for way, seconds in medians.items()},
            "sleeping / one thread": round(medians["all, sleeping"] / medians["one thread"], 2),
            "sleeping / spinning": round(medians["all, sleeping"] / medians["all, spinning"], 2),
        }
        print(kind, f"{num} busy", rows[f"{num} busy"], flush=True)
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Measure both kinds of steps and publish them."""
    parser = make_parser("busy", __doc__)
    parser.add_argument("--rounds", type=int, default=5, help="processes a way")
    parser.add_argument("--steps", type=int, default=9, help="steps a process")
    parser.add_argument("--beside", type=int, nargs="*", default=(0, 1, 2), help="numbers of busy processes")
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=KINDS, help="steps; others keep their rows")
    args = parse_flags(parser, argv, {"rounds": 1, "steps": 1, "beside": (1,)})
    options = {"rounds": args.rounds, "repeats": args.steps, "busy": args.beside}
    earlier = json.loads(args.out.read_text(encoding="utf-8")) if args.out and args.out.is_file() else {}
    kept = {kind: earlier[kind] for kind in KINDS if kind in earlier}
    publish(args.out, kept | {kind: measure(kind, **options) for kind in args.kinds})


if __name__ == "__main__":
    main()
