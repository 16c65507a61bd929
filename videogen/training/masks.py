"""What of a clip is already known: one mask serves images as prompts, extension, keyframes and inpainting.

    kind, grid (t, h, w)  ->  how noisy each token is, as a share of the clip's own noise level: 0 known ... 1 free

A known token is clean and has noise level 0; the network sees it, the loss and the solver leave it alone. Training
draws the kinds from a mixture, so that one set of weights answers all of them (Diffusion Forcing, Pusa, Wan 2.2 TI2V).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Generator, Tensor

from videogen.packing.packs import Grid


def nothing(grid: Grid, generator: Generator) -> Tensor:
    """Text to video: every token is free."""
    return torch.ones(grid)


def first_frame(grid: Grid, generator: Generator) -> Tensor:
    """Image to video: the first latent frame is known."""
    return _known_frames(grid, torch.tensor([0]))


def extend(grid: Grid, generator: Generator) -> Tensor:
    """Extension: the first k latent frames are known, 1 <= k < t."""
    return _known_frames(grid, torch.arange(int(torch.randint(1, max(2, grid[0]), (), generator=generator))))


def keyframes(grid: Grid, generator: Generator) -> Tensor:
    """Interpolation: half of the time the first and the last latent frame, else a random half of them."""
    if torch.rand((), generator=generator) < 0.5:
        return _known_frames(grid, torch.tensor([0, grid[0] - 1]))
    return _known_frames(grid, (torch.rand(grid[0], generator=generator) < 0.5).nonzero().flatten())


def per_frame(grid: Grid, generator: Generator) -> Tensor:
    """Diffusion forcing: every latent frame has its own share of the noise (Chen et al. 2024)."""
    return torch.rand((grid[0], 1, 1), generator=generator).expand(grid).clone()


def box(grid: Grid, generator: Generator) -> Tensor:
    """Inpainting: a random box of tokens is free, the rest is known."""
    share = torch.zeros(grid)
    lows = [int(torch.randint(0, side, (), generator=generator)) for side in grid]
    highs = [int(torch.randint(low, side, (), generator=generator)) + 1 for low, side in zip(lows, grid, strict=True)]
    t, h, w = (slice(low, high) for low, high in zip(lows, highs, strict=True))
    share[t, h, w] = 1
    return share


def _known_frames(grid: Grid, frames: Tensor) -> Tensor:
    share = torch.ones(grid)
    share[frames] = 0
    return share


KINDS: dict[str, Callable[[Grid, Generator], Tensor]] = {
    "nothing": nothing,
    "first_frame": first_frame,
    "extend": extend,
    "keyframes": keyframes,
    "per_frame": per_frame,
    "box": box,
}


def check_mixture(mixture: Mapping[str, float]) -> None:
    """Refuse a mixture of unknown kinds or without any weight."""
    unknown = sorted(set(mixture) - set(KINDS))
    if unknown:
        raise ValueError(f"dit.known must name {', '.join(KINDS)}, got {unknown[0]!r}")
    if not mixture or min(mixture.values()) < 0 or sum(mixture.values()) <= 0:
        raise ValueError(f"dit.known must give at least one kind a share above 0, got {dict(mixture)}")


def draw_known(grid: Grid, mixture: Mapping[str, float], generator: Generator) -> Tensor:
    """Draw what is known of one clip; where a draw leaves nothing to learn (an image's first frame), all is free."""
    names = list(mixture)
    weights = torch.tensor([mixture[name] for name in names], dtype=torch.float64)
    kind = names[int(torch.multinomial(weights, 1, generator=generator))]
    share = KINDS[kind](grid, generator)
    return share if share.any() else torch.ones(grid)
