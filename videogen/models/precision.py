"""Look up whether a device computes bfloat16 products by instructions of its own: without them they are slow."""

from __future__ import annotations

import torch


def bf16_instructions(device: torch.device) -> bool | None:
    """True if an x86 CPU has instructions for bfloat16 products, False if it has none, None if nobody can say."""
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):  # some versions of torch 2.1x lack it
        return None
    cpu = torch.cpu.get_capabilities()
    if cpu.get("architecture") != "x86_64":
        return None
    return bool(cpu["avx512_bf16"] or cpu["amx_bf16"])


def lacks_bf16_instructions(device: torch.device) -> bool:
    """True if the device is an x86 CPU on which bfloat16 products take 40 times as long as float32, or longer."""
    return bf16_instructions(device) is False
