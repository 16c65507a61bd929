"""Choose the patch size at each noise level: coarse while the clip takes shape, fine for its details (FlexiDiT).

    "1x4x4:0.4,1x2x2"  ->  [((1, 4, 4), 0.4), ((1, 2, 2), 0.6)]  ->  the patch at a noise level

A share counts the steps of a sampling run. Tokens keep the base patch between the steps, so that a solver never sees
the change: Anagnostidis et al. 2025, section 3.3.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from videogen.config.sample import SampleConfig, resolve_frames
from videogen.config.sizes import check_frames, check_size, parse_patch

Patch = tuple[int, int, int]
PatchShares = Sequence[tuple[Patch, float]]
PatchAt = Callable[[float], Patch]
"""The patch size at a noise level."""
DRAFT_STEPS, DRAFT_SHARE, DRAFT_COST = 8, 0.75, 0.25


def parse_patch_shares(text: str) -> PatchShares:
    """Parse patch sizes, noisy end first, each with its share of the steps; the last share is the rest by default.

    Raises a ValueError where the text does not parse, or the shares are not positive or do not sum to 1.
    """
    shares: list[tuple[Patch, float]] = []
    parts = text.split(",")
    for place, part in enumerate(parts, start=1):
        match = re.fullmatch(r"\s*(\d+x\d+x\d+)(?::([\d.]+))?\s*", part)
        if match is None or (match[2] is None and place < len(parts)):
            raise ValueError(
                f"patch must be sizes TxHxW, each but the last with its share of the steps, such as 1x4x4:0.4,1x2x2, "
                f"got {text!r}"
            )
        share = 1 - sum(share for _, share in shares) if match[2] is None else float(match[2])
        shares.append((parse_patch(match[1]), share))
    total = sum(share for _, share in shares)
    if min(share for _, share in shares) <= 0 or abs(total - 1) > 1e-6:
        raise ValueError(f"the shares of patch must be above 0 and sum to 1, got {text!r}; leave the last one out")
    return shares


def shares_of(config: SampleConfig, base: Patch) -> PatchShares:
    """Return the patch shares of the settings, by default the base patch for all steps."""
    return parse_patch_shares(config.patch) if config.patch else [(base, 1.0)]


def patch_name(patch: Patch) -> str:
    """(1, 4, 4) -> "1x4x4"."""
    return "x".join(map(str, patch))


def patch_at_sigma(shares: PatchShares, sigma: float, shift: float) -> Patch:
    """Return the patch size at a noise level of a run whose levels are s·u / (1 + (s - 1)·u), u from 1 down to 0."""
    progress = 1 - sigma / (shift - (shift - 1) * sigma)  # the share of the steps before this noise level
    for patch, share in shares:
        if progress < share - 1e-6:
            return patch
        progress -= share
    return shares[-1][0]


def patch_schedule(config: SampleConfig, allowed: Sequence[Patch]) -> PatchAt:
    """Return the patch size at each noise level for a model with these patch sizes, the base first.

    Raises a ValueError where the settings name another patch size.
    """
    shares = shares_of(config, allowed[0])
    for patch, _ in shares:
        if patch not in allowed:
            raise ValueError(f"patch must be of {', '.join(map(patch_name, allowed))}, got {patch_name(patch)}")
    return lambda sigma: patch_at_sigma(shares, sigma, config.shift)


def coarsest_patch(config: SampleConfig, base: Patch, *others: Patch) -> Patch:
    """Return the largest side of each axis among the patches of the settings, and others."""
    patches = [patch for patch, _ in shares_of(config, base)]
    t, h, w = (max(sides) for sides in zip(*patches, *others, strict=True))
    return t, h, w


def check_duration(latent_frames: int, multiple: int, stride: int) -> None:
    """Raise a ValueError with the two nearest durations where latent_frames is no multiple of the patch's frames.

    The first latent frame is one frame and each other is stride frames: 1 + (n - 1) * stride frames make n.
    """
    if latent_frames % multiple == 0:
        return
    below = latent_frames - latent_frames % multiple
    nearest = [1 + (n - 1) * stride for n in (below, below + multiple) if n]
    raise ValueError(
        f"patches of {multiple} latent frames take clips of {multiple}, {2 * multiple}, ... of them, "
        f"got {1 + (latent_frames - 1) * stride} frames, which make {latent_frames}; "
        f"try {' or '.join(map(str, nearest))} frames"
    )


def last_patch(config: SampleConfig, allowed: Sequence[Patch]) -> Patch:
    """Return the patch size of the last steps."""
    return shares_of(config, allowed[0])[-1][0]


def mean_token_share(config: SampleConfig, base: Patch) -> float:
    """Return the number of tokens of a clip, averaged over the steps, relative to that in base patches."""
    return sum(share * math.prod(base) / math.prod(patch) for patch, share in shares_of(config, base))


def draft_config(config: SampleConfig, allowed: Sequence[Patch]) -> SampleConfig:
    """Return the settings of a draft: the same layout in few steps, most of them coarse, a quarter of the tokens."""
    largest, last = max(allowed, key=math.prod), last_patch(config, allowed)
    coarse = f"{patch_name(largest)}:{DRAFT_SHARE},{patch_name(last)}"
    draft = config if largest == last else replace(config, patch=coarse)
    cheaper = mean_token_share(draft, last) / mean_token_share(config, last)
    steps = min(DRAFT_STEPS, math.floor(DRAFT_COST * config.steps / cheaper))
    return replace(draft, steps=max(1, steps))


def latent_grid(
    config: SampleConfig, patches: Sequence[Patch], *, time_stride: int, space_stride: int
) -> tuple[int, int, int]:
    """Compute the size (t, h, w) of a clip's latent from its settings, the one check that a model can make the clip.

    A ValueError names the two nearest sizes or lengths where the VAE's strides or the patches (the base first) forbid
    those asked for.
    """
    frames, (pt, ph, pw) = resolve_frames(config, time_stride), coarsest_patch(config, patches[0], patches[0])
    check_size(config.width, config.height, space_stride * max(ph, pw))
    check_frames(frames, time_stride)
    grid = 1 + (frames - 1) // time_stride, config.height // space_stride, config.width // space_stride
    check_duration(grid[0], pt, time_stride)
    return grid
