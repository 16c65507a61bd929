"""The video autoencoder: clips to latents and back, causal, with exact streaming.

    clip (b, 3, 1+4k, 8h, 8w) in [-1, 1]  <->  latent (b, c, 1+k, h, w), mean 0 and deviation 1 in each channel

A linear patch transform, fitted by PCA before training, carries the bulk; dense 2D convolutions that see one earlier
frame (TAEHV, Bohan 2025) correct it. A linear encoder does without: its latents are known before training, so that a
DiT and the decoder can be trained at once. An image is a clip of one frame. Encoding or decoding in chunks changes
nothing: the only state is the last frame of each causal block. This is torch alone; vae.py adds diffusers' loading.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from itertools import chain
from typing import Self

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from videogen.config.sizes import SPACE_STRIDE, TIME_STRIDE
from videogen.models.streaming import Autoencoder, Posterior, StreamState, apply_blocks

SPECTRUM_EXPONENT = 0.75  # 1 leaves the spectrum of latents as it is in pixels, 0 makes all channels equal
MIN_LOGVAR = -30.0


def apply_2d(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a 2D layer to every frame of (b, t, c, h, w)."""
    return rearrange(layer(rearrange(x, "b t c h w -> (b t) c h w")), "(b t) c h w -> b t c h w", b=len(x))


class CausalBlock(nn.Module):
    """A residual block of two convolutions in which each frame also sees the frame before it.

    A convolution of [frame, previous frame] is the sum of two convolutions. One pass with twice the channels computes
    both: half of its output is for the frame itself, the other half is added one frame later and is the state.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.look = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.out = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, state: StreamState) -> Tensor:
        """Transform frames (b, t, c, h, w); the state keeps what the last frame passes on to the next chunk."""
        current, for_next = apply_2d(self.look, x).chunk(2, dim=2)
        from_previous = torch.cat([state.get(self, for_next[:, :1]), for_next[:, :-1]], dim=1)
        state[self] = for_next[:, -1:]
        return x + apply_2d(self.out, F.silu(current + from_previous))


class TemporalDownsample(nn.Module):
    """Merge every two frames into one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, 2t, c, h, w) to (b, t, c, h, w)."""
        return apply_2d(self.mix, rearrange(x, "b (t two) c h w -> b t (two c) h w", two=2))


class TemporalUpsample(nn.Module):
    """Expand every frame into two."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(width, 2 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, t, c, h, w) to (b, 2t, c, h, w)."""
        return rearrange(apply_2d(self.mix, x), "b t (two c) h w -> b (t two) c h w", two=2)


def frames_to_patches(video: Tensor) -> Tensor:
    """Cut frames (b, 4t, 3, 8h, 8w) into patches of 4 x 8 x 8 pixels, (b, t, 768, h, w)."""
    return rearrange(video, "b (t pt) c (h ph) (w pw) -> b t (pt c ph pw) h w", pt=TIME_STRIDE, ph=8, pw=8)


def patches_to_frames(patches: Tensor) -> Tensor:
    """Invert frames_to_patches."""
    return rearrange(patches, "b t (pt c ph pw) h w -> b (t pt) c (h ph) (w pw)", pt=TIME_STRIDE, ph=8, pw=8)


class LinearEncoder(nn.Module):
    """Encode each patch by itself with a linear transform; the log-variance is a constant."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Conv2d(3 * TIME_STRIDE * SPACE_STRIDE**2, channels, 1)

    def forward(self, video: Tensor, state: StreamState) -> Tensor:
        """Map frames (b, 4t, 3, 8h, 8w) to mean and log-variance (b, t, 2c, h, w); the state is not used."""
        mean = apply_2d(self.linear, frames_to_patches(video))
        return torch.cat([mean, torch.full_like(mean, MIN_LOGVAR)], dim=2)


class Encoder(LinearEncoder):
    """Encode with the linear transform of each patch, and convolutions that correct it."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(channels)
        wide = width * 3 // 2
        self.enter = nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(48, width, 3, padding=1))
        self.fold1 = TemporalDownsample(width)
        self.fine = nn.ModuleList(CausalBlock(width) for _ in range(2))
        self.down = nn.Conv2d(width, wide, 3, stride=2, padding=1)
        self.fold2 = TemporalDownsample(wide)
        self.coarse = nn.ModuleList(CausalBlock(wide) for _ in range(3))
        self.leave = nn.Conv2d(wide, 2 * channels, 1)

    def forward(self, video: Tensor, state: StreamState) -> Tensor:
        """Map frames (b, 4t, 3, 8h, 8w) to mean and log-variance (b, t, 2c, h, w)."""
        x = apply_blocks(self.fine, self.fold1(apply_2d(self.enter, video)), state)
        x = apply_blocks(self.coarse, self.fold2(apply_2d(self.down, x)), state)
        correction, logvar = apply_2d(self.leave, x).chunk(2, dim=2)
        return torch.cat([apply_2d(self.linear, frames_to_patches(video)) + correction, logvar], dim=2)


