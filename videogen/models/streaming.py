"""What every video VAE here shares: a state that is handed from chunk to chunk, and decoding frame by frame."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from einops import rearrange
from torch import Tensor, nn

State = dict[nn.Module, Tensor]


class Autoencoder(Protocol):
    """What decoding asks of a video VAE."""

    @property
    def dtype(self) -> torch.dtype:
        """The precision of its weights."""
        ...

    def decode_stream(self, latents: Tensor, *, chunk: int = 1) -> Iterator[Tensor]:
        """Decode normalised latents (b, c, t, h, w), yielding chunks (b, 3, frames, height, width) in about [-1, 1]."""
        ...


class Posterior(NamedTuple):
    """What the encoder believes of a clip, in its own units: mean and log-variance (b, c, t, h, w)."""

    mean: Tensor
    logvar: Tensor


def to_uint8(video: Tensor) -> Tensor:
    """A clip (3, t, h, w) in [-1, 1] as frames (t, h, w, 3) uint8; a FloatingPointError where it is not finite."""
    if not video.isfinite().all():
        raise FloatingPointError("the decoded frames are not finite; check the weights and their precision")
    return rearrange((video.float().clamp(-1, 1) + 1) * 127.5, "c t h w -> t h w c").round().to(torch.uint8).cpu()


@torch.no_grad()
def decode(vae: Autoencoder, latent: Tensor, device: torch.device) -> Iterator[Tensor]:
    """Decode a latent (c, t, h, w), yielding frames (t, h, w, 3) uint8 as they are ready."""
    for part in vae.decode_stream(latent[None].to(device, vae.dtype), chunk=4):
        yield to_uint8(part[0])
