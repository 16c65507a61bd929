"""Scale a network's input and output so that it predicts only what its noised input leaves open.

variance (c,) of each channel, noise levels (u, 1)  ->  Preconditioning, four factors (u, c)
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

MAX_GATE_SNR = 4.0  # At a higher signal-to-noise ratio, noise hardly shows and an error of the gate would.


class Preconditioning(NamedTuple):
    """The factors of velocity = c_skip z + c_out (value + c_gate z gate), for a network that sees c_in z."""

    c_in: Tensor
    c_skip: Tensor
    c_out: Tensor
    c_gate: Tensor


def precondition(variance: Tensor, sigma: Tensor) -> Preconditioning:
    """Compute the factors (u, c) for data of variance (c,) at noise levels (u, 1).

    The best linear estimate of the velocity from z = (1 - s) x + s e, which is c_skip z, needs no network. The network
    sees c_in z and predicts the remainder at unit variance, `value`: the clean value where noise hides it, and the
    noise where it does not. So little of a narrow network goes into copying (Karras et al. 2022, Eq. 7, with a variance
    for each channel, for velocities).

    A patch may hold more numbers than the network is wide. Such a network cannot output their noise, even where there
    is nothing else, as on a plain wall. Its second output, `gate`, says how much of z passes by the network instead:
    -1 removes the whole linear estimate of the clean value, up to a signal-to-noise ratio of MAX_GATE_SNR (a Wiener
    filter that depends on the place).
    """
    noised_variance = (1 - sigma).square() * variance + sigma.square()
    c_in = noised_variance.rsqrt()
    c_skip = (sigma - (1 - sigma) * variance) / noised_variance
    c_gate = c_in * ((1 - sigma) * variance.sqrt() / sigma).clamp(max=MAX_GATE_SNR)
    return Preconditioning(c_in, c_skip, -variance.sqrt() * c_in, c_gate)
