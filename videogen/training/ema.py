"""Average the weights over training with power functions (Karras et al. 2024, EDM2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from videogen.training.sharding import own_part


def power_gamma(width: float) -> float:
    """Return the exponent of the power-function average of a relative width (Karras et al. 2024, Eq. 126)."""
    low, high = 0.0, 1e4
    for _ in range(80):
        gamma = (low + high) / 2
        gamma_width = math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))
        low, high = (gamma, high) if gamma_width > width else (low, gamma)
    return (low + high) / 2


class PowerEMA:
    """Power-function averages of the weights, one copy for each width (EDM2, Karras et al. 2024, Eq. 3)."""

    def __init__(self, model: nn.Module, widths: tuple[float, ...]) -> None:
        self.gammas = [power_gamma(width) for width in widths]
        is_lora = hasattr(model, "peft_config")  # only the adapter is averaged: the model below it does not change
        named = {name: p for name, p in model.named_parameters() if p.requires_grad or not is_lora}
        self.live: list[Tensor] = list(named.values())
        self.names = list(named)
        self.copies = [[p.detach().clone() for p in self.live] for _ in widths]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move every copy towards the weights after the given number of steps, counted from 1."""
        live = list(map(own_part, self.live))
        for gamma, copy in zip(self.gammas, self.copies, strict=True):
            beta = (1 - 1 / step) ** (gamma + 1)
            torch._foreach_lerp_(list(map(own_part, copy)), live, 1 - beta)  # pyright: ignore[reportPrivateImportUsage]

    def swap(self, which: int = 0) -> None:
        """Exchange the live weights with one of the copies; a second call restores them."""
        for live, copy in zip(self.live, self.copies[which], strict=True):
            live.data, copy.data = copy.data, live.data
