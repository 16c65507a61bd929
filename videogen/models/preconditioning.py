"""Scale the input and the output of a network so that it predicts only what its noised input leaves open."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

MOST_GATED = 4.0  # beyond, noise hardly shows and an error of the gate would


class Scales(NamedTuple):
    """What a noised value and a network's answers are multiplied by, so that the network meets unit variances alone."""

    enter: Tensor
    keep: Tensor
    put: Tensor
    gate: Tensor


def precondition(variance: Tensor, sigma: Tensor) -> Scales:
    """velocity = keep z + put (value + gate z say), for data of variance (c,) at noise levels (u, 1): each (u, c).

    What can be said of a value by itself, its linear estimate from z = (1 - s) x + s e, needs no network, which sees
    enter * z and puts out the rest at unit variance, value: the clean value where noise hides it and the noise where it
    does not. So little of a narrow network goes into copying (Karras et al. 2022, Eq. 7, with a variance for each
    channel, for velocities). A patch may hold more numbers than the network is wide; then it cannot put out their noise
    even where there is nothing else, as on a plain wall. It says how much of z to let through instead: say = -1 takes
    all of the linear estimate away, up to a signal-to-noise ratio of MOST_GATED (a Wiener filter that knows its place).
    """
    total = (1 - sigma).square() * variance + sigma.square()
    enter = total.rsqrt()
    gate = enter * ((1 - sigma) * variance.sqrt() / sigma).clamp(max=MOST_GATED)
    return Scales(enter, (sigma - (1 - sigma) * variance) / total, -variance.sqrt() * enter, gate)
