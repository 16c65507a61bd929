"""Measure the effect of each trick of Wan's line: switch them off one at a time, and switch some unused ones on.

A pipeline and a call that samples a clip  ->  rows: time over the unchanged line's, FLOPs, bytes, change of the latent
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from tests.bench.flop import count_gflop
from videogen.models import attention, dit_blocks, rope
from videogen.models.dit_network import TextContext
from videogen.packing.packs import PackedText, PackLayout
from videogen.sampling import denoiser, pipeline
from videogen.sampling.denoiser import Denoiser
from videogen.sampling.pipeline import VideoPipeline

Ways = Mapping[str, Callable[[], AbstractContextManager[object]]]
PROMPT, NEGATIVE = "a cat walks in the rain on the red grass", "blurry, worst quality"


def pad_in_full(texts: list[Tensor], num_rows: int) -> PackedText:
    """Pad texts with all of Wan's rows of zeros."""
    rows = [torch.cat([text, text.new_zeros(num_rows - len(text), text.shape[1])]) for text in texts]
    tokens = torch.cat(rows)
    return PackedText(tokens, (num_rows,) * len(texts), torch.ones(len(tokens)))


def rotate_in_parts(x: Tensor, table: rope.Rotary) -> Tensor:
    """Rotate by cosines and sines in separate products."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    rotated = torch.stack((even * table.cos - odd * table.sin, even * table.sin + odd * table.cos), dim=-1)
    return rotated.flatten(-2)


def modulate_in_steps(
    norm: dit_blocks.FP32LayerNorm, x: Tensor, factor: Tensor, shift: Tensor, index: Tensor
) -> Tensor:
    """Normalise, scale and shift one after the other."""
    return norm(x) * factor + shift


def gate_in_steps(x: Tensor, update: Tensor, gate: Tensor, index: Tensor) -> Tensor:
    """Gate and add one after the other."""
    return x + update * gate


def encode_texts_each_step(ours: VideoPipeline) -> AbstractContextManager[object]:
    """Encode the texts, and compute their keys and values, again at every step."""

    def encode_again(self: Denoiser, rows: tuple[int, ...]) -> TextContext:
        return ours.encode_prompts([(PROMPT, NEGATIVE)[row] for row in rows])

    return mock.patch.object(Denoiser, "_take_text", encode_again)


def tricks_off(ours: VideoPipeline) -> dict[str, Callable[[], AbstractContextManager[object]]]:
    """Switch each trick off."""
    return {
        "nothing": nullcontext,
        "one row for all of the padding": lambda: mock.patch.object(pipeline, "pad_texts", pad_in_full),
        "both prompts in one call": lambda: mock.patch.object(denoiser, "TOKENS_PER_CALL", 0),
        "texts read once": lambda: encode_texts_each_step(ours),
        "turning by complex numbers": lambda: mock.patch.object(dit_blocks, "rotate", rotate_in_parts),
        "norm, scale and shift in one": lambda: mock.patch.object(dit_blocks, "modulate", modulate_in_steps),
        "gate and sum in one": lambda: mock.patch.object(dit_blocks, "add_gated", gate_in_steps),
        "gelu by a sigmoid": lambda: mock.patch.object(
            dit_blocks, "gelu_in_place", lambda x: F.gelu(x, approximate="tanh")
        ),
    }  # fmt: skip


def with_fused_qkv(ours: VideoPipeline) -> AbstractContextManager[object]:
    """Compute queries, keys and values by one product of weights that were concatenated beforehand."""
    fused: dict[int, tuple[Tensor, Tensor]] = {}
    for block in ours.transformer.blocks:
        layers = [getattr(block.attn1, name) for name in ("to_q", "to_k", "to_v")]  # type: ignore[union-attr]
        parts = ([getattr(layer, name) for layer in layers] for name in ("weight", "bias"))
        fused[id(block.attn1)] = tuple(map(torch.cat, parts))  # type: ignore[assignment]

    def forward(self: dit_blocks.Attention, x: Tensor, table: rope.Rotary, layout: PackLayout) -> Tensor:
        q, k, v = F.linear(x, *fused[id(self)]).chunk(3, dim=-1)
        q, k = (rope.rotate(self.split_heads(n(part)), table) for n, part in ((self.norm_q, q), (self.norm_k, k)))
        return self.to_out[0](attention.attend(q, k, self.split_heads(v), layout.lengths).flatten(1))

    return mock.patch.object(dit_blocks.Attention, "forward", forward)


def with_cached_noise_levels(ours: VideoPipeline) -> AbstractContextManager[object]:
    """Cache the embedding of every step's noise level, as if all were computed beforehand."""
    embedder = ours.transformer.condition_embedder
    compute, embeddings = embedder.time, dict[float, Tensor]()

    def look_up(sigma: Tensor) -> Tensor:
        if (level := float(sigma[0])) not in embeddings:
            embeddings[level] = compute(sigma)
        return embeddings[level]

    return mock.patch.object(embedder, "time", look_up)


def further_tricks(ours: VideoPipeline) -> Ways:
    """Switch each unused trick on."""
    return {
        "nothing": nullcontext,
        "queries, keys and values at once": lambda: with_fused_qkv(ours),
        "noise levels embedded beforehand": lambda: with_cached_noise_levels(ours),
    }


def measure_allocation(call: Callable[[], object]) -> float:
    """Measure the MB that a call allocates, freed or not."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    return sum(max(0, event.self_cpu_memory_usage) for event in profiler.events()) / 1e6


def compare_ways(ways: Ways, sample: Callable[[], Tensor], *, rounds: int, steps: int) -> dict[str, dict[str, float]]:
    """Compare the ways in turn, after a warm-up round: medians of ratios to "nothing", and a step's work."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    rows: dict[str, dict[str, float]] = {}
    latents: dict[str, Tensor] = {}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            with way():
                began = time.perf_counter()
                latents[name] = sample()
                times[name].append(time.perf_counter() - began)
                if turn == 0:
                    gflop, allocated = count_gflop(sample)[0], measure_allocation(sample)
                    rows[name] = {"gflop": round(gflop / steps, 2), "allocated_mb": round(allocated / steps, 1)}
    for name, row in rows.items():
        ratios = [b / a for a, b in zip(times["nothing"][1:], times[name][1:], strict=True)]
        row["time"] = round(statistics.median(ratios), 3)
        row["max_difference"] = float(f"{(latents[name] - latents['nothing']).abs().max().item():.1e}")
    return rows
