"""Classifier-free guidance: lead the velocity under the prompt away from that under the negative prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from videogen.config.sample import SampleConfig


def guide(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """Extrapolate from the unguided to the guided velocity (Ho & Salimans 2022, Eq. 6, w = scale - 1)."""
    return torch.lerp(uncond, cond, scale)


def zero_star(cond: Tensor, uncond: Tensor) -> Tensor:
    """Scale the unguided velocity (n, c) of one clip to fit the guided one best (CFG-Zero*, Fan et al. 2025, Eq. 8)."""
    return uncond * ((cond * uncond).sum() / uncond.square().sum().clamp(min=1e-8))


def apply_guidance(cond: Tensor, uncond: Tensor, scale: float, *, cfg_zero: bool) -> Tensor:
    """Combine the velocities (n, c) of one clip under its prompt and under its negative prompt."""
    return guide(cond, zero_star(cond, uncond) if cfg_zero else uncond, scale)


def guidance_scale(config: SampleConfig, sigma: float, *, second_expert: bool) -> float:
    """Look up the guidance at a noise level: 1, which needs no negative prompt, outside of the guidance interval."""
    low, high = config.guidance_interval
    own = second_expert and config.guidance_2 is not None
    return (config.guidance_2 if own else config.guidance) if low <= sigma <= high else 1.0  # type: ignore[return-value]


def prompts_and_negatives(prompts: Sequence[str], config: SampleConfig) -> list[str]:
    """List the texts that clips are denoised under: their prompts, then under guidance each one's negative prompt."""
    is_guided = {config.guidance, config.guidance_2} - {1, None}
    return [*prompts, *([config.negative] * len(prompts) if is_guided else [])]
