"""Look up whether a CPU computes bfloat16 products by instructions of its own: without them they are slow.

No torch is needed for it, so that a dry run and a wrong flag need not wait for its import.
"""

from __future__ import annotations

import functools
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from videogen.config.train import RunConfig

if TYPE_CHECKING:
    import torch

BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})


@functools.cache
def bf16_instructions() -> bool | None:
    """True if this x86 CPU has instructions for bfloat16 products, False if it has none, None if nobody can say."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    flags = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return None if flags is None else not BF16_FLAGS.isdisjoint(flags[1].split())


def lacks_bf16_instructions(device: torch.device) -> bool:
    """True if the device is an x86 CPU on which bfloat16 products take 40 times as long as float32, or longer."""
    return device.type == "cpu" and bf16_instructions() is False


def resolve_mixed_precision(run: RunConfig) -> RunConfig:
    """Replace "auto" by what it stands for: bf16 where this machine's GPU, or else its CPU, has instructions for it."""
    if run.mixed_precision != "auto":
        return run
    import torch

    if torch.cuda.is_available():
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_bf16 = not torch.accelerator.is_available() and bf16_instructions() is True
    return replace(run, mixed_precision="bf16" if has_bf16 else "no")
