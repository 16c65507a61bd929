"""Solvers from noise to clean tokens, as pure functions that never see a network.

    velocity(x, sigma), noise x (n, c·pt·ph·pw), sigmas (steps + 1,) from 1 to 0  ->  clean tokens

A velocity is any function of the tokens and of their noise level, a tensor of one float32 value; solver state is
float32 throughout. Most solvers are deterministic; those that add noise on the way are given a source of it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from videogen.config.sample import check_sampler
from videogen.models.checkpoint_config import scheduler_settings
from videogen.packing.noise import interpolate

Velocity = Callable[[Tensor, Tensor], Tensor]
AfterStep = Callable[[Tensor, Tensor], Tensor]
"""Tokens after a step, and the noise level at its start  ->  the tokens to go on with."""
Sampler = Callable[..., Tensor]  # (velocity, x, sigmas, after_step), the last of them optional
BrownianIncrement = Callable[[Tensor, Tensor], Tensor]
"""Noise (n, c·pt·ph·pw) of deviation 1 for the way from one log signal-to-noise ratio to a higher one."""
StochasticSampler = Callable[..., Tensor]  # (velocity, x, sigmas, brownian_increment, after_step)


class Interrupted(Exception):
    """Raised by an after_step to end a run with the tokens that it was given."""

    def __init__(self, tokens: Tensor) -> None:
        super().__init__("the run was interrupted")
        self.tokens = tokens


class Scheduler(Protocol):
    """What diffusers' flow schedulers share."""

    config: dict[str, object]
    order: int  # timesteps a step
    timesteps: Tensor
    sigmas: Tensor

    def set_timesteps(self, num_inference_steps: int) -> None:
        """Set the noise levels."""

    def set_begin_index(self, begin_index: int) -> None:
        """Set the first step: without it the scheduler searches by timestep, and two of them may be equal."""

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor, *, return_dict: bool) -> tuple[Tensor]:
        """Step from a noise level to the next."""
        ...


def keep(tokens: Tensor, sigma: Tensor) -> Tensor:
    """Go on with the tokens of a step as they are."""
    return tokens


def sigma_schedule(steps: int, *, shift: float = 1.0) -> Tensor:
    """Compute noise levels from 1 to 0, (steps + 1,); shift > 1 lingers at high noise (Esser et al. 2024, Eq. 23)."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    sigmas = torch.linspace(1, 0, steps + 1)
    return (shift * sigmas / (1 + (shift - 1) * sigmas)).clamp(max=1)  # rounding puts the first of some shifts above 1


def known_levels(name: str, steps: int, *, shift: float) -> list[float]:
    """List the noise levels that a sampler of our own passes; those of diffusers' schedulers are theirs to say."""
    return [] if name in DIFFUSERS_SAMPLERS else sigma_schedule(steps, shift=shift).tolist()


def log_snr(sigma: Tensor) -> Tensor:
    """Compute log(alpha / sigma) with alpha = 1 - sigma."""
    return torch.log((1 - sigma) / sigma)


def sample_euler(velocity: Velocity, x: Tensor, sigmas: Tensor, after_step: AfterStep = keep) -> Tensor:
    """Follow the velocity straight to the next noise level: first order."""
    for sigma, next_sigma in pairwise(sigmas):
        x = after_step(x + (next_sigma - sigma) * velocity(x, sigma), sigma)
    return x


def sample_heun(velocity: Velocity, x: Tensor, sigmas: Tensor, after_step: AfterStep = keep) -> Tensor:
    """Average the slopes at both ends of a step: second order from two evaluations (Karras et al. 2022, Alg. 1)."""
    for sigma, next_sigma in pairwise(sigmas):
        slope = velocity(x, sigma)
        # Training never draws sigma = 0, so the network means nothing there: the last step is Euler's.
        if next_sigma > 0:
            slope = (slope + velocity(x + (next_sigma - sigma) * slope, next_sigma)) / 2
        x = after_step(x + (next_sigma - sigma) * slope, sigma)
    return x


