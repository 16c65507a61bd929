"""Print what a clip would cost, without making it.

SampleJob, SampleArgs, CheckpointInfo  ->  one line: size, tokens, memory, seconds
"""

from __future__ import annotations

import json

from videogen.cli.known_flags import count_frames, list_windows
from videogen.cli.sample_arguments import SampleArgs
from videogen.cli.sample_jobs import SampleJob
from videogen.models.checkpoint_config import CheckpointInfo
from videogen.sampling.cost import Cost, estimate, num_evaluations, plain_weight_bytes

BYTES_PER_VALUE = {"float32": 4, "bfloat16": 2, "float16": 2}


def count_bytes(args: SampleArgs, info: CheckpointInfo) -> int:
    """Count the bytes of the weights that the command would load to the device."""
    if info.is_plain and not args.needs_diffusers:
        return plain_weight_bytes(info.folder, bytes_per_value=BYTES_PER_VALUE[args.dtype])
    import torch

    from videogen.sampling.low_memory import weight_bytes

    dtype = getattr(torch, args.dtype)
    options = {"quantise": args.quantise, "gguf": args.gguf, "loras": args.lora}
    return weight_bytes(info, dtype=dtype, offload=args.offload, **options)  # type: ignore[arg-type]


def describe(job: SampleJob, args: SampleArgs, info: CheckpointInfo, weights: int) -> str:
    """Describe the cost of a clip; seconds are a CPU's, whose speed is measured with one matrix product."""
    config, frames = job.config, count_frames(args, info, job.config)
    windows = list_windows(args, info, config)
    costs = [estimate(info, part, weights=weights, bytes_per_value=BYTES_PER_VALUE[args.dtype]) for part in windows]
    cost = Cost(sum(part.gflop for part in costs), max(part.memory_gb for part in costs))
    row: dict[str, object] = {
        "path": str(job.path),
        "size": config.size,
        "frames": frames,
        "seconds_of_video": round(frames / config.fps, 2),
        **({"windows": len(windows)} if len(windows) > 1 else {}),
        "tokens": max(map(info.num_tokens, windows)),
        "evaluations": sum(map(num_evaluations, windows)),
        "gflop": round(cost.gflop),
        "memory_gb": round(cost.memory_gb, 2),
    }
    seconds = float(f"{cost.seconds():.2g}") if args.device == "cpu" else None
    if args.json:
        return json.dumps(row | {"seconds": seconds})
    words = row | ({"time": format_duration(seconds)} if seconds is not None else {})
    return "  ".join(f"{key} {value}" for key, value in words.items())


def format_duration(seconds: float) -> str:
    """Format a duration in the unit that a person would take: 1.4 s, 5.3 minutes, 16.7 hours, 3.2 days."""
    for unit, length, least in (("days", 86400, 2), ("hours", 3600, 1), ("minutes", 60, 1)):
        if seconds >= least * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"
