"""Rotary embedding of each token's place in its clip, also for clips longer or larger than a model was trained on.

    grids [(t, h, w), ...], patch, scaling  ->  Rotary, each pair's turn (n, 1, e/2);  x (n, heads, e)  ->  x rotated

Each axis of each clip is scaled by itself (as decoupled in FiT, Lu et al. 2024), by extent / trained extent. An axis
that is no longer than trained keeps its frequencies bit for bit.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from videogen.packing.packs import Grid, RopeScaling, patch_positions
from videogen.packing.patch_schedule import Patch

THETA = 1e4  # base of the geometric series of frequencies, Wan's
RIFLEX_PERIODS = 0.9  # Less than one: at a whole period, RIFLEx's authors still saw the last frames repeat the first.


class Rotary(NamedTuple):
    """Cosines and sines of the rotation of each pair of channels, both (n, 1, e/2) float32."""

    cos: Tensor
    sin: Tensor
    turn: Tensor  # cos + i sin, made once a run: every block turns queries and keys by it


def axis_sizes(head_size: int) -> tuple[int, int, int]:
    """Divide a head's channels among time, rows and columns: 44, 42, 42 of 128 (Wan)."""
    side = 2 * (head_size // 6)
    return head_size - 2 * side, side, side


def scale_by_interpolation(frequencies: Tensor, trained_extent: float, extent: float, axis: int) -> Tensor:
    """Move every position m to m / scale (position interpolation, Chen et al. 2023, Eq. 3): neighbours come closer."""
    return frequencies * (trained_extent / extent)


def scale_by_ntk(frequencies: Tensor, trained_extent: float, extent: float, axis: int) -> Tensor:
    """Keep the fastest pair, interpolate the slowest, and divide those between by geometric steps.

    Base b becomes b * scale^(d / (d - 2)), so frequency i of d / 2 is divided by scale^(2i / (d - 2)) (NTK-aware
    interpolation; Peng et al. 2023, YaRN, section 3.1).
    """
    exponents = torch.linspace(0, 1, len(frequencies), dtype=frequencies.dtype)
    return frequencies * (trained_extent / extent) ** exponents


def scale_by_riflex(frequencies: Tensor, trained_extent: float, extent: float, axis: int) -> Tensor:
    """Slow one frequency of time, so that no frame of a longer clip gets the first frame's angle again.

    It becomes 0.9 * 2 pi / extent (RIFLEx, Zhao et al. 2025, Eq. 8). The paper finds the frequency that repeats first
    by watching samples; here it is the fastest that completes no period within the trained extent.
    """
    if axis != 0:  # not time
        return frequencies
    slowed = frequencies.clamp(max=RIFLEX_PERIODS * 2 * math.pi / extent)
    intrinsic = int((frequencies > 2 * math.pi / trained_extent).sum())
    is_intrinsic = torch.arange(len(frequencies)) == intrinsic
    return torch.where(is_intrinsic, slowed, frequencies)


FREQUENCY_SCALINGS: dict[str, Callable[[Tensor, float, float, int], Tensor]] = {
    "interpolate": scale_by_interpolation,
    "ntk": scale_by_ntk,
    "riflex": scale_by_riflex,
}


@functools.lru_cache(maxsize=1024)
def axis_frequencies(
    size: int, axis: int, grid: Grid, patch: Patch, base: Patch, scaling: RopeScaling | None
) -> Tensor:
    """Compute the frequencies of one axis of a clip, (size / 2,) float64, in radians per base cell."""
    frequencies = THETA ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    if scaling is None:
        return frequencies
    trained_extent, extent = scaling.trained[axis], grid[axis] * patch[axis] / base[axis]  # both in base cells
    if extent <= trained_extent:
        return frequencies
    return FREQUENCY_SCALINGS[scaling.kind](frequencies, trained_extent, extent, axis)


def clip_rotary(
    grid: Grid, patch: Patch, head_size: int, device: torch.device, base: Patch, scaling: RopeScaling | None
) -> Rotary:
    """Compute the rotary tables of one clip, in float64 until the end as diffusers does."""
    places = patch_positions([grid], patch, base)
    angles = [
        torch.outer(places[:, axis], axis_frequencies(size, axis, grid, patch, base, scaling))
        for axis, size in enumerate(axis_sizes(head_size))
    ]
    table = rearrange(torch.cat(angles, dim=1), "n pairs -> n 1 pairs")
    cos, sin = table.cos().float().to(device), table.sin().float().to(device)
    return Rotary(cos, sin, torch.complex(cos, sin))


# Many small clips are kept, but few large ones: at Wan's sizes the tables of one take ten megabytes.
small_clip_rotary, large_clip_rotary = (functools.lru_cache(maxsize=num)(clip_rotary) for num in (256, 8))


@functools.lru_cache(maxsize=4)  # This is enough for a sampling run; a pack of training never comes again.
def rotary(
    grids: tuple[Grid, ...],
    patch: Patch,
    head_size: int,
    device: torch.device,
    *,
    base: Patch = (1, 2, 2),
    scaling: RopeScaling | None = None,
) -> Rotary:
    """Compute the rotary tables of a pack (Su et al. 2021; one geometric series of frequencies per axis, as in Wan).

    They depend on host integers alone, so sampling computes them once a run, and training once for each size of clip.
    """
    options = patch, head_size, device, base, scaling
    clips = [(small_clip_rotary if math.prod(grid) <= 1024 else large_clip_rotary)(grid, *options) for grid in grids]
    return Rotary(*map(torch.cat, zip(*clips, strict=True)))


def rotate(x: Tensor, table: Rotary) -> Tensor:
    """Rotate neighbouring channel pairs of x (n, heads, e) by their angles."""
    pairs = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # torch.compile does not support complex tensors.
        even, odd = pairs.unbind(-1)
        rotated = torch.stack((even * table.cos - odd * table.sin, even * table.sin + odd * table.cos), dim=-1)
    else:  # Complex multiplication makes the same products and sums in one pass: it is 10 times as fast on CPU.
        rotated = torch.view_as_real(torch.view_as_complex(pairs) * table.turn)
    return rotated.flatten(-2).to(x.dtype)
