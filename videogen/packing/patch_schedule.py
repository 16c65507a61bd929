"""Which patch size cuts a clip at which noise level: coarse while it takes shape, fine for its details (FlexiDiT).

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
Schedule = Sequence[tuple[Patch, float]]
Cut = Callable[[float], Patch]
"""The patch size at a noise level."""
DRAFT_STEPS, DRAFT_SHARE, DRAFT_COST = 8, 0.75, 0.25


def parse_patches(text: str) -> Schedule:
    """Patch sizes from the noisy end on, each with its share of the steps; the last may leave it out: it has the rest.

    A ValueError where the text is no schedule or its shares do not make 1.
    """
    found: list[tuple[Patch, float]] = []
    parts = text.split(",")
    for place, part in enumerate(parts):
        match = re.fullmatch(r"\s*(\d+x\d+x\d+)(?::([\d.]+))?\s*", part)
        rest = place == len(parts) - 1
        if match is None or (match[2] is None and not rest):
            raise ValueError(
                f"patch must be sizes TxHxW, each but the last with its share of the steps, such as 1x4x4:0.4,1x2x2, "
                f"got {text!r}"
            )
        share = 1 - sum(share for _, share in found) if match[2] is None else float(match[2])
        found.append((parse_patch(match[1]), share))
    total = sum(share for _, share in found)
    if min(share for _, share in found) <= 0 or abs(total - 1) > 1e-6:
        raise ValueError(f"the shares of patch must be above 0 and make 1 in all, got {text!r}; leave the last one out")
    return found


def patch_name(patch: Patch) -> str:
    """(1, 4, 4) -> "1x4x4"."""
    return "x".join(map(str, patch))


def check_patches(schedule: Schedule, known: Sequence[Patch]) -> None:
    """Refuse a patch size that a model does not have."""
    for patch, _ in schedule:
        if patch not in known:
            raise ValueError(f"patch must be of {', '.join(map(patch_name, known))}, got {patch_name(patch)}")


def patch_at(schedule: Schedule, sigma: float, shift: float) -> Patch:
    """The patch size at a noise level, on a run whose levels are s·u / (1 + (s - 1)·u) for u from 1 down to 0."""
    done = 1 - sigma / (shift - (shift - 1) * sigma)  # the share of the steps that lies behind
    for patch, share in schedule:
        if done < share - 1e-6:
            return patch
        done -= share
    return schedule[-1][0]


def cut_by(config: SampleConfig, known: Sequence[Patch]) -> Cut:
    """How the settings cut a clip for a model that knows some patch sizes, the base first; a ValueError for others."""
    schedule = parse_patches(config.patch) if config.patch else [(known[0], 1.0)]
    check_patches(schedule, known)
    return lambda sigma: patch_at(schedule, sigma, config.shift)


def coarsest(config: SampleConfig, known: Sequence[Patch]) -> Patch:
    """The largest patch sides that a clip of these settings has to be a multiple of."""
    patches = [patch for patch, _ in parse_patches(config.patch)] if config.patch else []
    t, h, w = (max(sides) for sides in zip(known[0], *patches, strict=True))
    return t, h, w


def check_duration(latent_frames: int, multiple: int, stride: int) -> None:
    """Refuse a clip whose latent frames patches of several do not divide, offering the two nearest that they do.

    An image is a latent frame, and so 1 + (n - 1) * stride frames are n.
    """
    if latent_frames % multiple == 0:
        return
    below = latent_frames - latent_frames % multiple
    near = [1 + (n - 1) * stride for n in (below, below + multiple) if n]
    given = f"{1 + (latent_frames - 1) * stride} frames, which make {latent_frames}"
    raise ValueError(
        f"patches of {multiple} latent frames take clips of {multiple}, {2 * multiple}, ... of them, got {given}; "
        f"try {' or '.join(map(str, near))} frames"
    )


def last_patch(config: SampleConfig, known: Sequence[Patch]) -> Patch:
    """The patch size in which a clip of these settings is finished."""
    return parse_patches(config.patch)[-1][0] if config.patch else known[0]


def mean_share(config: SampleConfig, base: Patch) -> float:
    """Tokens of a clip, averaged over the steps, against those in base patches."""
    schedule = parse_patches(config.patch) if config.patch else [(base, 1.0)]
    return sum(share * math.prod(base) / math.prod(patch) for patch, share in schedule)


def draft(config: SampleConfig, known: Sequence[Patch]) -> SampleConfig:
    """The same clip in few steps, most of them in the coarsest patches: its layout, with a quarter of the tokens."""
    largest, last = max(known, key=math.prod), last_patch(config, known)
    coarse = f"{patch_name(largest)}:{DRAFT_SHARE},{patch_name(last)}"
    quick = config if largest == last else replace(config, patch=coarse)
    cheaper = mean_share(quick, last) / mean_share(config, last)
    steps = min(DRAFT_STEPS, math.floor(DRAFT_COST * config.steps / cheaper))
    return replace(quick, steps=max(1, steps))


def latent_grid(
    config: SampleConfig, patches: Sequence[Patch], *, time_stride: int, space_stride: int
) -> tuple[int, int, int]:
    """Compute the size (t, h, w) of a clip's latent from its settings, the one check that a model can make the clip.

    A ValueError names the two nearest sizes or lengths where the VAE's strides or the patches (the base first) forbid
    those asked for.
    """
    frames, (pt, ph, pw) = resolve_frames(config, time_stride), coarsest(config, patches)
    check_size(config.width, config.height, space_stride * max(ph, pw))
    check_frames(frames, time_stride)
    grid = 1 + (frames - 1) // time_stride, config.height // space_stride, config.width // space_stride
    check_duration(grid[0], pt, time_stride)
    return grid
