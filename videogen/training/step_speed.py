"""Measure what a training step takes on this machine, on random clips of the shapes that a recipe trains.

TrainConfig  ->  seconds of a VAE step;  network, clip  ->  seconds of a DiT's token and of its update
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, cast

import torch

from videogen.config.train import TrainConfig
from videogen.models.dit import VideoDiT
from videogen.models.precision import resolve_mixed_precision
from videogen.models.vae import VideoVAE
from videogen.packing.noise import levels_per_clip
from videogen.packing.packs import Grid, PackedText, pack
from videogen.training.flow_matching import flow_loss, sample_task
from videogen.training.optimizers import make_optimizer
from videogen.training.trainer import CPU_PASS_TOKENS
from videogen.training.vae_loss import vae_loss

TEXT_ROWS = 16  # of a caption of average length
MEASURED_SECONDS = 1.5


class DitSpeed(NamedTuple):
    """What a pack costs: its tokens and one update of the weights."""

    token_seconds: float
    update_seconds: float

    def step_seconds(self, tokens: float) -> float:
        """Return the seconds of a step of so many tokens."""
        return tokens * self.token_seconds + self.update_seconds


def compute_device() -> torch.device:
    """Return the device that training takes: the accelerator there is, or the CPU."""
    return torch.accelerator.current_accelerator() or torch.device("cpu")


def median_seconds(step: Callable[[], object], device: torch.device) -> float:
    """Time a step after a first one that does not count: the median of three or more, over a second and a half."""
    seconds: list[float] = []
    step()
    while len(seconds) < 3 or sum(seconds) < MEASURED_SECONDS:
        began = time.perf_counter()
        step()
        if device.type != "cpu":
            torch.accelerator.synchronize()
        seconds.append(time.perf_counter() - began)
        if len(seconds) >= 20:
            break
    return sorted(seconds)[len(seconds) // 2]


def measure_vae_step(config: TrainConfig) -> float:
    """Measure the seconds of a VAE step on crops."""
    vae, device = config.vae, compute_device()
    model = VideoVAE(vae.channels, vae.width, linear_encoder=vae.linear_encoder)
    model.to(device)  # type: ignore[call-overload]
    optimizer, generator = make_optimizer(model, config.optim), torch.Generator().manual_seed(0)
    crops = torch.rand(vae.batch_clips * vae.crops, 3, vae.crop_frames, vae.crop, vae.crop, device=device) * 2 - 1
    bf16 = resolve_mixed_precision(config.run).mixed_precision == "bf16"

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = vae_loss(model, crops, vae, generator)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return median_seconds(step, device)


def measure_dit(config: TrainConfig, network: Mapping[str, object], grid: Grid) -> DitSpeed:
    """Measure a DiT on clips whose latents have a grid (t, h, w), as many as a pass of a CPU takes."""
    device, dit = compute_device(), config.dit
    torch.manual_seed(0)
    model = cast("VideoDiT", VideoDiT.from_config(dict(network)))
    model.to(device)  # type: ignore[call-overload]
    optimizer, generator = make_optimizer(model, config.optim), torch.Generator().manual_seed(0)
    latent = torch.randn(cast("int", network["in_channels"]), *grid, generator=generator)
    patch_tokens = len(pack([latent], model.base_patch).tokens)
    clips = max(1, min(CPU_PASS_TOKENS, config.data.token_budget) // patch_tokens)
    video = pack([latent.to(device)] * clips, model.base_patch)
    rows = torch.randn(clips * TEXT_ROWS, cast("int", network["text_dim"]), generator=generator).to(device)
    text = PackedText(rows, (TEXT_ROWS,) * clips, torch.ones(len(rows), device=device))
    levels = levels_per_clip(torch.linspace(0.1, 0.9, clips), video.lengths)
    task = sample_task(video, text, levels, base_tokens=dit.base_tokens, generator=generator)
    bf16 = resolve_mixed_precision(config.run).mixed_precision == "bf16"

    def compute_gradient() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = flow_loss(model, task)
        loss.backward()

    token_seconds = median_seconds(compute_gradient, device) / len(video.tokens)
    return DitSpeed(token_seconds, median_seconds(optimizer.step, device))