def multistep_estimate(clean: Tensor, h: Tensor, last: tuple[Tensor, Tensor] | None) -> Tensor:
    """Extrapolate clean tokens to the middle of a step h from those of the last step and its h (DPM-Solver++ 2M)."""
    # At the two ends the log signal-to-noise is infinite and h / last_h says nothing: a first-order step.
    if last is None or not ((h / last[1]).isfinite() and (last[1] / h).isfinite()):
        return clean
    return clean + h / (2 * last[1]) * (clean - last[0])


def sample_dpmpp_2m(velocity: Velocity, x: Tensor, sigmas: Tensor, after_step: AfterStep = keep) -> Tensor:
    """Reach second order from one evaluation a step (Lu et al. 2022, DPM-Solver++ 2M, with alpha = 1 - sigma)."""
    last = None
    for sigma, next_sigma in pairwise(sigmas):
        clean = x - sigma * velocity(x, sigma)
        h = log_snr(next_sigma) - log_snr(sigma)
        x = next_sigma / sigma * x - (1 - next_sigma) * torch.expm1(-h) * multistep_estimate(clean, h, last)
        last = clean, h
        x = after_step(x, sigma)
    return x


def sample_dpmpp_2m_sde(
    velocity: Velocity,
    x: Tensor,
    sigmas: Tensor,
    brownian_increment: BrownianIncrement,
    after_step: AfterStep = keep,
) -> Tensor:
    """Step as dpmpp_2m, but renew part of the noise at each step (Lu et al. 2022, SDE-DPM-Solver++ 2M, App. B).

    What an undertrained network got wrong is noise again a step later, and corrected: it converges in more steps, and
    to a better clip.
    """
    last = None
    for sigma, next_sigma in pairwise(sigmas):
        clean = x - sigma * velocity(x, sigma)
        before, after = log_snr(sigma), log_snr(next_sigma)
        h = after - before
        renewed = -torch.expm1(-2 * h)  # the share of the noise's variance
        estimate = multistep_estimate(clean, h, last)
        x = next_sigma / sigma * torch.exp(-h) * x + (1 - next_sigma) * renewed * estimate
        if next_sigma > 0:
            x = x + next_sigma * renewed.sqrt() * brownian_increment(before, after)
        last = clean, h
        x = after_step(x, sigma)
    return x


SAMPLERS: dict[str, Sampler] = {"euler": sample_euler, "heun": sample_heun, "dpmpp_2m": sample_dpmpp_2m}
STOCHASTIC_SAMPLERS: dict[str, StochasticSampler] = {"dpmpp_2m_sde": sample_dpmpp_2m_sde}
DIFFUSERS_SAMPLERS: dict[str, tuple[str, dict[str, object]]] = {
    "unipc": ("UniPCMultistepScheduler", {"prediction_type": "flow_prediction", "use_flow_sigmas": True}),
    "deis": ("DEISMultistepScheduler", {"prediction_type": "flow_prediction", "use_flow_sigmas": True}),
    "dpmpp_multistep": ("DPMSolverMultistepScheduler", {"prediction_type": "flow_prediction", "use_flow_sigmas": True}),
    "flow_euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "flow_heun": ("FlowMatchHeunDiscreteScheduler", {}),
}


