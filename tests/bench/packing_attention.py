"""Measure what raggedness costs: attention within the clips of a pack, against one batch of equal lengths.

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

from tests.bench.packing_plans import mixed_sources, native_shape, plan_packed
from videogen.models.attention import attend


def measure_attention(budget: int, max_tokens: int, rounds: int) -> dict[str, float]:
    """Time attend, forward and backward, on packs against one equal-length batch of the same work."""
    rng = random.Random(0)
    shapes = [native_shape(source, max_tokens // (1 + (source.frames - 1) // 4)) for source in mixed_sources(300)]
    plan = plan_packed(shapes, budget=budget, ranks=1, seed=0)
    packs = {"equal": [80] * 32, "a_pack_of_the_folder": plan.lengths(plan.batches[0])}
    packs["all_different"] = sorted((rng.randint(12, 400) for _ in range(13)), reverse=True)
    ratios = {}
    for name, lengths in packs.items():
        # A batch of clips of this length has the pack's work a token.
        equal_length = round(sum(n * n for n in lengths) / sum(lengths))
        num_tokens, num_equal = sum(lengths), equal_length * round(sum(lengths) / equal_length)
        calls = {
            "pack": (num_tokens, lambda *qkv, n=tuple(lengths): attend(*qkv, n)),
            "batch": (num_equal, lambda *qkv, n=equal_length: batch_attention(*qkv, n)),
        }
        turn_ratios = []
        for turn in range(rounds):
            order = ("pack", "batch") if turn % 2 else ("batch", "pack")
            seconds_per_token = {
                side: time_attention(calls[side][1], calls[side][0]) / calls[side][0] for side in order
            }
            turn_ratios.append(seconds_per_token["pack"] / seconds_per_token["batch"])
        ratios[name] = round(statistics.median(turn_ratios[3:]), 3)
    return ratios


def batch_attention(q: Tensor, k: Tensor, v: Tensor, length: int) -> Tensor:
    """Compute attention in one call for a batch of equally long clips, as any transformer does."""
    batch = (rearrange(x, "(b n) heads e -> b heads n e", n=length) for x in (q, k, v))
    return rearrange(F.scaled_dot_product_attention(*batch), "b heads n e -> (b n) heads e")


def time_attention(attention: Callable[[Tensor, Tensor, Tensor], Tensor], num_tokens: int) -> float:
    """Measure the seconds of a forward and a backward pass on so many tokens, four heads of 64."""
    q, k, v = (torch.randn(num_tokens, 4, 64, requires_grad=True) for _ in range(3))
    began = time.process_time()
    attention(q, k, v).sum().backward()
    return time.process_time() - began
