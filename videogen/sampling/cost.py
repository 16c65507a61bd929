"""Estimate what a clip or a training step will cost, from a checkpoint's configs alone: nothing is loaded.

CheckpointInfo, SampleConfig, bytes of the weights  ->  GFLOP, GB, seconds on this machine
"""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

from videogen.config.sample import SampleConfig, resolve_frames
from videogen.config.sizes import SPACE_STRIDE, TIME_STRIDE
from videogen.models.checkpoint_config import FLOAT32_PARTS, PLAIN_CLASSES, UNUSED_PARTS, CheckpointInfo
from videogen.packing.patch_schedule import mean_token_share

# WanVAE's by the pixels of a latent cell: decoder width, and FLOP a pixel of 21 frames as diffusers decodes them.
WAN_FLOP_PER_PIXEL = {8: (96, 8.56e6), 16: (256, 18.6e6)}
GATED = "preconditioned"  # the prediction for which a second layer of the same size stands beside the last one
Config = Mapping[str, int]  # of a network; what is no number in it is cast where it is read


class Cost(NamedTuple):
    """The estimated cost of a clip."""

    gflop: float
    memory_gb: float

    def seconds(self) -> float:
        """Estimate the seconds on this machine's CPU, at the speed of a large matrix product."""
        return clip_seconds(self.gflop * 1e9)


def dit_flop(config: Config, tokens: int, text_tokens: int = 24) -> float:
    """Count the floating point operations of one evaluation of the transformer on one clip, in patches of the base."""
    d = config["num_attention_heads"] * config["attention_head_dim"]
    linear = 2 * tokens * (6 * d * d + 2 * d * config["ffn_dim"])
    attention = 4 * tokens * d * (tokens + text_tokens)
    nearby = 2 * tokens * d * 9 if config.get("nearby") else 0
    channels_in = config["in_channels"]
    channels_out = (config.get("out_channels") or channels_in) * (2 if config.get("prediction") == GATED else 1)
    ends = 2 * tokens * d * math.prod(cast("Sequence[int]", config["patch_size"])) * (channels_in + channels_out)
    return config["num_layers"] * (linear + attention + nearby) + ends


def vae_flop(config: Config, frames: int, pixels: int) -> float:
    """Count the floating point operations to decode a clip of so many frames, each of so many pixels."""
    if "base_dim" in config:
        width, flop = WAN_FLOP_PER_PIXEL[config.get("scale_factor_spatial") or 8]
        return flop * ((config.get("decoder_base_dim") or config["base_dim"]) / width) ** 2 * frames * pixels
    # The multiplications of a latent cell. Its coarse blocks are twice as wide, it has 8 places at the fine blocks and
    # 16 at the finest one, and a block of width w takes 27 w² a place: one 3x3 layer to 2 w, and one to w.
    w, channels = config.get("width", 64), config.get("latent_channels", 16)
    blocks = 3 * 27 * (2 * w) ** 2 + 8 * 3 * 27 * w**2 + 16 * 27 * w**2
    between = (2 * w) * (4 * w) + 2 * 9 * (2 * w) * (4 * w) + 8 * w * (2 * w)
    ends = channels * 9 * (2 * w) + 16 * 9 * w * 48 + channels * 3 * TIME_STRIDE * SPACE_STRIDE**2
    cells = (1 + (frames - 1) // TIME_STRIDE) * pixels / SPACE_STRIDE**2
    return 2 * cells * (blocks + between + ends)


def read_shapes(path: Path) -> dict[str, list[int]]:
    """Read the names and shapes of a .safetensors file's tensors, from its header."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}


def count_weights(path: Path) -> int:
    """Count the values in a .safetensors file."""
    return sum(map(math.prod, read_shapes(path).values()))


def plain_weight_bytes(folder: Path, *, bytes_per_value: int) -> int:
    """Count the bytes of a plain checkpoint's weights as they are loaded, from the headers of their files."""
    num_bytes = 0
    for part in PLAIN_CLASSES:
        files = list((folder / part).glob("*.safetensors"))
        if not files:
            raise ValueError(f"{folder / part} holds no .safetensors weights; the checkpoint is not complete")
        for name, shape in (item for path in files for item in read_shapes(path).items()):
            words = {*name.split(".")}
            size = 4 if part == "transformer" and words & {*FLOAT32_PARTS} else bytes_per_value
            num_bytes += 0 if words & {*UNUSED_PARTS} else size * math.prod(shape)
    return num_bytes


@functools.cache
def matmul_flops(seconds: float = 0.2) -> float:
    """Measure the floating point operations a second of a 1024 x 1024 product, in numpy: torch takes long to import."""
    import numpy as np

    a = np.random.default_rng(0).standard_normal((1024, 1024), dtype=np.float32)
    began, num = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        np.matmul(a, a)
        num += 1
    return 2 * 1024**3 * num / (time.perf_counter() - began)


def clip_seconds(flop: float) -> float:
    """Estimate the seconds that so many operations take on this CPU."""
    return flop / (0.6 * matmul_flops())


def clip_flop(info: CheckpointInfo, config: SampleConfig) -> float:
    """Count the floating point operations of one clip of a checkpoint."""
    dit = dit_flop(cast("Config", info.dit_config), mean_tokens(info, config)) * num_evaluations(config)
    frames = resolve_frames(config, info.time_stride)
    return dit + vae_flop(cast("Config", info.vae_config), frames, config.width * config.height)


def estimate(info: CheckpointInfo, config: SampleConfig, *, weights: int, bytes_per_value: int = 4) -> Cost:
    """Estimate the cost of one clip of a checkpoint whose loaded weights take so many bytes."""
    dit = cast("Config", info.dit_config)
    d = dit["num_attention_heads"] * dit["attention_head_dim"]
    activations = mean_tokens(info, config) * (12 * d + dit["ffn_dim"]) + 3 * num_pixels(info, config)
    return Cost(clip_flop(info, config) / 1e9, (weights + bytes_per_value * activations) / 1e9 + 0.6)


def mean_tokens(info: CheckpointInfo, config: SampleConfig) -> int:
    """Average the video tokens of a clip over the steps, in which its patches may change."""
    return round(info.num_tokens(config) * mean_token_share(config, info.patches[0]))


def num_pixels(info: CheckpointInfo, config: SampleConfig) -> int:
    """Count the pixels of a clip."""
    return resolve_frames(config, info.time_stride) * config.width * config.height


def num_evaluations(config: SampleConfig) -> int:
    """Count the network evaluations of a run: two a step under guidance, and with heun as many again."""
    steps = config.steps - config.first_step
    evaluations = 2 * steps - 1 if "heun" in config.sampler else steps  # Heun's last step is Euler's
    return evaluations * (2 if config.guidance != 1 else 1)