class Decoder(nn.Module):
    """Decode with the linear transform of each latent, and convolutions that correct it."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        wide = 2 * width
        self.linear = nn.Conv2d(channels, 3 * TIME_STRIDE * SPACE_STRIDE**2, 1)
        self.enter = nn.Conv2d(channels, wide, 3, padding=1)
        self.coarse = nn.ModuleList(CausalBlock(wide) for _ in range(3))
        self.unfold1 = TemporalUpsample(wide)
        self.up = nn.Sequential(nn.Conv2d(wide, 4 * width, 3, padding=1), nn.PixelShuffle(2))
        self.fine = nn.ModuleList(CausalBlock(width) for _ in range(3))
        self.unfold2 = TemporalUpsample(width)
        self.finest = CausalBlock(width)
        self.leave = nn.Sequential(nn.Conv2d(width, 48, 3, padding=1), nn.PixelShuffle(4))

    def forward(self, latents: Tensor, state: StreamState) -> Tensor:
        """Map latents (b, t, c, h, w) to frames (b, 4t, 3, 8h, 8w)."""
        x = apply_blocks(self.coarse, apply_2d(self.enter, latents), state)
        x = apply_blocks(self.fine, apply_2d(self.up, self.unfold1(x)), state)
        x = self.finest(self.unfold2(x), state)
        return patches_to_frames(apply_2d(self.linear, latents)) + apply_2d(self.leave, x)


class VAE(Autoencoder):
    """A causal autoencoder of 4 x 8 x 8 compression; latents come out normalised by the statistics in its config."""

    time_stride, space_stride = TIME_STRIDE, SPACE_STRIDE

    def __init__(
        self,
        latent_channels: int = 16,
        width: int = 64,
        latents_mean: Sequence[float] | None = None,
        latents_std: Sequence[float] | None = None,
        linear_encoder: bool = False,
    ) -> None:
        super().__init__()
        self.latent_channels = latent_channels
        self.latents_mean, self.latents_std = latents_mean, latents_std
        self.encoder = LinearEncoder(latent_channels) if linear_encoder else Encoder(latent_channels, width)
        self.decoder = Decoder(latent_channels, width)
        self.mask_token = nn.Parameter(torch.zeros(latent_channels))  # only training uses it
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def posterior(self, video: Tensor, state: StreamState | None = None) -> Posterior:
        """Encode a clip (b, 3, 1+4k, h, w), or with the state of earlier chunks (b, 3, 4k, h, w), in raw units."""
        assert video.shape[1:2] == (3,), f"expected (b, 3, t, h, w), got {tuple(video.shape)}"
        frames = rearrange(video, "b c t h w -> b t c h w")
        if not state:  # the first frame fills a latent frame alone, because the model is causal and images are clips
            frames = torch.cat([repeat(frames[:, 0], "b c h w -> b three c h w", three=TIME_STRIDE - 1), frames], dim=1)
        assert frames.shape[1] % TIME_STRIDE == 0, f"{video.shape[2]} frames do not fill latent frames of {TIME_STRIDE}"
        state = {} if state is None else state
        mean, logvar = rearrange(self.encoder(frames, state), "b t c h w -> b c t h w").chunk(2, dim=1)
        state[self] = frames[:, -1:]  # marks the clip as begun even if the encoder is linear and keeps no state
        return Posterior(mean, logvar.clamp(MIN_LOGVAR, 10))

    def reconstruct(self, raw: Tensor, state: StreamState | None = None) -> Tensor:
        """Decode raw latents (b, c, t, h, w) to (b, 3, 1+4(t-1), h, w); with an earlier state to (b, 3, 4t, h, w)."""
        num_repeats = 0 if state else TIME_STRIDE - 1  # of the first frame, see posterior
        frames = self.decoder(rearrange(raw, "b c t h w -> b t c h w"), {} if state is None else state)
        return rearrange(frames[:, num_repeats:], "b t c h w -> b c t h w")

    def linear_encoder_copy(self) -> Self | None:
        """Copy the encoder alone to the CPU if it is linear, to send it to a worker process; None if it is not.

        A linear encoder is 300 kB and takes a few milliseconds of one core for each clip.
        """
        if isinstance(self.encoder, Encoder):
            return None
        model = deepcopy(self).cpu()
        del model.decoder, model.mask_token
        return model

    def _statistics(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        if self.latents_mean is None or self.latents_std is None:
            raise ValueError("this VAE has no latent statistics in its config yet; finish its training stage first")
        values = self.latents_mean, self.latents_std
        mean, std = (torch.tensor(list(value), device=latents.device) for value in values)
        return rearrange(mean, "c -> 1 c 1 1 1"), rearrange(std, "c -> 1 c 1 1 1")

    @torch.no_grad()
    def init_weights(self, patches: Tensor) -> None:
        """Initialise the linear transforms by PCA of sample patches (n, 768), and the convolutions to no correction.

        A channel's deviation is a power of its deviation in pixels: the mean colour of a patch no longer has nearly all
        of the variance, and fine detail does not count for as much as a shape.
        """
        channels, centre = self.latent_channels, patches.mean(0)
        axes = torch.linalg.svd(patches - centre, full_matrices=False).Vh[:channels]
        in_pixels = ((patches - centre) @ axes.T).std(0).clamp(min=1e-6)  # a folder may need fewer channels than these
        in_latents = in_pixels**SPECTRUM_EXPONENT
        scale = (in_pixels / in_latents * in_latents.square().mean().sqrt())[:, None]  # the latents' mean variance is 1
        self.encoder.linear.weight.copy_(rearrange(axes / scale, "c p -> c p 1 1"))
        self.encoder.linear.bias.copy_(-(axes / scale) @ centre)  # type: ignore[union-attr]
        self.decoder.linear.weight.copy_(rearrange((axes * scale).T, "p c -> p c 1 1"))
        self.decoder.linear.bias.copy_(centre)  # type: ignore[union-attr]
        last_layers = [module.out for module in self.modules() if isinstance(module, CausalBlock)]
        last_layers += [self.encoder.leave] if isinstance(self.encoder, Encoder) else []
        for weight in chain.from_iterable(layer.parameters() for layer in (*last_layers, self.decoder.leave)):
            weight.zero_()
        if isinstance(self.encoder, Encoder):
            self.encoder.leave.bias[channels:] = -6.0  # type: ignore[index]
