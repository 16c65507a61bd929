"""Classifier-free guidance: combine the velocities of the prompt and of the negative prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from videogen.config.sample import SampleConfig
from videogen.packing.packs import Lengths


def guide(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022, Eq. 6, w = scale - 1)."""
    return torch.lerp(uncond, cond, scale)


def zero_star(cond: Tensor, uncond: Tensor, lengths: Sequence[int]) -> Tensor:
    """The unguided velocity, scaled clip by clip to fit the guided one best (CFG-Zero*, Fan et al. 2025, Eq. 8)."""
    fitted = [
        u * ((c * u).sum() / u.square().sum().clamp(min=1e-8))
        for c, u in zip(cond.split(list(lengths)), uncond.split(list(lengths)), strict=True)
    ]
    return torch.cat(fitted)


def is_guided(config: SampleConfig, sigma: Tensor) -> bool:
    """Whether the negative prompt is asked at this noise level."""
    low, high = config.guidance_interval
    return config.guidance != 1 and low <= float(sigma) <= high


def strengthen(answer: Tensor, blank: Tensor, config: SampleConfig, lengths: Lengths) -> Tensor:
    """The prompt's velocity, led away from the negative prompt's."""
    return guide(answer, zero_star(answer, blank, lengths) if config.cfg_zero else blank, config.guidance)


def texts_of(prompts: Sequence[str], config: SampleConfig) -> list[str]:
    """What is read for some clips: the prompts, and under guidance the negative prompt once for each."""
    guided = {config.guidance, config.guidance_2} - {1, None}
    return [*prompts, *([config.negative] * len(prompts) if guided else [])]
