"""From noise to a clip: noise levels, guidance and solvers, as pure functions that never see a network.

    velocity(x, sigma), noise x (n, c·pt·ph·pw), sigmas (steps + 1,) from 1 to 0  ->  clean tokens

A velocity is any function of where we are and how noisy it is. sigma is a tensor of one value, float32; solver state is
float32 throughout. Most samplers follow one path; those that draw more noise on the way are handed it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]
Sampler = Callable[[Velocity, Tensor, Tensor], Tensor]
Fresh = Callable[[Tensor, Tensor], Tensor]
"""Noise (n, c·pt·ph·pw) of deviation 1 for the way from one log signal-to-noise ratio to a higher one."""
NoisySampler = Callable[[Velocity, Tensor, Tensor, Fresh], Tensor]


class Scheduler(Protocol):
    """What diffusers' flow schedulers share."""

    config: dict[str, object]
    timesteps: Tensor
    sigmas: Tensor

    def set_timesteps(self, num_inference_steps: int) -> None:
        """Choose the noise levels."""

    def set_begin_index(self, begin_index: int) -> None:
        """Say where it stands, or it looks for its place by the timestep, and two may be equal."""

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor, *, return_dict: bool) -> tuple[Tensor]:
        """From a noise level to the next."""
        ...


def sigma_schedule(steps: int, *, shift: float = 1.0) -> Tensor:
    """Noise levels from 1 to 0, (steps + 1,); shift > 1 lingers at high noise (Esser et al. 2024, Eq. 23)."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    sigmas = torch.linspace(1, 0, steps + 1)
    return (shift * sigmas / (1 + (shift - 1) * sigmas)).clamp(max=1)  # rounding puts the first of some shifts above 1


def log_snr(sigma: Tensor) -> Tensor:
    """log(alpha / sigma) with alpha = 1 - sigma."""
    return torch.log((1 - sigma) / sigma)


def sample_euler(velocity: Velocity, x: Tensor, sigmas: Tensor) -> Tensor:
    """First order: follow the velocity straight to the next noise level."""
    for sigma, next_sigma in pairwise(sigmas):
        x = x + (next_sigma - sigma) * velocity(x, sigma)
    return x


def sample_heun(velocity: Velocity, x: Tensor, sigmas: Tensor) -> Tensor:
    """Second order from two evaluations a step (Karras et al. 2022, Alg. 1)."""
    for sigma, next_sigma in pairwise(sigmas):
        slope = velocity(x, sigma)
        # Training never draws sigma = 0, so the network means nothing there: the last step is Euler's.
        if next_sigma > 0:
            slope = (slope + velocity(x + (next_sigma - sigma) * slope, next_sigma)) / 2
        x = x + (next_sigma - sigma) * slope
    return x


def half_ahead(clean: Tensor, h: Tensor, last: tuple[Tensor, Tensor] | None) -> Tensor:
    """Where clean tokens are half a step h on, by those of the last step and its h (DPM-Solver++ 2M)."""
    # At the two ends the log signal-to-noise is infinite and h / last_h says nothing: a first-order step.
    if last is None or not ((h / last[1]).isfinite() and (last[1] / h).isfinite()):
        return clean
    return clean + h / (2 * last[1]) * (clean - last[0])


def sample_dpmpp_2m(velocity: Velocity, x: Tensor, sigmas: Tensor) -> Tensor:
    """Second order from one evaluation a step (Lu et al. 2022, DPM-Solver++ 2M, with alpha = 1 - sigma)."""
    last = None
    for sigma, next_sigma in pairwise(sigmas):
        clean = x - sigma * velocity(x, sigma)
        h = log_snr(next_sigma) - log_snr(sigma)
        x = next_sigma / sigma * x - (1 - next_sigma) * torch.expm1(-h) * half_ahead(clean, h, last)
        last = clean, h
    return x


def sample_dpmpp_2m_sde(velocity: Velocity, x: Tensor, sigmas: Tensor, fresh: Fresh) -> Tensor:
    """As dpmpp_2m, but at each step part of the noise is drawn anew (Lu et al. 2022, SDE-DPM-Solver++ 2M, App. B).

    What an undertrained network got wrong is noise again a step later, and corrected: slower to converge, and further.
    """
    last = None
    for sigma, next_sigma in pairwise(sigmas):
        clean = x - sigma * velocity(x, sigma)
        before, after = log_snr(sigma), log_snr(next_sigma)
        h = after - before
        renewed = -torch.expm1(-2 * h)  # the share of the noise's variance
        x = next_sigma / sigma * torch.exp(-h) * x + (1 - next_sigma) * renewed * half_ahead(clean, h, last)
        if next_sigma > 0:
            x = x + next_sigma * renewed.sqrt() * fresh(before, after)
        last = clean, h
    return x


SAMPLERS: dict[str, Sampler] = {"euler": sample_euler, "heun": sample_heun, "dpmpp_2m": sample_dpmpp_2m}
NOISY_SAMPLERS: dict[str, NoisySampler] = {"dpmpp_2m_sde": sample_dpmpp_2m_sde}
DIFFUSERS: dict[str, tuple[str, dict[str, object]]] = {
    "unipc": ("UniPCMultistepScheduler", {"prediction_type": "flow_prediction", "use_flow_sigmas": True}),
    "deis": ("DEISMultistepScheduler", {"prediction_type": "flow_prediction", "use_flow_sigmas": True}),
    "dpmpp_multistep": ("DPMSolverMultistepScheduler", {"prediction_type": "flow_prediction", "use_flow_sigmas": True}),
    "flow_euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "flow_heun": ("FlowMatchHeunDiscreteScheduler", {}),
}


def check_sampler(name: str) -> None:
    """Refuse a sampler that is neither ours nor one of diffusers' for flows."""
    if name not in (names := [*SAMPLERS, *NOISY_SAMPLERS, *DIFFUSERS]):
        raise ValueError(f"sampler must be one of {', '.join(names)}, got {name!r}")


