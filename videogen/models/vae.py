"""The video autoencoder: clips to latents and back, causal, with exact streaming.

    clip (b, 3, 1+4k, 8h, 8w) in [-1, 1]  <->  latent (b, c, 1+k, h, w), mean 0 and deviation 1 in each channel

A linear patch transform, fitted by PCA before training, carries the bulk; dense 2D convolutions with a memory of one
frame (TAEHV, Bohan 2025) correct it. A linear encoder does without: its latents are known before training, so that a
DiT and the decoder can be trained at once. An image is a clip of one frame. Cutting the work into chunks changes
nothing: the only state is the last frame of each memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from einops import rearrange, repeat
from torch import Tensor, nn

from videogen.config.sizes import SPACE_STRIDE, TIME_STRIDE, check_frames, check_size
from videogen.models.streaming import Posterior, State

SPECTRUM = 0.75  # 1 leaves the spectrum of latents as it is in pixels, 0 makes all channels equal
LEAST_LOGVAR = -30.0


def per_frame(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a 2D layer to every frame of (b, t, c, h, w)."""
    return rearrange(layer(rearrange(x, "b t c h w -> (b t) c h w")), "(b t) c h w -> b t c h w", b=len(x))


class Memory(nn.Module):
    """Two convolutions and a residual; a frame also sees the one before it.

    A convolution of [frame, frame before] is the sum of two convolutions, and the second is the first's other half of
    one frame ago: one pass over the frames gives both, and the state is that half.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.look = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.out = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, state: State) -> Tensor:
        """x (b, t, c, h, w); state remembers this module's last frame between chunks."""
        now, passed_on = per_frame(self.look, x).chunk(2, dim=2)
        before = torch.cat([state.get(self, passed_on[:, :1]), passed_on[:, :-1]], dim=1)
        state[self] = passed_on[:, -1:]
        return x + per_frame(self.out, F.silu(now + before))


class FoldTime(nn.Module):
    """Two frames to one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(b, 2t, c, h, w) -> (b, t, c, h, w)."""
        return per_frame(self.mix, rearrange(x, "b (t two) c h w -> b t (two c) h w", two=2))


class UnfoldTime(nn.Module):
    """One frame to two."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(width, 2 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, c, h, w) -> (b, 2t, c, h, w)."""
        return rearrange(per_frame(self.mix, x), "b t (two c) h w -> b (t two) c h w", two=2)


def to_patches(video: Tensor) -> Tensor:
    """Frames (b, 4t, 3, 8h, 8w) as patches of 4 x 8 x 8, (b, t, 768, h, w)."""
    return rearrange(video, "b (t pt) c (h ph) (w pw) -> b t (pt c ph pw) h w", pt=TIME_STRIDE, ph=8, pw=8)


def from_patches(patches: Tensor) -> Tensor:
    """The inverse of to_patches."""
    return rearrange(patches, "b t (pt c ph pw) h w -> b (t pt) c (h ph) (w pw)", pt=TIME_STRIDE, ph=8, pw=8)


class LinearEncoder(nn.Module):
    """Frames (b, 4t, 3, 8h, 8w) -> mean and log-variance (b, t, 2c, h, w): each patch by itself, without doubt."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Conv2d(3 * TIME_STRIDE * SPACE_STRIDE**2, channels, 1)

    def forward(self, video: Tensor, state: State) -> Tensor:
        """The linear transform of each patch; nothing is remembered."""
        mean = per_frame(self.linear, to_patches(video))
        return torch.cat([mean, torch.full_like(mean, LEAST_LOGVAR)], dim=2)


class Encoder(LinearEncoder):
    """Frames (b, 4t, 3, 8h, 8w) -> mean and log-variance (b, t, 2c, h, w)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(channels)
        wide = width * 3 // 2
        self.enter = nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(48, width, 3, padding=1))
        self.fold1 = FoldTime(width)
        self.fine = nn.ModuleList(Memory(width) for _ in range(2))
        self.down = nn.Conv2d(width, wide, 3, stride=2, padding=1)
        self.fold2 = FoldTime(wide)
        self.coarse = nn.ModuleList(Memory(wide) for _ in range(3))
        self.leave = nn.Conv2d(wide, 2 * channels, 1)

    def forward(self, video: Tensor, state: State) -> Tensor:
        """The linear transform of each patch, and the convolutions' correction of it."""
        x = self.fold1(per_frame(self.enter, video))
        for block in self.fine:
            x = block(x, state)
        x = self.fold2(per_frame(self.down, x))
        for block in self.coarse:
            x = block(x, state)
        mean, logvar = per_frame(self.leave, x).chunk(2, dim=2)
        return torch.cat([per_frame(self.linear, to_patches(video)) + mean, logvar], dim=2)


