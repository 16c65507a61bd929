"""The training objective: rectified flow on packed tokens (Liu et al. 2023), at each clip's own noise level.

    dit, clean PackedVideo, PackedText  ->  loss

The network may put out the velocity or the clean clip; the loss is on the velocity either way (JiT, Li & He 2025).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Generator, Tensor, nn

from videogen.known import draw_known
from videogen.packing import Lengths, NoiseLevels, PackedVideo
from videogen.text import PackedText

SIGMA_MIN = 0.05  # below, dividing by sigma would only amplify the network's error


def interpolate(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """The straight path from data (sigma 0) to noise (sigma 1)."""
    return (1 - sigma) * clean + sigma * noise


def velocity_of(clean: Tensor, noised: Tensor, sigma: Tensor) -> Tensor:
    """The velocity that leads from a predicted clean value to where we stand."""
    return (noised - clean) / sigma.clamp(min=SIGMA_MIN)


def token_shift(lengths: Lengths, base_tokens: float) -> Tensor:
    """A longer clip hides more from noise, so its levels are shifted up: sqrt(n / base), 1 to 3 (Esser et al. 2024)."""
    return (torch.tensor(lengths, dtype=torch.float32) / base_tokens).sqrt().clamp(1, 3)


def draw_sigmas(lengths: Lengths, *, base_tokens: float, uniform: float, generator: Generator) -> Tensor:
    """A noise level for each clip (b,): logit-normal, stratified over the batch, shifted by length, a share uniform."""
    num = len(lengths)
    strata = (torch.randperm(num, generator=generator) + torch.rand(num, generator=generator)) / num
    logit_normal = torch.special.ndtri(strata.clamp(1e-4, 1 - 1e-4)).sigmoid()
    flat = torch.rand(num, generator=generator)
    sigma = torch.where(torch.rand(num, generator=generator) < uniform, flat, logit_normal)
    shift = token_shift(lengths, base_tokens)
    return shift * sigma / (1 + (shift - 1) * sigma)


def draw_levels(
    video: PackedVideo,
    known: Mapping[str, float],
    *,
    base_tokens: float,
    uniform: float,
    generator: Generator,
    least: float = 0.0,
) -> NoiseLevels:
    """The noise level of every token: its clip's own, 0 where known; few distinct ones, found on the host.

    base_tokens counts tokens of the pack's own patch size. Levels below the least are raised in proportion.
    """
    sigmas = draw_sigmas(video.lengths, base_tokens=base_tokens, uniform=uniform, generator=generator)
    sigmas = least + (1 - least) * sigmas
    shares = [draw_known(grid, known, generator).flatten() for grid in video.grids]
    per_token = torch.cat([sigma * share for sigma, share in zip(sigmas, shares, strict=True)])
    values, index = torch.unique(per_token, return_inverse=True)
    return NoiseLevels(values, index)


def flow_loss(
    dit: nn.Module,
    clean: PackedVideo,
    text: PackedText,
    levels: NoiseLevels,
    *,
    base_tokens: float,
    generator: Generator,
) -> Tensor:
    """How far the predicted velocity is from the true one: the mean over noised tokens, weighted by clip."""
    device = clean.tokens.device
    noise = torch.randn(clean.tokens.shape, generator=generator).to(device)
    levels = NoiseLevels(*(part.to(device) for part in levels))
    sigma = levels.per_token()
    noised = interpolate(clean.tokens, noise, sigma)
    out = dit(clean._replace(tokens=noised), levels, text).float()
    model = getattr(dit, "module", dit)  # DDP wraps it
    if model.config["prediction"] == "clean":  # type: ignore[index]
        error = (out - clean.tokens) / sigma.clamp(min=SIGMA_MIN)
    else:
        error = out - (noise - clean.tokens)
    clip = torch.tensor(clean.lengths).repeat_interleave(torch.tensor(clean.lengths))
    weight = (clip / base_tokens).rsqrt().to(device) * (sigma[:, 0] > 0)
    return (error.square().mean(dim=-1) * weight).sum() / weight.sum()


def drop_captions(captions: Sequence[str], share: float, generator: Generator) -> list[str]:
    """Leave some clips without their caption, so that the network also knows what is likely on its own."""
    drawn = torch.rand(len(captions), generator=generator)
    return ["" if value < share else caption for value, caption in zip(drawn, captions, strict=True)]


def step_generator(seed: int, *place: int) -> Generator:
    """The random numbers of one place in a run, such as a step: a function of both, so that resuming needs no state."""
    mixed = hashlib.sha256(" ".join(map(str, (seed, *place))).encode()).digest()  # hash() of a tuple takes -1 for -2
    return torch.Generator().manual_seed(int.from_bytes(mixed[:8], "little") >> 1)


def power_gamma(width: float) -> float:
    """The exponent of the power-function average whose relative width is given (Karras et al. 2024, Eq. 126)."""
    low, high = 0.0, 1e4
    for _ in range(80):
        gamma = (low + high) / 2
        wide = math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))
        low, high = (gamma, high) if wide > width else (low, gamma)
    return (low + high) / 2
