"""Sample which tokens of a clip are known in training: image prompts, extension, keyframes and inpainting as one mask.

    kind, grid (t, h, w)  ->  each token's share of the clip's noise level: 0 known ... 1 free

A known token is clean and has noise level 0: the network sees it, the loss and the solver leave it unchanged. Training
samples the kinds from a mixture, so one set of weights serves all of them (Diffusion Forcing, Pusa, Wan 2.2 TI2V).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Generator, Tensor

from videogen.packing.packs import Grid


def text_to_video(grid: Grid, generator: Generator) -> Tensor:
    """Leave every token free."""
    return torch.ones(grid)


def image_to_video(grid: Grid, generator: Generator) -> Tensor:
    """Mark the first latent frame as known."""
    return mark_frames_known(grid, torch.tensor([0]))


def video_extension(grid: Grid, generator: Generator) -> Tensor:
    """Mark the first k latent frames as known, 1 <= k < t."""
    return mark_frames_known(grid, torch.arange(int(torch.randint(1, max(2, grid[0]), (), generator=generator))))


def backward_extension(grid: Grid, generator: Generator) -> Tensor:
    """Mark the last k latent frames as known, 1 <= k < t."""
    return video_extension(grid, generator).flip(0)


def joining(grid: Grid, generator: Generator) -> Tensor:
    """Leave a run of latent frames free and mark those before and behind it as known: at least one of each."""
    if grid[0] < 3:
        return image_to_video(grid, generator)
    low = int(torch.randint(1, grid[0] - 1, (), generator=generator))
    high = int(torch.randint(low + 1, grid[0], (), generator=generator))
    return mark_frames_known(grid, torch.tensor([*range(low), *range(high, grid[0])]))


def frame_interpolation(grid: Grid, generator: Generator) -> Tensor:
    """Mark the first and the last latent frame as known half of the time, else a random half of all frames."""
    if torch.rand((), generator=generator) < 0.5:
        return mark_frames_known(grid, torch.tensor([0, grid[0] - 1]))
    return mark_frames_known(grid, (torch.rand(grid[0], generator=generator) < 0.5).nonzero().flatten())


def diffusion_forcing(grid: Grid, generator: Generator) -> Tensor:
    """Sample a share of the noise for every latent frame (Chen et al. 2024)."""
    return torch.rand((grid[0], 1, 1), generator=generator).expand(grid).clone()


def inpainting(grid: Grid, generator: Generator) -> Tensor:
    """Leave a random box of tokens free and mark the rest as known."""
    mask = torch.zeros(grid)
    lows = [int(torch.randint(0, side, (), generator=generator)) for side in grid]
    highs = [int(torch.randint(low, side, (), generator=generator)) + 1 for low, side in zip(lows, grid, strict=True)]
    t, h, w = (slice(low, high) for low, high in zip(lows, highs, strict=True))
    mask[t, h, w] = 1
    return mask


def mark_frames_known(grid: Grid, frames: Tensor) -> Tensor:
    """Mark some latent frames, given by their indices, as known and leave the others free."""
    mask = torch.ones(grid)
    mask[frames] = 0
    return mask


MASK_KINDS: dict[str, Callable[[Grid, Generator], Tensor]] = {
    "nothing": text_to_video,
    "first_frame": image_to_video,
    "extend": video_extension,
    "extend_back": backward_extension,
    "join": joining,
    "keyframes": frame_interpolation,
    "per_frame": diffusion_forcing,
    "box": inpainting,
}


def check_mixture(mixture: Mapping[str, float]) -> None:
    """Raise a ValueError if the mixture has an unknown kind, a negative share or no share above 0."""
    unknown = sorted(set(mixture) - set(MASK_KINDS))
    if unknown:
        raise ValueError(f"dit.known must name {', '.join(MASK_KINDS)}, got {unknown[0]!r}")
    if not mixture or min(mixture.values()) < 0 or sum(mixture.values()) <= 0:
        raise ValueError(f"dit.known must give at least one kind a share above 0, and none below, got {dict(mixture)}")


def sample_known(grid: Grid, mixture: Mapping[str, float], generator: Generator) -> Tensor:
    """Sample the mask (t, h, w) of one clip; if it leaves nothing to learn (an image's first frame), all is free."""
    names = list(mixture)
    weights = torch.tensor([mixture[name] for name in names], dtype=torch.float64)
    kind = names[int(torch.multinomial(weights, 1, generator=generator))]
    mask = MASK_KINDS[kind](grid, generator)
    return mask if mask.any() else torch.ones(grid)