class Decoder(nn.Module):
    """Latents (b, t, c, h, w) -> frames (b, 4t, 3, 8h, 8w)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        wide = 2 * width
        self.linear = nn.Conv2d(channels, 3 * TIME_STRIDE * SPACE_STRIDE**2, 1)
        self.enter = nn.Conv2d(channels, wide, 3, padding=1)
        self.coarse = nn.ModuleList(Memory(wide) for _ in range(3))
        self.unfold1 = UnfoldTime(wide)
        self.up = nn.Sequential(nn.Conv2d(wide, 4 * width, 3, padding=1), nn.PixelShuffle(2))
        self.fine = nn.ModuleList(Memory(width) for _ in range(3))
        self.unfold2 = UnfoldTime(width)
        self.finest = Memory(width)
        self.leave = nn.Sequential(nn.Conv2d(width, 48, 3, padding=1), nn.PixelShuffle(4))

    def forward(self, latents: Tensor, state: State) -> Tensor:
        """The linear transform of each latent, and the convolutions' correction of it."""
        x = per_frame(self.enter, latents)
        for block in self.coarse:
            x = block(x, state)
        x = per_frame(self.up, self.unfold1(x))
        for block in self.fine:
            x = block(x, state)
        x = self.finest(self.unfold2(x), state)
        return from_patches(per_frame(self.linear, latents)) + per_frame(self.leave, x)