def denoise(
    name: str,
    velocity: Velocity,
    noise: Tensor,
    fresh: Fresh,
    *,
    steps: int,
    shift: float,
    scheduler: Scheduler | None = None,
) -> Tensor:
    """Run a sampler by name from noise to clean tokens; fresh is further noise, for those that draw it on the way.

    A checkpoint's own scheduler says the rest of its settings where it is the one that is named. The network then hears
    its timesteps over 1000, in float64 so that they stay whole: Wan's are rounded down and not quite its noise levels.
    """
    check_sampler(name)
    sigmas = sigma_schedule(steps, shift=shift).to(noise.device)
    if name in SAMPLERS:
        return SAMPLERS[name](velocity, noise, sigmas)
    if name in NOISY_SAMPLERS:
        return NOISY_SAMPLERS[name](velocity, noise, sigmas, fresh)
    chosen = make_scheduler(name, shift, like=scheduler)
    own = scheduler is not None and type(chosen) is type(scheduler)
    return sample_with_diffusers(chosen, velocity, noise, steps=steps, whole=scheduler is not None, to_the_end=not own)


def make_scheduler(name: str, shift: float, *, like: Scheduler | None = None) -> Scheduler:
    """One of diffusers' flow schedulers, with the settings of another of its class."""
    import diffusers

    class_name, options = DIFFUSERS[name]
    kind = getattr(diffusers, class_name)
    key = "flow_shift" if "use_flow_sigmas" in options else "shift"
    if like is not None and type(like) is kind:
        return kind.from_config(like.config, **{key: shift})
    return kind(**options, **{key: shift})


def sample_with_diffusers(
    scheduler: Scheduler, velocity: Velocity, x: Tensor, *, steps: int, whole: bool = False, to_the_end: bool = True
) -> Tensor:
    """Run a scheduler at the noise levels that it sets, or telling the network its timesteps instead.

    To the end: DEIS of diffusers stays at its last noise level, and a step of Euler's takes it on to none.
    """
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(0)
    timesteps, sigmas = scheduler.timesteps, scheduler.sigmas
    for i, (timestep, sigma) in enumerate(zip(timesteps, sigmas[:-1].to(x), strict=True)):
        # Not always timestep / 1000: some round it down to an integer.
        slope = velocity(x, timestep.double() / 1000 if whole else sigma)
        if i == len(timesteps) - 1 and sigmas[-1] > 0 and to_the_end:
            return x - sigma * slope
        x = scheduler.step(slope, timestep, x, return_dict=False)[0]
    return x
