"""Say what a clip would cost, without making it.

SampleJob, SampleArgs  ->  one line: size, tokens, memory, seconds
"""

from __future__ import annotations

import json

from videogen.cli.sample_arguments import SampleArgs
from videogen.cli.sample_jobs import Order
from videogen.config.sample import resolve_frames
from videogen.models.checkpoint_config import known_patches, pixel_stride
from videogen.packing.patch_schedule import mean_share
from videogen.sampling.cost import TIME_STRIDE, count_tokens, estimate, num_evaluations


def count_bytes(args: SampleArgs) -> int:
    """Bytes of the weights that would be loaded where the networks compute."""
    import torch

    from videogen.sampling.low_memory import weight_bytes

    dtype = getattr(torch, args.dtype)
    beside = {"quantise": args.quantise, "gguf": args.gguf, "loras": args.lora}
    return weight_bytes(args.model, dtype=dtype, offload=args.offload, **beside)  # type: ignore[arg-type]


def describe(order: Order, args: SampleArgs, weights: int) -> str:
    """What a clip would take beside so many bytes of weights; seconds are a CPU's, of which one product is measured."""
    config, frames = order.config, resolve_frames(order.config, TIME_STRIDE)
    pixels, tokens = frames * config.width * config.height, count_tokens(config, pixel_stride(args.model))
    cut = tokens * mean_share(config, known_patches(args.model)[0])
    cost = estimate(
        args.model,
        tokens=round(cut),
        evaluations=num_evaluations(config),
        pixels=pixels,
        weights=weights,
        bytes_a_value={"float32": 4, "bfloat16": 2}[args.dtype],
    )
    row = {
        "path": str(order.path),
        "size": config.size,
        "frames": frames,
        "seconds_of_video": round(frames / config.fps, 2),
        "tokens": tokens,
        "evaluations": num_evaluations(config),
        "gflop": round(cost.gflop),
        "memory_gb": round(cost.memory_gb, 2),
        "seconds": round(cost.seconds(), 1) if args.device == "cpu" else None,
    }
    told = {key: value for key, value in row.items() if value is not None}
    return json.dumps(row) if args.json else "  ".join(f"{key} {value}" for key, value in told.items())