def solve(
    name: str,
    velocity: Velocity,
    noise: Tensor,
    brownian_increment: BrownianIncrement,
    *,
    steps: int,
    shift: float,
    scheduler: Scheduler | None = None,
    by_timestep: bool | None = None,
    clean: Tensor | None = None,
    skip: int = 0,
    after_step: AfterStep = keep,
) -> Tensor:
    """Run a sampler by name from noise to clean tokens; only the stochastic ones ask for more noise on the way.

    With clean tokens it begins at these, noised to the level at which the first steps, `skip` of them, would have ended
    (SDEdit, Meng et al. 2022).

    A scheduler gives the rest of the settings where it is of the class that the name stands for. By timestep, as by
    default where there is one, the network is given timesteps / 1000, in float64 so that they stay whole numbers: Wan's
    timesteps are rounded down and not quite its noise levels.
    """
    check_sampler(name)
    by_timestep = scheduler is not None if by_timestep is None else by_timestep
    sigmas = sigma_schedule(steps, shift=shift).to(noise.device)[skip:]
    start = noise if clean is None else interpolate(clean, noise, sigmas[0])
    try:
        if name in SAMPLERS:
            return SAMPLERS[name](velocity, start, sigmas, after_step)
        if name in STOCHASTIC_SAMPLERS:
            return STOCHASTIC_SAMPLERS[name](velocity, start, sigmas, brownian_increment, after_step)
        chosen = make_scheduler(name, shift, like=scheduler)
        return sample_with_diffusers(
            chosen,
            velocity,
            noise,
            steps=steps,
            by_timestep=by_timestep,
            reach_zero=not (by_timestep and type(chosen) is type(scheduler)),
            clean=clean,
            skip=skip,
            after_step=after_step,
        )
    except Interrupted as stop:
        return stop.tokens


def make_scheduler(name: str, shift: float, *, like: Scheduler | None = None) -> Scheduler:
    """Build one of diffusers' flow schedulers, with the settings of another where that is of the same class."""
    import diffusers

    class_name, options = DIFFUSERS_SAMPLERS[name]
    kind = getattr(diffusers, class_name)
    key = "flow_shift" if "use_flow_sigmas" in options else "shift"
    if like is not None and type(like) is kind:
        return kind.from_config(like.config, **{key: shift})
    return kind(**options, **{key: shift})


def settings_of_scheduler(scheduler: Scheduler) -> dict[str, object]:
    """Name the sampler and the shift of a scheduler of diffusers; a ValueError where it does not denoise a flow."""
    name, where = type(scheduler).__name__, "the pipeline's scheduler"
    settings = scheduler_settings(name, scheduler.config, where)
    _, needed = DIFFUSERS_SAMPLERS[str(settings["sampler"])]
    if missing := {key: value for key, value in needed.items() if scheduler.config.get(key) != value}:
        options = ", ".join(f"{key}={value!r}" for key, value in missing.items())
        raise ValueError(f"{where} is a {name} that denoises no flow; build it with {options}")
    return settings


def sample_with_diffusers(
    scheduler: Scheduler,
    velocity: Velocity,
    x: Tensor,
    *,
    steps: int,
    by_timestep: bool = False,
    reach_zero: bool = True,
    clean: Tensor | None = None,
    skip: int = 0,
    after_step: AfterStep = keep,
) -> Tensor:
    """Run a scheduler of diffusers, giving the network its noise levels, or its timesteps / 1000 instead.

    DEIS of diffusers ends at its last noise level above 0; to reach 0 it takes a step of Euler's.
    """
    scheduler.set_timesteps(steps)
    first = skip * scheduler.order
    scheduler.set_begin_index(first)
    timesteps, sigmas = scheduler.timesteps[first:], scheduler.sigmas[first:]
    if clean is not None:
        x = interpolate(clean, x, sigmas[0].to(x))
    for i, (timestep, sigma) in enumerate(zip(timesteps, sigmas[:-1].to(x), strict=True)):
        # A noise level is not always timestep / 1000: some schedulers round the timestep down to an integer.
        level = timestep.double() / 1000 if by_timestep else sigma
        slope = velocity(x, level)
        if i == len(timesteps) - 1 and sigmas[-1] > 0 and reach_zero:
            x = x - sigma * slope
        else:
            x = scheduler.step(slope, timestep, x, return_dict=False)[0]
        x = after_step(x, level)
    return x
