"""Noise, noise levels, and the straight path between data and noise.

clean, noise, sigma  ->  noised = (1 - sigma) clean + sigma noise;  velocity = noise - clean
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Generator, Tensor

from videogen.packing.packs import Grid, Lengths

SIGMA_MIN = 0.05  # below, dividing by sigma would only amplify the network's error
Shape = Sequence[int]


def interpolate(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """The straight path from data (sigma 0) to noise (sigma 1)."""
    return (1 - sigma) * clean + sigma * noise


def velocity_of(clean: Tensor, noised: Tensor, sigma: Tensor) -> Tensor:
    """The velocity that leads from a predicted clean value to where we stand."""
    return (noised - clean) / sigma.clamp(min=SIGMA_MIN)


def draw_noise(like: Tensor, generator: Generator) -> Tensor:
    """Noise like a tensor; on a GPU from a generator there, seeded by the one given: the way there takes longer."""
    if like.device.type == "cpu":
        return torch.randn(like.shape, generator=generator).to(like)
    there = Generator(like.device).manual_seed(int(torch.randint(2**62, (), generator=generator)))
    return torch.randn(like.shape, generator=there, device=like.device).to(like)


def step_generator(seed: int, *place: int) -> Generator:
    """The random numbers of one place in a run, such as a step: a function of both, so that resuming needs no state."""
    mixed = hashlib.sha256(" ".join(map(str, (seed, *place))).encode()).digest()  # hash() of a tuple takes -1 for -2
    return torch.Generator().manual_seed(int.from_bytes(mixed[:8], "little") >> 1)


class NoiseLevels(NamedTuple):
    """How noisy each token is: a few distinct levels and, for each token, which of them it has.

    Modulations are computed for the values alone and gathered, so a pack of one level costs one row, not n.
    """

    values: Tensor  # (u,) float32, 0 clean ... 1 noise
    index: Tensor  # (n,) int64  # pyright: ignore[reportIncompatibleMethodOverride]

    def per_token(self) -> Tensor:
        """The noise level of every token, (n, 1)."""
        return rearrange(self.values[self.index], "n -> n 1")


def per_clip(values: Tensor, lengths: Lengths) -> NoiseLevels:
    """One noise level a clip (b,)."""
    clips = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    return NoiseLevels(values.float(), clips.to(values.device))


def per_frame(sigmas: Sequence[Tensor], grids: Sequence[Grid]) -> NoiseLevels:
    """One noise level a token frame: for each clip a tensor (t,), t counted in patches."""
    frames = torch.cat(list(sigmas)).float()
    cells = torch.tensor([h * w for (t, h, w) in grids for _ in range(t)])
    assert len(frames) == len(cells), f"{len(frames)} noise levels for {len(cells)} frames of {grids}"
    return NoiseLevels(frames, torch.arange(len(cells)).repeat_interleave(cells).to(frames.device))


def shared_level(values: Tensor, num_tokens: int) -> NoiseLevels:
    """The same noise level (1,) for every token."""
    return NoiseLevels(values, torch.zeros(num_tokens, dtype=torch.long, device=values.device))


def seeded_noise(shapes: Sequence[Shape], seeds: Sequence[int]) -> list[Tensor]:
    """One latent of noise a clip, the same on every device and beside any neighbour."""
    return [torch.randn(*s, generator=torch.Generator().manual_seed(i)) for s, i in zip(shapes, seeds, strict=True)]
