"""Clips longer or larger than a model was trained on: the rotary frequencies of each axis, slowed to fit.

    frequencies (pairs,) radians a base cell, trained and wanted extent in base cells  ->  frequencies (pairs,)

With scale = wanted / trained, of each axis and each clip by itself (as decoupled in FiT, Lu et al. 2024). An axis that
is no longer than trained is left as it is, to the bit.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from videogen.packing.packs import Grid, Scaling, positions
from videogen.packing.patch_schedule import Patch

CONSERVATIVE = 0.9  # of a period: where RIFLEx's authors still saw the last frames repeat the first
TIME = 0


def interpolate(ladder: Tensor, trained: float, wanted: float, axis: int) -> Tensor:
    """Every place m goes to m / scale (position interpolation, Chen et al. 2023, Eq. 3): neighbours come closer."""
    return ladder * (trained / wanted)


def ntk(ladder: Tensor, trained: float, wanted: float, axis: int) -> Tensor:
    """The fastest pair stays, the slowest is interpolated, those between in geometric steps.

    Base b becomes b * scale^(d / (d - 2)), so frequency i of d / 2 is divided by scale^(2i / (d - 2)) (NTK-aware
    interpolation; Peng et al. 2023, YaRN, section 3.1).
    """
    return ladder * (trained / wanted) ** torch.linspace(0, 1, len(ladder), dtype=ladder.dtype)


def riflex(ladder: Tensor, trained: float, wanted: float, axis: int) -> Tensor:
    """Slow one frequency of time, so that no frame of the longer clip is told that it is the first again.

    It becomes 0.9 * 2 pi / wanted (RIFLEx, Zhao et al. 2025, Eq. 8). Which one repeats first is watched for in the
    paper; here it is the fastest whose period the trained length did not complete.
    """
    slower = ladder.clamp(max=CONSERVATIVE * 2 * math.pi / wanted)
    first = int((ladder > 2 * math.pi / trained).sum())
    place = torch.arange(len(ladder)) == first
    return torch.where(place, slower, ladder) if axis == TIME else ladder


SCALINGS: dict[str, Callable[[Tensor, float, float, int], Tensor]] = {
    "interpolate": interpolate,
    "ntk": ntk,
    "riflex": riflex,
}


@functools.lru_cache(maxsize=1024)
def frequencies(
    size: int, axis: int, theta: float, grid: Grid, patch: Patch, base: Patch, scaling: Scaling | None
) -> Tensor:
    """The frequencies of an axis's pairs for a clip, (size / 2,) float64, in radians a base cell."""
    ladder = theta ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    if scaling is None:
        return ladder
    trained, wanted = scaling.trained[axis], grid[axis] * patch[axis] / base[axis]
    return SCALINGS[scaling.kind](ladder, trained, wanted, axis) if wanted > trained else ladder


class Rotary(NamedTuple):
    """Cosines and sines of the rotation of each pair of channels, both (n, 1, e/2) float32."""

    cos: Tensor
    sin: Tensor


def axis_sizes(head_size: int) -> tuple[int, int, int]:
    """Channels of a head that turn with time, row and column: 44, 42, 42 of 128 (Wan)."""
    side = 2 * (head_size // 6)
    return head_size - 2 * side, side, side


@functools.lru_cache(maxsize=4)  # enough for a sampling run; a pack of training never comes again
def rotary(
    grids: tuple[Grid, ...],
    patch: Patch,
    head_size: int,
    device: torch.device,
    *,
    base: Patch = (1, 2, 2),
    theta: float = 1e4,
    scaling: Scaling | None = None,
) -> Rotary:
    """The rotary tables of a pack (Su et al. 2021, one ladder an axis as in Wan).

    They depend on host integers alone, so a sampling run computes them once, and training once a size of clip.
    """
    clips = [remembered(grid)(grid, patch, head_size, device, base, theta, scaling) for grid in grids]
    return Rotary(torch.cat([clip.cos for clip in clips]), torch.cat([clip.sin for clip in clips]))


def clip_rotary(
    grid: Grid, patch: Patch, head_size: int, device: torch.device, base: Patch, theta: float, scaling: Scaling | None
) -> Rotary:
    """The rotary tables of a clip; float64 until the end, as diffusers does."""
    where, sizes = positions([grid], patch, base), axis_sizes(head_size)
    ladders = [frequencies(sizes[axis], axis, theta, grid, patch, base, scaling) for axis in range(3)]
    turned = torch.cat([torch.outer(where[:, axis], ladders[axis]) for axis in range(3)], dim=1)
    angles = rearrange(turned, "n pairs -> n 1 pairs")
    return Rotary(angles.cos().float().to(device), angles.sin().float().to(device))


of_small, of_large = (functools.lru_cache(maxsize=num)(clip_rotary) for num in (256, 8))


def remembered(grid: Grid) -> Callable[..., Rotary]:
    """The tables of many small clips or of few large ones, which at Wan's sizes take ten megabytes each."""
    return of_small if math.prod(grid) <= 1024 else of_large


def rotate(x: Tensor, table: Rotary) -> Tensor:
    """Turn neighbouring channel pairs of x (n, heads, e) by their angles."""
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    pairs = rearrange(exact, "n heads (pairs two) -> n heads pairs two", two=2)
    if torch.compiler.is_compiling():  # it knows no complex numbers
        even, odd = pairs.unbind(-1)
        turned = torch.stack((even * table.cos - odd * table.sin, even * table.sin + odd * table.cos), dim=-1)
    else:  # the same products and sums, in one pass: ten times as fast on CPU
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(*table))
    return rearrange(turned, "n heads pairs two -> n heads (pairs two)").to(x.dtype)
