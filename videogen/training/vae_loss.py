"""The VAE's training objective, without any pretrained network.

    VideoVAE, clips (b, 3, t, h, w)  ->  {"loss": ..., "l1": ..., ...}

Reconstruction: L1, L1 on coarser scales and L1 on differences between frames, in which busy pixels weigh more. Latents
that are easy to generate: a small KL term, neighbours that are not copies of each other (SSVAE), scale equivariance
(Skorokhodov et al. 2025), and a decoder that is trained on noise (LTX-Video) and holes (SSVAE) in its latents.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Generator, Tensor, nn

from videogen.config.train import VaeConfig
from videogen.models.vae import VideoVAE


def busyness(video: Tensor) -> Tensor:
    """Return each pixel's contrast with its surroundings plus its change in time, (b, 1, t, h, w) in 0 ... 1."""
    frames = rearrange(video, "b c t h w -> (b t) c h w")
    rows = F.avg_pool2d(frames, (9, 1), stride=1, padding=(4, 0), count_include_pad=False)
    blurred = F.avg_pool2d(rows, (1, 9), stride=1, padding=(0, 4), count_include_pad=False)
    contrast = rearrange((frames - blurred).abs().amax(1), "(b t) h w -> b 1 t h w", b=len(video))
    change = F.pad(video.diff(dim=2).abs().amax(1, keepdim=True), (0, 0, 0, 0, 1, 0))
    return (contrast + change).clamp(0, 1)


def pyramid_l1(a: Tensor, b: Tensor, levels: int = 3) -> Tensor:
    """Return the mean L1 distance of clips at 1/2, 1/4, ... of their resolution."""
    a, b = (rearrange(x, "b c t h w -> (b t) c h w") for x in (a, b))
    total = torch.zeros((), device=a.device)
    for _ in range(levels):
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
        total = total + (a - b).abs().mean()
    return total / levels


def local_correlation(latent: Tensor) -> Tensor:
    """Return by how much the correlation of neighbouring latents, over channels, falls short of 0.75 (SSVAE, LCR)."""
    z = F.normalize(latent - latent.mean(1, keepdim=True), dim=1)
    pairs = [(z[:, :, :, 1:], z[:, :, :, :-1]), (z[..., 1:], z[..., :-1])]
    if latent.shape[2] > 1:
        pairs.append((z[:, :, 1:], z[:, :, :-1]))
    shortfalls = [F.relu(0.75 - (a * b).sum(1)).mean() for a, b in pairs if a.numel()]  # a single cell has no neighbour
    return torch.stack(shortfalls).mean() if shortfalls else latent.new_zeros(())


def halve(video: Tensor) -> Tensor:
    """Average squares of 2 x 2 pixels or latent cells."""
    pooled = F.avg_pool2d(rearrange(video, "b c t h w -> (b t) c h w"), 2)
    return rearrange(pooled, "(b t) c h w -> b c t h w", b=len(video))


def corrupt_latents(vae: VideoVAE, latent: Tensor, config: VaeConfig, generator: Generator) -> Tensor:
    """Add noise to half of the latents and holes to some, so that the decoder tolerates a generator's errors."""
    size = torch.rand((len(latent), 1, 1, 1, 1), generator=generator) * config.latent_noise
    size = size * (torch.rand(size.shape, generator=generator) < 0.5)
    noise = torch.randn(latent.shape, generator=generator).to(latent)
    latent = latent + size.to(latent) * latent.detach().std() * noise
    if not config.mask_latents:
        return latent
    shares = torch.tensor([0.0, 0.25, 0.5, 0.75])
    choices = torch.multinomial(torch.tensor([0.7, 0.1, 0.1, 0.1]), len(latent), replacement=True, generator=generator)
    holes = torch.rand((len(latent), 1, *latent.shape[2:]), generator=generator)
    holes = (holes < rearrange(shares[choices], "b -> b 1 1 1 1")).to(latent.device)
    return torch.where(holes, rearrange(vae.mask_token, "c -> 1 c 1 1 1"), latent)


def vae_loss(vae: VideoVAE, video: Tensor, config: VaeConfig, generator: Generator) -> dict[str, Tensor]:
    """Return the loss terms of a batch of equally shaped clips, and their weighted sum as "loss"."""
    mean, logvar = vae.posterior(video)
    latent = mean + (logvar / 2).exp() * torch.randn(mean.shape, generator=generator).to(mean)
    rebuilt = vae.reconstruct(corrupt_latents(vae, latent, config, generator))

    weight = 1 + (config.foreground - 1) * busyness(video)
    terms = {
        "l1": (1.0, ((rebuilt - video).abs() * weight).mean() / weight.mean()),
        "kl": (config.kl, (mean.square() + logvar.exp() - 1 - logvar).mean() / 2),
        "local_correlation": (config.local_correlation, local_correlation(mean)),
    }
    if config.pyramid:
        terms["pyramid"] = config.pyramid, pyramid_l1(rebuilt, video)
    if config.motion and video.shape[2] > 1:
        terms["motion"] = config.motion, (rebuilt.diff(dim=2) - video.diff(dim=2)).abs().mean()
    if config.scale_equivariance and all(side % 2 == 0 for side in mean.shape[3:]):
        distance = (vae.reconstruct(halve(mean)) - halve(video)).abs().mean()
        terms["scale"] = config.scale_equivariance, distance
    loss = torch.stack([factor * term for factor, term in terms.values()]).sum()
    return {"loss": loss, **{name: term.detach() for name, (_, term) in terms.items()}}


class VaeObjective(nn.Module):
    """The loss of a step's clips as one call: processes that train together add up the gradients of such calls."""

    def __init__(self, vae: VideoVAE, config: VaeConfig) -> None:
        super().__init__()
        self.vae, self.config = vae, config

    def forward(self, clips: Sequence[Tensor], generator: Generator) -> dict[str, Tensor]:
        """Return the means of the loss terms over groups of equally shaped clips, weighted by their pixels."""
        total = sum(clip.numel() for clip in clips)
        sums: dict[str, Tensor] = {}
        for shape in sorted({clip.shape for clip in clips}):
            group = torch.stack([clip for clip in clips if clip.shape == shape])
            for name, term in vae_loss(self.vae, group.to(self.vae.device), self.config, generator).items():
                sums[name] = sums.get(name, torch.zeros(())) + term * (group.numel() / total)
        return sums


def psnr(a: Tensor, b: Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB of clips in [-1, 1]; 99 if they are equal."""
    error = (a.clamp(-1, 1) - b.clamp(-1, 1)).square().mean().item()
    return 99.0 if error == 0 else 10 * torch.log10(torch.tensor(4 / error)).item()
