"""Compare training steps in float32 with steps whose products are in bf16, in turn on the same packs.

    videogen bench precision  ->  assets/bench/precision.json

The recipe is the default checkpoint's, on a few clips whose latents and texts are encoded beforehand. "attention by the
kernel" leaves all attention to torch's kernel, in float32, as for long clips.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple, cast
from unittest import mock

import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.bench.flags import make_parser, parse_flags  # noqa: E402
from tests.bench.machine import Rows, publish, set_num_threads  # noqa: E402
from videogen.config.parsing import load_toml  # noqa: E402
from videogen.config.sample import MINI  # noqa: E402
from videogen.config.train import TrainConfig  # noqa: E402
from videogen.models import attention  # noqa: E402
from videogen.training.dit_stage import DitStage  # noqa: E402
from videogen.training.trainer import Trainer  # noqa: E402

SHAPES = ((1280, 192, 192), (1280, 192, 768), (1280, 768, 192))  # rows, in, out of the recipe's linear layers


class Extent(NamedTuple):
    """What is trained, and how often everything is measured."""

    clips: int = 400
    layers: int = 8
    token_budget: int = 2560
    rounds: int = 9  # of each patch size, on average
    warm: int = 2  # of each, not counted
    products: int = 30


SMALL = Extent(clips=8, layers=1, token_budget=160, rounds=2, warm=0, products=1)


def without_unfused_attention() -> AbstractContextManager[object]:
    """Turn attention by products off."""
    return mock.patch.object(attention, "MAX_UNFUSED_LOGITS", 0)


def make_recipe(root: Path, extent: Extent) -> TrainConfig:
    """Build the default checkpoint's recipe, for as many clips as a few steps need."""
    config = load_toml(TrainConfig, ROOT / "configs" / "toybox-dit.toml")
    data = replace(config.data, toybox=extent.clips, token_budget=extent.token_budget, val_clips=0)
    dit = replace(config.dit, vae=MINI, num_layers=extent.layers)
    return replace(config, data=data, dit=dit, run=replace(config.run, dir=root / "run"))


def measure_steps(root: Path, extent: Extent) -> Rows:
    """Measure whole optimiser steps by patch size: medians in milliseconds, and their ratio to float32's."""
    config = make_recipe(root, extent)
    variants = {
        "float32": ("no", nullcontext),
        "bf16, attention by the kernel": ("bf16", without_unfused_attention),
        "bf16": ("bf16", nullcontext),
    }
    trainers = {}
    for variant, (precision, _) in variants.items():
        variant_config = replace(
            config, run=replace(config.run, mixed_precision=precision, dir=root / variant.replace(" ", "-"))
        )
        trainers[variant] = Trainer(DitStage(variant_config), variant_config)  # type: ignore[arg-type]
    stage = cast("DitStage", next(iter(trainers.values())).stage)
    batches = list(islice(stage.batches(0), 2 * (extent.rounds + extent.warm)))
    for trainer in trainers.values():
        for batch in batches:
            cast("DitStage", trainer.stage).embed_captions(batch.captions)
    times: dict[str, dict[str, list[float]]] = {variant: {} for variant in variants}
    for number, batch in enumerate(batches):
        patch = "x".join(map(str, batch.patch))
        for variant, (_, attention_form) in variants.items():
            with attention_form():
                began = time.perf_counter()
                trainers[variant].train_step([batch], number)
                times[variant].setdefault(patch, []).append(time.perf_counter() - began)
    rows: Rows = {}
    for patch in times["float32"]:
        float32_seconds = statistics.median(times["float32"][patch][extent.warm :])
        for variant in variants:
            seconds = statistics.median(times[variant][patch][extent.warm :])
            ratio = float32_seconds / seconds
            rows[f"{patch}, {variant}"] = {"ms": round(1000 * seconds, 1), "times_as_fast": round(ratio, 2)}
    return rows


def measure_products(rounds: int) -> Rows:
    """Measure the GFLOP/s of the recipe's matrix products, in turn."""
    rows: Rows = {}
    for n, num_in, num_out in SHAPES:
        x, weight = torch.randn(n, num_in), torch.randn(num_out, num_in)
        inputs = {"float32": (x, weight), "bf16": (x.bfloat16(), weight.bfloat16())}
        times: dict[str, list[float]] = {name: [] for name in inputs}
        for _ in range(rounds):
            for name, pair in inputs.items():
                began = time.perf_counter()
                torch.nn.functional.linear(*pair)
                times[name].append(time.perf_counter() - began)
        rows[f"{n} x {num_in} x {num_out}"] = {
            name: round(2 * n * num_in * num_out / statistics.median(seconds) / 1e9) for name, seconds in times.items()
        }
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Measure steps and products, and publish them."""
    args = parse_flags(make_parser("precision", __doc__), argv)
    extent = SMALL if args.small else Extent()
    set_num_threads()
    with tempfile.TemporaryDirectory() as root:
        steps, products = measure_steps(Path(root), extent), measure_products(extent.products)
    publish(args.out, {"training step": steps, "products, GFLOP/s": products})


if __name__ == "__main__":
    main()
