"""Attention within the clips of a pack, against one batch of equal lengths: what raggedness costs.

lengths of a pack  ->  time of forward and backward over that of a batch of the same work
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from tests.bench.packing_plans import mixed_sources, native, packed
from videogen.models.attention import attend


def grouped_attention(budget: int, max_tokens: int, rounds: int = 100) -> dict[str, float]:
    """Forward and backward of attend on packs of so many tokens, against one equal-length batch of the same work."""
    draw = random.Random(0)
    shapes = [native(source, max_tokens // (1 + (source.frames - 1) // 4)) for source in mixed_sources(300)]
    plan = packed(shapes, budget=budget, ranks=1, seed=0)
    packs = {"equal": [80] * 32, "a_pack_of_the_folder": plan.lengths(plan.batches[0])}
    packs["all_different"] = sorted((draw.randint(12, 400) for _ in range(13)), reverse=True)
    found = {}
    for name, lengths in packs.items():
        alike = round(sum(n * n for n in lengths) / sum(lengths))  # a batch of this length has the same work a token
        num, same = sum(lengths), alike * round(sum(lengths) / alike)
        ways = {
            "pack": (num, lambda *qkv, n=tuple(lengths): attend(*qkv, n)),
            "batch": (same, lambda *qkv, n=alike: batch_attention(*qkv, n)),
        }
        pairs = []
        for turn in range(rounds):
            order = ("pack", "batch") if turn % 2 else ("batch", "pack")
            taken = {way: timed(ways[way][1], ways[way][0]) / ways[way][0] for way in order}
            pairs.append(taken["pack"] / taken["batch"])
        found[name] = round(statistics.median(pairs[3:]), 3)
    return found


def batch_attention(q: Tensor, k: Tensor, v: Tensor, length: int) -> Tensor:
    """One call for a batch of equally long clips, as any transformer makes it."""
    batch = (rearrange(x, "(b n) heads e -> b heads n e", n=length) for x in (q, k, v))
    return rearrange(F.scaled_dot_product_attention(*batch), "b heads n e -> (b n) heads e")


def timed(work: Callable[[Tensor, Tensor, Tensor], Tensor], num: int) -> float:
    """Seconds of a forward and a backward pass on so many tokens, four heads of 64."""
    q, k, v = (torch.randn(num, 4, 64, requires_grad=True) for _ in range(3))
    began = time.process_time()
    work(q, k, v).sum().backward()
    return time.process_time() - began
