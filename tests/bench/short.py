"""Time a guided step of short clips against its floor, products and attention alone, and diffusers' transformer.

    videogen bench short  ->  assets/bench/short.json

All have one shape and random weights, and take turns in one process, by its own processor time, as other work on the
machine then counts less. diffusers pads each text to 512 rows and takes the two texts of a step in two calls.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from torch.profiler import ProfilerActivity, profile

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.bench.flags import make_parser, parse_flags  # noqa: E402
from tests.bench.machine import Rows, publish, set_num_threads  # noqa: E402
from videogen.models.checkpoint import cast_weights  # noqa: E402
from videogen.models.checkpoint_config import FLOAT32_PARTS  # noqa: E402
from videogen.models.dit_network import DiT  # noqa: E402
from videogen.packing.noise import shared_level  # noqa: E402
from videogen.packing.packs import pack, pack_texts  # noqa: E402

TEXT_DIM, TEXT_ROWS, PADDED_ROWS, CHANNELS = 384, (20, 2), 512, 32
DTYPES = (torch.float32, torch.bfloat16)


class Shape(NamedTuple):
    """A transformer and a clip."""

    width: int
    layers: int
    latent: tuple[int, int, int]  # frames, rows, columns; a patch has a side of 2
    rounds: int

    @property
    def num_tokens(self) -> int:
        """The tokens of one clip."""
        t, h, w = self.latent
        return t * (h // 2) * (w // 2)


SHAPES = (Shape(256, 8, (5, 8, 8), 60), Shape(256, 8, (5, 16, 16), 20))
SMALL = (Shape(128, 1, (1, 4, 4), 2),)


def make_step(shape: Shape, dtype: torch.dtype) -> Callable[[], object]:
    """Make our guided step: both texts in one call, with texts and noise level read beforehand, as in a run."""
    torch.manual_seed(0)
    dit = DiT(
        num_attention_heads=shape.width // 64, attention_head_dim=64, in_channels=CHANNELS, out_channels=CHANNELS,
        text_dim=TEXT_DIM, ffn_dim=4 * shape.width, num_layers=shape.layers, prediction="preconditioned",
    ).eval()  # fmt: skip
    cast_weights(dit, dtype, whole=FLOAT32_PARTS)
    video = pack([torch.randn(CHANNELS, *shape.latent)] * 2, dit.base_patch)
    text = dit.project_text(pack_texts([torch.randn(rows, TEXT_DIM) for rows in TEXT_ROWS]))
    level = dit.project_levels(shared_level(torch.tensor([0.7]), len(video.tokens)), dit.base_patch)
    return lambda: dit(video, level, text)


def make_diffusers_step(shape: Shape, dtype: torch.dtype) -> Callable[[], object]:
    """Make diffusers' guided step, as WanPipeline has it."""
    theirs = WanTransformer3DModel(
        num_attention_heads=shape.width // 64, attention_head_dim=64, in_channels=CHANNELS, out_channels=CHANNELS,
        text_dim=TEXT_DIM, ffn_dim=4 * shape.width, num_layers=shape.layers,
    ).eval()  # fmt: skip
    cast_weights(theirs, dtype, whole=FLOAT32_PARTS)
    latent = torch.randn(1, CHANNELS, *shape.latent, dtype=dtype)
    text, timestep = torch.randn(1, PADDED_ROWS, TEXT_DIM, dtype=dtype), torch.tensor([700])
    return lambda: [theirs(latent, timestep, text, return_dict=False) for _ in TEXT_ROWS]


def make_floor(shape: Shape, dtype: torch.dtype) -> Callable[[], object]:
    """Make the least of a guided step: linear layers and attention, on weights that stay in the cache."""
    n, d, heads = 2 * shape.num_tokens, shape.width, shape.width // 64
    x, hidden = torch.randn(n, d, dtype=dtype), torch.randn(n, 4 * d, dtype=dtype)
    sizes = {"square": (d, d), "wide": (4 * d, d), "narrow": (d, 4 * d)}
    square, wide, narrow = (
        (torch.randn(size, dtype=dtype), torch.randn(size[0], dtype=dtype)) for size in sizes.values()
    )
    q = torch.randn(2, heads, shape.num_tokens, 64, dtype=dtype)
    k, bias = torch.randn(2, heads, max(TEXT_ROWS), 64, dtype=dtype), torch.zeros(2, 1, 1, max(TEXT_ROWS), dtype=dtype)

    def run() -> None:
        for _ in range(shape.layers):
            for _ in range(6):
                F.linear(x, *square)
            F.linear(x, *wide)
            F.linear(hidden, *narrow)
            F.scaled_dot_product_attention(q, q, q)
            F.scaled_dot_product_attention(q, k, k, attn_mask=bias)

    return run


def count_calls(step: Callable[[], object]) -> int:
    """Count the calls of torch's operators in a step."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    return sum(event.count for event in profiler.key_averages() if event.key.startswith("aten::"))


@torch.inference_mode()
def measure(shape: Shape) -> Rows:
    """Time all ways in turn, after a warm-up round: lower quartiles in ms, and medians of ratios within a round."""
    makers = {"videogen": make_step, "floor": make_floor, "diffusers": make_diffusers_step}
    ways = {(name, dtype): make(shape, dtype) for dtype in DTYPES for name, make in makers.items()}
    seconds: dict[tuple[str, torch.dtype], list[float]] = {way: [] for way in ways}
    for _ in range(shape.rounds + 1):
        for way, step in ways.items():
            began = time.process_time()
            step()
            seconds[way].append(time.process_time() - began)

    def ratio(way: tuple[str, torch.dtype], other: tuple[str, torch.dtype]) -> float:
        return round(statistics.median(a / b for a, b in zip(seconds[way][1:], seconds[other][1:], strict=True)), 2)

    rows: Rows = {}
    for dtype in DTYPES:
        ours = "videogen", dtype
        milliseconds = {
            f"{name}_ms": round(1000 * statistics.quantiles(seconds[name, dtype][1:], n=4)[0], 2) for name in makers
        }
        rows[f"{shape.num_tokens} tokens, {str(dtype).removeprefix('torch.')}"] = milliseconds | {
            "times_floor": ratio(ours, ("floor", dtype)),
            "times_diffusers": ratio(("diffusers", dtype), ours),
            "times_float32": ratio(("videogen", torch.float32), ours),
            "calls": count_calls(ways[ours]),
        }
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every shape and publish the table."""
    args = parse_flags(make_parser("short", __doc__), argv)
    set_num_threads()
    rows: Rows = {}
    for shape in SMALL if args.small else SHAPES:
        rows |= measure(shape)
    publish(args.out, {"guided_step": rows})


if __name__ == "__main__":
    main()
