"""Encode and decode video whole or in chunks: the base class of the video VAEs, and the step to uint8 frames.

    clip (b, 3, 1+4k, h, w) in [-1, 1]  <->  normalised latent (b, c, 1+k, h/8, w/8)  ->  frames (t, h, w, 3) uint8

Chunks equal the whole: a state carries the last frames that causal layers saw from one chunk to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from videogen.config.sizes import check_frames, check_size

StreamState = dict[nn.Module, Tensor]  # the last frames that each causal layer saw


class Posterior(NamedTuple):
    """Gaussian posterior of a clip in raw latent units: mean and log-variance (b, c, t, h, w)."""

    mean: Tensor
    logvar: Tensor


class Autoencoder(nn.Module):
    """Base class of the causal video VAEs, whose subclasses define the networks and the latent statistics."""

    latent_channels: int
    time_stride: int
    space_stride: int
    use_slicing = False  # one clip of a batch at a time, for less memory
    posterior: Callable[..., Posterior]  # (clip, state of the earlier chunks) -> raw latents
    reconstruct: Callable[..., Tensor]  # (raw latents, state of the earlier chunks) -> clip
    _statistics: Callable[[Tensor], tuple[Tensor, Tensor]]  # latents -> their mean and deviation, float32 at least

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Return the latent shape (c, t, h, w); raise ValueError with the nearest sizes if the strides forbid it."""
        check_frames(frames, self.time_stride)
        check_size(width, height, self.space_stride)
        latent_frames = 1 + (frames - 1) // self.time_stride
        return self.latent_channels, latent_frames, height // self.space_stride, width // self.space_stride

    def encode(self, video: Tensor) -> Tensor:
        """Encode a clip (b, 3, 1+4k, h, w) in [-1, 1] to its normalised latent (b, c, 1+k, h/8, w/8)."""
        clips = video.split(1) if self.use_slicing else [video]
        return torch.cat([self.normalise(self.posterior(clip).mean) for clip in clips])

    def decode(self, latents: Tensor) -> Tensor:
        """Decode a normalised latent (b, c, 1+k, h, w) to a clip (b, 3, 1+4k, 8h, 8w) in about [-1, 1]."""
        clips = latents.split(1) if self.use_slicing else [latents]
        return torch.cat([self.reconstruct(self.denormalise(clip)) for clip in clips])

    def enable_slicing(self) -> None:
        """Encode and decode the clips of a batch one by one; pipelines always do."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Encode and decode the clips of a batch together again."""
        self.use_slicing = False

    def encode_stream(self, chunks: Iterator[Tensor]) -> Iterator[Tensor]:
        """Encode a clip that comes in chunks, the first of 1+4k frames and the others of 4k: equal to encode."""
        state = {}
        for chunk in chunks:
            yield self.normalise(self.posterior(chunk, state).mean)

    def decode_stream(self, latents: Tensor, *, chunk: int = 1) -> Iterator[Tensor]:
        """Decode `chunk` latent frames at a time: equal to decode, in memory that does not grow with duration."""
        state = {}
        for part in latents.split(chunk, dim=2):
            yield self.reconstruct(self.denormalise(part), state)

    def normalise(self, raw: Tensor) -> Tensor:
        """Scale raw latents to mean 0 and deviation about 1, by the statistics in the config."""
        mean, std = self._statistics(raw)
        return ((raw.to(mean.dtype) - mean) / std).to(raw.dtype)

    def denormalise(self, latents: Tensor) -> Tensor:
        """Invert normalise."""
        mean, std = self._statistics(latents)
        return (latents.to(mean.dtype) * std + mean).to(latents.dtype)


def apply_blocks(blocks: Iterable[nn.Module], x: Tensor, state: StreamState) -> Tensor:
    """Apply causal blocks one after another."""
    for block in blocks:
        x = block(x, state=state)
    return x


def to_uint8(video: Tensor) -> Tensor:
    """Convert a clip (3, t, h, w) in [-1, 1] to frames (t, h, w, 3) uint8; raise FloatingPointError if not finite."""
    if not video.isfinite().all():
        raise FloatingPointError("the decoded frames are not finite; check the weights and their precision")
    return rearrange((video.float().clamp(-1, 1) + 1) * 127.5, "c t h w -> t h w c").round().to(torch.uint8).cpu()


def decode_frames(vae: Autoencoder, latent: Tensor, device: torch.device) -> Iterator[Tensor]:
    """Decode a normalised latent (c, t, h, w), yielding frames (t, h, w, 3) uint8 as soon as they are decoded."""
    return decode_chunks(vae, [latent], device)


@torch.no_grad()
def decode_chunks(vae: Autoencoder, latents: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Decode a latent that comes in chunks (c, t, h, w) one after another, as decode_frames does one that is whole."""
    dtype, state = next(vae.parameters()).dtype, StreamState()
    for chunk in latents:
        for part in chunk.split(4, dim=1):
            yield to_uint8(vae.reconstruct(vae.denormalise(part[None].to(device, dtype)), state)[0])
