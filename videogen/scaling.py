"""Clips longer or larger than a model was trained on: the rotary frequencies of each axis, slowed to fit.

    frequencies (pairs,) radians a base cell, trained and wanted extent in base cells  ->  frequencies (pairs,)

With scale = wanted / trained, of each axis and each clip by itself (as decoupled in FiT, Lu et al. 2024). An axis that
is no longer than trained is left as it is, to the bit.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from videogen.packing import Grid, Patch, Scaling

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
