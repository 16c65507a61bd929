"""Reproducible Brownian noise for the solvers that draw noise on the way."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from videogen.packing.noise import Shape


class NoisePath:
    """A clip's Brownian path over its signal-to-noise ratio: what is drawn on the way, in few steps or in many.

    Noise that is renewed along log ratios adds up to differences of one path, so a seed keeps its layout whatever the
    number of steps. A value is found by halving from ends that are drawn first, each half's middle from a seed of its
    own (the virtual Brownian tree of Li et al. 2020, section 4), so none has to be kept.
    """

    DEPTH, END = 16, 10.0  # 2^16 places, evenly over log ratios of -10 to 10: 0.0003 each

    def __init__(self, shape: Shape, seed: int) -> None:
        self.shape, self.seed = shape, seed

    def between(self, before: float, after: float) -> Tensor:
        """The noise (c, t, h, w), of deviation 1, of the way between two log ratios; before may be -inf."""
        first = min(self._place(before), 2**self.DEPTH - 1)
        last = max(self._place(after), first + 1)
        started = 0.0 if first < 0 else self._ratio(first)
        return (self._at(last) - (self._at(first) if started else 0.0)) / math.sqrt(self._ratio(last) - started)

    def _place(self, log_ratio: float) -> int:
        share = (min(max(log_ratio, -self.END), self.END) + self.END) / (2 * self.END)
        return -1 if log_ratio == -math.inf else round(share * 2**self.DEPTH)

    def _ratio(self, place: int) -> float:
        return math.exp(2 * (2 * self.END * place / 2**self.DEPTH - self.END))

    def _draw(self, place: int) -> Tensor:
        digest = hashlib.blake2b(f"{self.seed} {place}".encode(), digest_size=8).digest()
        return torch.randn(*self.shape, generator=torch.Generator().manual_seed(int.from_bytes(digest) >> 1))

    def _at(self, place: int) -> Tensor:
        low, high = 0, 2**self.DEPTH
        at_low = math.sqrt(self._ratio(low)) * self._draw(low)
        at_high = at_low + math.sqrt(self._ratio(high) - self._ratio(low)) * self._draw(high)
        while low < place < high:
            middle = (low + high) // 2
            a, m, b = (self._ratio(one) for one in (low, middle, high))
            at_middle = torch.lerp(at_low, at_high, (m - a) / (b - a))
            at_middle += math.sqrt((m - a) * (b - m) / (b - a)) * self._draw(middle)
            low, high, at_low, at_high = (
                (low, middle, at_low, at_middle) if place <= middle else (middle, high, at_middle, at_high)
            )
        return at_low if place == low else at_high
