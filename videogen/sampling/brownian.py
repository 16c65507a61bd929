"""Brownian noise for the solvers that add noise on the way: the same for a seed, in few steps or in many."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from videogen.packing.noise import Shape


class BrownianPath:
    """A clip's Brownian path over its signal-to-noise ratio, from which every increment is computed when asked for.

    Noise that is renewed along log ratios adds up to differences of one path, so a seed keeps its layout whatever the
    number of steps. A value is found by bisection from the two ends, each midpoint sampled from a seed of its own (the
    virtual Brownian tree of Li et al. 2020, section 4). Only the last bisection's values are stored: a step begins
    where the one before it ended, and near it most midpoints are the same.
    """

    DEPTH, END = 16, 10.0  # 2^16 grid points, evenly over log ratios of -10 to 10: 0.0003 apart

    def __init__(self, shape: Shape, seed: int) -> None:
        self.shape, self.seed = shape, seed
        self._last: dict[int, Tensor] = {}  # grid point -> value, on the way to the last point asked for

    def increment(self, before: float, after: float) -> Tensor:
        """Compute the noise (c, t, h, w), of deviation 1, between two log ratios; before may be -inf."""
        first = min(self._grid_point(before), 2**self.DEPTH - 1)
        last = max(self._grid_point(after), first + 1)
        start, value = (self._ratio(first), self._value(first)) if first >= 0 else (0.0, 0.0)
        return (self._value(last) - value) / math.sqrt(self._ratio(last) - start)

    def _grid_point(self, log_ratio: float) -> int:
        share = (min(max(log_ratio, -self.END), self.END) + self.END) / (2 * self.END)
        return -1 if log_ratio == -math.inf else round(share * 2**self.DEPTH)

    def _ratio(self, point: int) -> float:
        return math.exp(2 * (2 * self.END * point / 2**self.DEPTH - self.END))

    def _normal(self, point: int) -> Tensor:
        digest = hashlib.blake2b(f"{self.seed} {point}".encode(), digest_size=8).digest()
        return torch.randn(*self.shape, generator=torch.Generator().manual_seed(int.from_bytes(digest) >> 1))

    def _value(self, point: int) -> Tensor:
        low, high, values = 0, 2**self.DEPTH, self._last
        if low not in values:
            values[low] = math.sqrt(self._ratio(low)) * self._normal(low)
            values[high] = values[low] + math.sqrt(self._ratio(high) - self._ratio(low)) * self._normal(high)
        way = [low, high]
        while low < point < high:
            middle = (low + high) // 2
            if middle not in values:
                a, m, b = self._ratio(low), self._ratio(middle), self._ratio(high)
                values[middle] = torch.lerp(values[low], values[high], (m - a) / (b - a))
                values[middle] += math.sqrt((m - a) * (b - m) / (b - a)) * self._normal(middle)
            way.append(middle)
            low, high = (low, middle) if point <= middle else (middle, high)
        self._last = {place: values[place] for place in way}
        return values[low if point == low else high]