class VideoVAE(ModelMixin, ConfigMixin):
    """A causal autoencoder of 4 x 8 x 8 compression; latents come out normalised by the statistics in its config."""

    time_stride, space_stride = TIME_STRIDE, SPACE_STRIDE

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 16,
        width: int = 64,
        latents_mean: Sequence[float] | None = None,
        latents_std: Sequence[float] | None = None,
        linear_encoder: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = LinearEncoder(latent_channels) if linear_encoder else Encoder(latent_channels, width)
        self.decoder = Decoder(latent_channels, width)
        self.mask_token = nn.Parameter(torch.zeros(latent_channels))  # only training uses it
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def from_pretrained(cls, *args: object, **options: object) -> VideoVAE:  # type: ignore[override]
        """As of diffusers, which lays weights out as they lie in the file: channels_last again."""
        loaded = super().from_pretrained(*args, **options)  # type: ignore[arg-type]
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return loaded  # type: ignore[return-value]

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(c, t, h, w) of the latent of a clip; a ValueError offers the two nearest where the strides forbid it."""
        check_frames(frames, TIME_STRIDE)
        check_size(width, height, SPACE_STRIDE)
        latent_frames = 1 + (frames - 1) // TIME_STRIDE
        return self.config["latent_channels"], latent_frames, height // SPACE_STRIDE, width // SPACE_STRIDE

    @apply_forward_hook
    def posterior(self, video: Tensor, state: State | None = None) -> Posterior:
        """Encode a clip (b, 3, 1+4k, h, w), or with a state from an earlier chunk (b, 3, 4k, h, w), in raw units."""
        assert video.shape[1:2] == (3,), f"expected (b, 3, t, h, w), got {tuple(video.shape)}"
        frames = rearrange(video, "b c t h w -> b t c h w")
        if not state:  # the first frame stands for a whole latent frame: the model is causal and images are clips
            frames = torch.cat([repeat(frames[:, 0], "b c h w -> b three c h w", three=TIME_STRIDE - 1), frames], dim=1)
        assert frames.shape[1] % TIME_STRIDE == 0, f"{video.shape[2]} frames do not fill latent frames of {TIME_STRIDE}"
        state = {} if state is None else state
        out = rearrange(self.encoder(frames, state), "b t c h w -> b c t h w")
        state[self] = frames[:, -1:]  # a clip that has begun is told from a new one, whatever the encoder remembers
        mean, logvar = out.chunk(2, dim=1)
        return Posterior(mean, logvar.clamp(LEAST_LOGVAR, 10))

    @apply_forward_hook
    def reconstruct(self, raw: Tensor, state: State | None = None) -> Tensor:
        """Decode raw latents (b, c, t, h, w) to (b, 3, 1+4(t-1), h, w); with an earlier state to (b, 3, 4t, h, w)."""
        first = not state
        frames = self.decoder(rearrange(raw, "b c t h w -> b t c h w"), {} if state is None else state)
        return rearrange(frames[:, TIME_STRIDE - 1 :] if first else frames, "b t c h w -> b c t h w")

    def encode(self, video: Tensor) -> Tensor:
        """A clip (b, 3, 1+4k, h, w) in [-1, 1] as its normalised latent (b, c, 1+k, h/8, w/8)."""
        return self.normalise(self.posterior(video).mean)

    def decode(self, latents: Tensor) -> Tensor:
        """A normalised latent (b, c, 1+k, h, w) as a clip (b, 3, 1+4k, 8h, 8w), about in [-1, 1]."""
        return self.reconstruct(self.denormalise(latents))

    def encoder_alone(self) -> VideoVAE | None:
        """A copy that only encodes, light enough to go to another process; none where encoding is more than a product.

        Of a linear encoder that is 300 kB and a few milliseconds of a core a clip.
        """
        if not self.config["linear_encoder"]:
            return None
        alone = deepcopy(self).cpu()
        del alone.decoder, alone.mask_token
        return alone

    def encode_stream(self, chunks: Iterator[Tensor]) -> Iterator[Tensor]:
        """Encode a clip that comes in chunks, the first of 1+4k frames and the others of 4k: equal to encode."""
        state: State = {}
        for chunk in chunks:
            yield self.normalise(self.posterior(chunk, state).mean)

    def decode_stream(self, latents: Tensor, *, chunk: int = 1) -> Iterator[Tensor]:
        """Decode chunk latent frames at a time: equal to decode, in memory that does not grow with duration."""
        state: State = {}
        for part in latents.split(chunk, dim=2):
            yield self.reconstruct(self.denormalise(part), state)

    def normalise(self, raw: Tensor) -> Tensor:
        """Raw latents to mean 0 and deviation about 1, by the config's statistics."""
        mean, std = self._statistics(raw)
        return ((raw.float() - mean) / std).to(raw.dtype)

    def denormalise(self, latents: Tensor) -> Tensor:
        """The inverse of normalise."""
        mean, std = self._statistics(latents)
        return (latents.float() * std + mean).to(latents.dtype)

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        values = self.config["latents_mean"], self.config["latents_std"]
        if None in values:
            raise ValueError("this VAE has no latent statistics in its config yet; finish its training stage first")
        mean, std = (torch.tensor(list(value), device=like.device) for value in values)
        return rearrange(mean, "c -> 1 c 1 1 1"), rearrange(std, "c -> 1 c 1 1 1")

    @torch.no_grad()
    def init_weights(self, patches: Tensor) -> None:
        """Start from the best linear transform of sample patches (n, 768): PCA, its spectrum flattened a little.

        A channel's deviation is a power of what it is in pixels: the mean colour of a patch no longer has nearly all of
        the variance, nor does fine detail count for as much as a shape. Convolutions begin as no correction.
        """
        channels = self.config["latent_channels"]
        centre = patches.mean(0)
        axes = torch.linalg.svd(patches - centre, full_matrices=False).Vh[:channels]
        spread = ((patches - centre) @ axes.T).std(0).clamp(min=1e-6)  # a folder may not need all channels
        deviation = spread**SPECTRUM
        scale = (spread / deviation * deviation.square().mean().sqrt())[:, None]  # the latents' mean variance is 1
        self.encoder.linear.weight.copy_(rearrange(axes / scale, "c p -> c p 1 1"))
        self.encoder.linear.bias.copy_(-(axes / scale) @ centre)  # type: ignore[union-attr]
        self.decoder.linear.weight.copy_(rearrange((axes * scale).T, "p c -> p c 1 1"))
        self.decoder.linear.bias.copy_(centre)  # type: ignore[union-attr]
        memories = [module.out for module in self.modules() if isinstance(module, Memory)]
        leaving = [self.encoder.leave] if isinstance(self.encoder, Encoder) else []
        for last in (*memories, *leaving, self.decoder.leave[0]):
            nn.init.zeros_(last.weight)  # type: ignore[arg-type]
            nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        for last in leaving:
            last.bias[channels:] = -6.0  # type: ignore[index]
