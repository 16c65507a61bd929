"""Count the floating point operations of a call on a CPU, attention included.

a call  ->  its GFLOP, and its result
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

T = TypeVar("T")
Shape = tuple[int, ...]


def attention_flop(q: Shape, k: Shape, v: Shape, *others: object, **options: object) -> int:
    """Count the operations of attention on a CPU, two products, as torch does for the kernels of GPUs alone."""
    return sdpa_flop_count(q, k, v)


def product_flop(total: Shape, a: Shape, b: Shape, **options: object) -> int:
    """Count the operations of baddbmm_, of which torch counts the out-of-place form only."""
    return 2 * a[0] * a[1] * a[2] * b[2]


UNCOUNTED = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flop,
    torch.ops.aten.baddbmm_: product_flop,
}


def count_gflop(call: Callable[[], T]) -> tuple[float, T]:
    """Count the GFLOP of the products, convolutions and attention of a call, and return its result too."""
    with FlopCounterMode(display=False, custom_mapping=UNCOUNTED) as counter:
        result = call()
    return counter.get_total_flops() / 1e9, result
