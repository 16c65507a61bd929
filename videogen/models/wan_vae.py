"""Wan's video autoencoders, 2.1 and 2.2: their weights unchanged, their numbers to rounding, in less time.

    clip (b, 3, 1+4k, h, w) in [-1, 1]  <->  latent (b, c, 1+k, h/8, w/8), of 2.2 (b, c, 1+k, h/16, w/16), normalised

Names, shapes and config keys are those of diffusers' AutoencoderKLWan (Wan Team 2025), so a folder of either opens in
the other. An image is a clip of one frame; cutting the work into chunks or batches changes nothing. Tiles, for frames
that do not fit in memory, do: as there, they are blended where they overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, NamedTuple

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from einops import rearrange
from torch import Tensor, nn

from videogen.config.sizes import check_frames, check_size
from videogen.models.streaming import Posterior, State
from videogen.models.wan_vae_layers import CausalConv, Decoder, Encoder, pieces

# Of Wan 2.1's latents; the config of 2.2 brings its own.
MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip
CHUNK = 4  # latent frames at a time where the caller does not say: measured, more gains little
States = dict[tuple[int, int], State]  # by the corner of a tile; without tiles there is one


def lay_out(model: nn.Module) -> None:
    """Kernels as convolve reads them, one tap after another and channels last, or every call would copy them."""
    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            kernels = rearrange(module.weight.data, "o i k y x -> k o y x i").contiguous()
            module.weight.data = rearrange(kernels, "k o y x i -> o i k y x")
        elif isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)


class Tiling(NamedTuple):
    """Height and width of a tile and how far it is from one to the next, in what is being cut."""

    tile: tuple[int, int]
    stride: tuple[int, int]


def in_tiles(run: Callable[[Tensor, State], Tensor], x: Tensor, tiling: Tiling | None, states: States) -> Tensor:
    """What run makes of (b, t, h, w, c), tile by tile, each faded into those above it and on its left."""
    if tiling is None:
        return run(x, states.setdefault((0, 0), {}))
    strips: list[Tensor] = []
    above: list[Tensor] = []
    for top in range(0, x.shape[2], tiling.stride[0]):
        row: list[Tensor] = []
        kept: list[Tensor] = []
        for left in range(0, x.shape[3], tiling.stride[1]):
            window = x[:, :, top : top + tiling.tile[0], left : left + tiling.tile[1]]
            made = run(window, states.setdefault((top, left), {}))
            tile, stride = ([side * made.shape[2] // window.shape[2] for side in sides] for sides in tiling)
            if above:
                fade(above[len(row)], made, tile[0] - stride[0], dim=2)
            if row:
                fade(row[-1], made, tile[1] - stride[1], dim=3)
            row.append(made)
            kept.append(made[:, :, : stride[0], : stride[1]])
        strips.append(torch.cat(kept, dim=3))
        above = row
    return torch.cat(strips, dim=2)


def fade(before: Tensor, tile: Tensor, overlap: int, *, dim: int) -> None:
    """From the end of one tile into the start of the next, in place."""
    overlap = min(overlap, before.shape[dim], tile.shape[dim])
    ramp = torch.arange(overlap, device=tile.device, dtype=tile.dtype) / overlap
    start = tile.narrow(dim, 0, overlap)
    before = before.narrow(dim, before.shape[dim] - overlap, overlap)
    start.copy_(torch.lerp(before, start, ramp.view(-1, *[1] * (tile.ndim - dim - 1))))


class WanVAE(ModelMixin, ConfigMixin):
    """A causal autoencoder of 4 x 8 x 8 or 4 x 16 x 16; latents are normalised by the statistics in its config."""

    _group_offload_block_modules: ClassVar = ["quant_conv", "post_quant_conv", "encoder", "decoder"]
    _skip_keys: ClassVar = ["state"]  # offloading must not copy it

    @register_to_config
    def __init__(
        self,
        base_dim: int = 96,
        decoder_base_dim: int | None = None,
        z_dim: int = 16,
        dim_mult: Sequence[int] = (1, 2, 4, 4),
        num_res_blocks: int = 2,
        attn_scales: Sequence[float] = (),
        temperal_downsample: Sequence[bool] = (False, True, True),
        dropout: float = 0.0,
        latents_mean: Sequence[float] = MEAN,
        latents_std: Sequence[float] = STD,
        is_residual: bool = False,
        in_channels: int = 3,
        out_channels: int = 3,
        patch_size: int | None = None,
        scale_factor_temporal: int | None = 4,
        scale_factor_spatial: int | None = 8,
    ) -> None:
        super().__init__()
        if attn_scales:
            raise ValueError(f"attn_scales must be empty, got {list(attn_scales)}; no Wan VAE has attention but midway")
        shared = {"mult": dim_mult, "depth": num_res_blocks, "dropout": dropout, "residual": is_residual}
        self.encoder = Encoder(in_channels, base_dim, 2 * z_dim, in_time=temperal_downsample, **shared)
        self.quant_conv, self.post_quant_conv = CausalConv(2 * z_dim, 2 * z_dim, 1), CausalConv(z_dim, z_dim, 1)
        in_time = temperal_downsample[::-1]
        self.decoder = Decoder(z_dim, decoder_base_dim or base_dim, out_channels, in_time=in_time, **shared)
        self.patch = patch_size or 1
        self.time_stride = 2 ** sum(temperal_downsample)
        self.space_stride = 2 ** (len(dim_mult) - 1) * self.patch
        self.tiling: Tiling | None = None
        lay_out(self)

    @classmethod
    def from_pretrained(cls, *args: object, **options: object) -> WanVAE:  # type: ignore[override]
        """As of diffusers, which lays weights out as they lie in the file."""
        loaded = super().from_pretrained(*args, **options)  # type: ignore[arg-type]
        lay_out(loaded[0] if isinstance(loaded, tuple) else loaded)
        return loaded  # type: ignore[return-value]

    def enable_tiling(
        self,
        tile_sample_min_height: int = 256,
        tile_sample_min_width: int = 256,
        tile_sample_stride_height: int = 192,
        tile_sample_stride_width: int = 192,
    ) -> None:
        """Cut frames larger than a tile: less memory, and not quite the same numbers; sizes in pixels."""
        tile = tile_sample_min_height, tile_sample_min_width
        stride = tile_sample_stride_height, tile_sample_stride_width
        for size, step in zip(tile, stride, strict=True):
            if size % self.space_stride or step % self.space_stride or not 0 < step <= size:
                raise ValueError(
                    f"a tile and its stride must be multiples of {self.space_stride}, the stride no larger than the "
                    f"tile, got {size} and {step}; the defaults are 256 and 192"
                )
        self.tiling = Tiling(tile, stride)

    def disable_tiling(self) -> None:
        """Whole frames again."""
        self.tiling = None

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(c, t, h, w) of the latent of a clip; a ValueError offers the two nearest where the strides forbid it."""
        check_frames(frames, self.time_stride)
        check_size(width, height, self.space_stride)
        latent_frames = 1 + (frames - 1) // self.time_stride
        return self.config["z_dim"], latent_frames, height // self.space_stride, width // self.space_stride

    @apply_forward_hook
    def posterior(self, video: Tensor, state: States | None = None) -> Posterior:
        """Encode a clip (b, 3, 1+4k, h, w), or with the state of an earlier chunk (b, 3, 4k, h, w), in raw units."""
        state = {} if state is None else state
        self._check_clip(video, first=not state)
        x = rearrange(video, "b c t (h p) (w q) -> b t h w (c q p)", p=self.patch, q=self.patch)
        tiling = self._tiling(*video.shape[3:], unit=1)  # of 2.2 in patches: as there, twice the decoder's
        parts = [in_tiles(self._encode, part, tiling, state) for part in pieces(x, CHUNK * self.time_stride)]
        mean, logvar = rearrange(torch.cat(parts, dim=1), "b t h w (two c) -> two b c t h w", two=2)
        return Posterior(mean, logvar.clamp(-30, 20))

    @apply_forward_hook
    def reconstruct(self, raw: Tensor, state: States | None = None) -> Tensor:
        """Decode raw latents (b, c, t, h, w) to (b, 3, 1+4(t-1), h, w); with an earlier state to (b, 3, 4t, h, w)."""
        state = {} if state is None else state
        self._check_latents(raw)
        b, _, t, h, w = raw.shape
        h, w, done = h * self.space_stride, w * self.space_stride, 0
        tiling = self._tiling(h, w, unit=self.space_stride)
        frames = (t - 1) * self.time_stride + 1 if not state else t * self.time_stride
        channels = self.config["out_channels"] // self.patch**2
        video = raw.new_empty(b, channels, frames, h, w)
        for part in pieces(rearrange(raw, "b c t h w -> b t h w c"), CHUNK):
            made = in_tiles(self._decode, part, tiling, state)
            video[:, :, done : done + made.shape[1]] = rearrange(
                made, "b t h w (c q p) -> b c t (h p) (w q)", p=self.patch, q=self.patch
            )
            done += made.shape[1]
        return video.clamp_(-1, 1)

    def encode(self, video: Tensor) -> Tensor:
        """A clip (b, 3, 1+4k, h, w) in [-1, 1] as its normalised latent (b, c, 1+k, h/8, w/8)."""
        return self.normalise(self.posterior(video).mean)

    def decode(self, latents: Tensor) -> Tensor:
        """A normalised latent (b, c, 1+k, h, w) as a clip (b, 3, 1+4k, 8h, 8w) in [-1, 1]."""
        return self.reconstruct(self.denormalise(latents))

    def encode_stream(self, chunks: Iterator[Tensor]) -> Iterator[Tensor]:
        """Encode a clip that comes in chunks, the first of 1+4k frames and the others of 4k: equal to encode."""
        state: States = {}
        for chunk in chunks:
            yield self.normalise(self.posterior(chunk, state).mean)

    def decode_stream(self, latents: Tensor, *, chunk: int = 1) -> Iterator[Tensor]:
        """Decode chunk latent frames at a time: equal to decode, in memory that does not grow with duration."""
        state: States = {}
        for part in latents.split(chunk, dim=2):
            yield self.reconstruct(self.denormalise(part), state)

    def normalise(self, raw: Tensor) -> Tensor:
        """Raw latents to mean 0 and deviation 1 a channel, by the config's statistics."""
        exact, mean, std = self._statistics(raw)
        return ((exact - mean) / std).to(raw.dtype)

    def denormalise(self, latents: Tensor) -> Tensor:
        """The inverse of normalise."""
        self._check_latents(latents)
        exact, mean, std = self._statistics(latents)
        return (exact * std + mean).to(latents.dtype)

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        exact = like.to(torch.promote_types(like.dtype, torch.float32))
        values = self.config["latents_mean"], self.config["latents_std"]
        if {len(value) for value in values} != {like.shape[1]}:
            raise ValueError(f"latents_mean and latents_std of the config must have {like.shape[1]} values each")
        mean, std = (rearrange(exact.new_tensor(list(value)), "c -> c 1 1 1") for value in values)
        return exact, mean, std

    def _encode(self, x: Tensor, state: State) -> Tensor:
        return self.quant_conv(self.encoder(x, state=state), state=state)

    def _decode(self, x: Tensor, state: State) -> Tensor:
        return self.decoder(self.post_quant_conv(x, state=state), state=state)

    def _tiling(self, height: int, width: int, *, unit: int) -> Tiling | None:
        """The tiles of a frame of so many pixels, in units; None where one holds it."""
        if self.tiling is None or (height <= self.tiling.tile[0] and width <= self.tiling.tile[1]):
            return None
        return Tiling(*((rows // unit, columns // unit) for rows, columns in self.tiling))

    def _check_clip(self, video: Tensor, *, first: bool) -> None:
        channels = self.config["in_channels"] // self.patch**2
        if video.ndim != 5 or video.shape[1] != channels:
            raise ValueError(f"a clip must be (b, {channels}, t, h, w), got {tuple(video.shape)}")
        self._check_dtype(video)
        check_size(video.shape[4], video.shape[3], self.space_stride)
        frames, stride = video.shape[2], self.time_stride
        if first:
            check_frames(frames, stride)
        elif frames % stride:
            raise ValueError(f"after the first chunk frames must come in multiples of {stride}, got {frames}")

    def _check_latents(self, latents: Tensor) -> None:
        if latents.ndim != 5 or latents.shape[1] != self.config["z_dim"]:
            raise ValueError(f"latents must be (b, {self.config['z_dim']}, t, h, w), got {tuple(latents.shape)}")
        self._check_dtype(latents)

    def _check_dtype(self, x: Tensor) -> None:
        if x.dtype != self.dtype:
            raise ValueError(f"this VAE works in {self.dtype}, got {x.dtype}; pass x.to(vae.dtype) or call vae.to()")
