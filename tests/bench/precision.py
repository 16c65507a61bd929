"""Training steps in float32 and with products in bf16, in turn on the same packs.

    videogen bench precision  ->  assets/bench/precision.json

The recipe of the default checkpoint on a few clips, their latents and texts made beforehand. "attention by the kernel"
leaves all attention to torch's, in float32, as long clips do.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import cast
from unittest import mock

import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.bench.machine import Rows, publish, use_threads  # noqa: E402
from videogen.config.parsing import load_toml  # noqa: E402
from videogen.config.sample import MINI  # noqa: E402
from videogen.config.train import TrainConfig  # noqa: E402
from videogen.models import attention  # noqa: E402
from videogen.training.dit_stage import DitStage  # noqa: E402
from videogen.training.trainer import Trainer  # noqa: E402

NUM_CLIPS, ROUNDS, WARM = 400, 9, 2
SHAPES = ((1280, 192, 192), (1280, 192, 768), (1280, 768, 192))  # rows, in, out of the recipe's linear layers


def by_the_kernel() -> AbstractContextManager[object]:
    """No attention by products."""
    return mock.patch.object(attention, "MOST_LOGITS", 0)


def recipe(root: Path) -> TrainConfig:
    """That of the default checkpoint, for as many clips as a few steps need."""
    config = load_toml(TrainConfig, ROOT / "configs" / "toybox-dit.toml")
    data = replace(config.data, toybox=NUM_CLIPS, val_clips=0)
    return replace(config, data=data, dit=replace(config.dit, vae=MINI), run=replace(config.run, dir=root / "run"))


def steps(root: Path) -> Rows:
    """Medians of whole optimiser steps in milliseconds, by patch size, and their ratio to float32's."""
    config = recipe(root)
    ways = {
        "float32": ("no", nullcontext),
        "bf16, attention by the kernel": ("bf16", by_the_kernel),
        "bf16": ("bf16", nullcontext),
    }
    trainers = {}
    for way, (precision, _) in ways.items():
        own = replace(config, run=replace(config.run, mixed_precision=precision, dir=root / way.replace(" ", "-")))
        trainers[way] = Trainer(DitStage(own), own)  # type: ignore[arg-type]
    stage = cast("DitStage", next(iter(trainers.values())).stage)
    batches = list(islice(stage.batches(0), 2 * (ROUNDS + WARM)))
    for trainer in trainers.values():
        for batch in batches:
            cast("DitStage", trainer.stage).embed(batch.captions)
    times: dict[str, dict[str, list[float]]] = {way: {} for way in ways}
    for number, batch in enumerate(batches):
        patch = "x".join(map(str, batch.patch))
        for way, (_, patched) in ways.items():
            with patched():
                began = time.perf_counter()
                trainers[way].train_step(batch, number)
                times[way].setdefault(patch, []).append(time.perf_counter() - began)
    rows: Rows = {}
    for patch in times["float32"]:
        whole = statistics.median(times["float32"][patch][WARM:])
        for way in ways:
            took = statistics.median(times[way][patch][WARM:])
            rows[f"{patch}, {way}"] = {"ms": round(1000 * took, 1), "times_as_fast": round(whole / took, 2)}
    return rows


def products() -> Rows:
    """GFLOP/s of the recipe's matrix products, in turn."""
    rows: Rows = {}
    for n, ins, outs in SHAPES:
        x, weight = torch.randn(n, ins), torch.randn(outs, ins)
        inputs = {"float32": (x, weight), "bf16": (x.bfloat16(), weight.bfloat16())}
        times: dict[str, list[float]] = {name: [] for name in inputs}
        for _ in range(30):
            for name, pair in inputs.items():
                began = time.perf_counter()
                torch.nn.functional.linear(*pair)
                times[name].append(time.perf_counter() - began)
        rows[f"{n} x {ins} x {outs}"] = {
            name: round(2 * n * ins * outs / statistics.median(took) / 1e9) for name, took in times.items()
        }
    return rows


def main() -> None:
    """Measure and publish."""
    argparse.ArgumentParser(prog="videogen bench precision", description=str(__doc__).split("\n")[0]).parse_args()
    use_threads()
    with tempfile.TemporaryDirectory() as root:
        publish("precision", {"training step": steps(Path(root)), "products, GFLOP/s": products()})


if __name__ == "__main__":
    main()
