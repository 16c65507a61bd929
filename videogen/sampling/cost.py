"""What a clip will cost, from a checkpoint's config alone: nothing is loaded.

checkpoint folder, tokens, network evaluations, pixels, bytes of the weights  ->  GFLOP, GB, seconds on this machine
"""

from __future__ import annotations

import functools
import json
import math
import time
from pathlib import Path
from typing import NamedTuple

from videogen.config.sample import SampleConfig, resolve_frames

TIME_STRIDE = 4  # of every VAE here; vae.py is not imported before it is needed
VAE_FLOP_PER_PIXEL = 65_000  # VideoVAE at width 64, decoding (2 x multiply-adds, counted over its convolutions)
# Wan's, by the pixels of a latent cell: decoder width, and what 21 frames take a pixel as diffusers decodes them.
WAN_FLOP_PER_PIXEL = {8: (96, 8.56e6), 16: (256, 18.6e6)}


class Cost(NamedTuple):
    """An estimate, to plan by."""

    gflop: float
    memory_gb: float

    def seconds(self) -> float:
        """How long this machine's CPU takes, at the speed of a large matrix product."""
        return clip_seconds(self.gflop * 1e9)


def dit_flop(config: dict[str, int], tokens: int, text_tokens: int = 24) -> float:
    """Floating point operations of one evaluation on one clip of so many tokens."""
    d = config["num_attention_heads"] * config["attention_head_dim"]
    linear = 2 * tokens * (6 * d * d + 2 * d * config["ffn_dim"])
    attention = 4 * tokens * d * (tokens + text_tokens)
    return config["num_layers"] * (linear + attention)


def vae_flop(config: dict[str, int]) -> float:
    """Floating point operations to decode one pixel of one frame."""
    if "base_dim" not in config:
        return VAE_FLOP_PER_PIXEL
    width, flop = WAN_FLOP_PER_PIXEL[config.get("scale_factor_spatial") or 8]
    return flop * ((config.get("decoder_base_dim") or config["base_dim"]) / width) ** 2


def count_weights(path: Path) -> int:
    """Values in a .safetensors file, from its header."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def training_memory(
    config: dict[str, int], tokens: int, weights: int, *, frozen: int = 0, averages: int = 2, recompute: bool
) -> float:
    """GB that training takes with packs of so many tokens: weights, gradients, AdamW, averages and activations.

    A block keeps 28 values a channel and 2 a feed-forward channel of every token for its gradient (counted over its
    saved tensors, float32); recomputing keeps only each block's input, and one block whole at a time.
    """
    d, layers = config["num_attention_heads"] * config["attention_head_dim"], config["num_layers"]
    block = 28 * d + 2 * config["ffn_dim"]
    kept = block + layers * d if recompute else layers * block
    return 4 * (frozen + weights * (4 + averages) + tokens * kept) / 1e9 + 0.6


@functools.cache
def matmul_flops(seconds: float = 0.2) -> float:
    """Floating point operations a second of a 1024 x 1024 product, measured now."""
    import torch

    a = torch.randn(1024, 1024)
    began, num = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        torch.mm(a, a)
        num += 1
    return 2 * 1024**3 * num / (time.perf_counter() - began)


def clip_flop(folder: Path, *, tokens: int, evaluations: int, pixels: int) -> float:
    """Floating point operations of one clip with the checkpoint in a folder."""
    config, vae = (_read(folder / part / "config.json") for part in ("transformer", "vae"))
    return dit_flop(config, tokens) * evaluations + vae_flop(vae) * pixels


def clip_seconds(flop: float) -> float:
    """How long so many operations take on this CPU."""
    return flop / (0.6 * matmul_flops())


def estimate(folder: Path, *, tokens: int, evaluations: int, pixels: int, weights: int, bytes_a_value: int = 4) -> Cost:
    """The cost of one clip with the checkpoint in a folder, whose loaded weights take so many bytes."""
    config = _read(folder / "transformer" / "config.json")
    d = config["num_attention_heads"] * config["attention_head_dim"]
    flop = clip_flop(folder, tokens=tokens, evaluations=evaluations, pixels=pixels)
    activations = bytes_a_value * (tokens * (12 * d + config["ffn_dim"]) + 3 * pixels)
    return Cost(flop / 1e9, (weights + activations) / 1e9 + 0.6)


def _read(path: Path) -> dict[str, int]:
    return json.loads(path.read_text(encoding="utf-8"))


def num_evaluations(config: SampleConfig) -> int:
    """Network evaluations of a run, for the bar: two a step under guidance, twice as many with heun."""
    evaluations = 2 * config.steps - 1 if "heun" in config.sampler else config.steps  # heun's last step is euler's
    return evaluations * (2 if config.guidance != 1 else 1)


def count_tokens(config: SampleConfig, stride: int) -> int:
    """Video tokens of one clip at the base patch."""
    frames = resolve_frames(config, TIME_STRIDE)
    return (1 + (frames - 1) // TIME_STRIDE) * (config.height // stride) * (config.width // stride)
