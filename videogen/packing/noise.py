"""Sample noise, assign noise levels to tokens, and interpolate between data and noise.

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

SIGMA_MIN = 0.05  # Below, dividing by sigma would only amplify the network's error.
Shape = Sequence[int]


def interpolate(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Interpolate on the straight path from data (sigma 0) to noise (sigma 1)."""
    return (1 - sigma) * clean + sigma * noise


def velocity_of(clean: Tensor, noised: Tensor, sigma: Tensor) -> Tensor:
    """Convert a prediction of the clean value to the velocity, (noised - clean) / sigma."""
    return (noised - clean) / sigma.clamp(min=SIGMA_MIN)


def sample_noise(like: Tensor, generator: Generator) -> Tensor:
    """Sample normal noise like a tensor; a GPU uses its own generator, seeded by this one, as copying takes longer."""
    if like.device.type == "cpu":
        return torch.randn(like.shape, generator=generator).to(like)
    on_device = Generator(like.device).manual_seed(int(torch.randint(2**62, (), generator=generator)))
    return torch.randn(like.shape, generator=on_device, device=like.device).to(like)


def step_generator(seed: int, *place: int) -> Generator:
    """Return the generator of one place in a run, such as a step: a function of both, so resuming needs no state."""
    digest = hashlib.sha256(" ".join(map(str, (seed, *place))).encode()).digest()  # hash((-1,)) equals hash((-2,))
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class NoiseLevels(NamedTuple):
    """The noise level of every token, as the distinct levels and an index into them.

    Modulations are computed for the values alone and gathered, so a pack of one level costs one row, not n.
    """

    values: Tensor  # (u,) float32, 0 clean ... 1 noise
    index: Tensor  # (n,) int64  # pyright: ignore[reportIncompatibleMethodOverride]

    def per_token(self) -> Tensor:
        """Gather the noise level of every token, (n, 1)."""
        return rearrange(self.values[self.index], "n -> n 1")


def levels_per_clip(values: Tensor, lengths: Lengths) -> NoiseLevels:
    """Give all tokens of a clip its noise level; values (b,)."""
    clips = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    return NoiseLevels(values.float(), clips.to(values.device))


def levels_per_frame(sigmas: Sequence[Tensor], grids: Sequence[Grid]) -> NoiseLevels:
    """Give all tokens of a frame its noise level; for each clip a tensor (t,), t counted in patches."""
    values = torch.cat(list(sigmas)).float()
    tokens_per_frame = torch.tensor([h * w for (t, h, w) in grids for _ in range(t)])
    assert len(values) == len(tokens_per_frame), f"{len(values)} levels for {len(tokens_per_frame)} frames of {grids}"
    return NoiseLevels(values, torch.arange(len(values)).repeat_interleave(tokens_per_frame).to(values.device))


def shared_level(values: Tensor, num_tokens: int) -> NoiseLevels:
    """Give all tokens the same noise level; values (1,)."""
    return NoiseLevels(values, torch.zeros(num_tokens, dtype=torch.long, device=values.device))


def seeded_noise(shapes: Sequence[Shape], seeds: Sequence[int]) -> list[Tensor]:
    """Sample one latent of noise for each seed, the same on every device and beside any other clip."""
    return [torch.randn(*s, generator=torch.Generator().manual_seed(i)) for s, i in zip(shapes, seeds, strict=True)]
