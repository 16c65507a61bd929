"""Wan's video autoencoders, 2.1 and 2.2: their weights unchanged, their numbers to rounding, in less time.

    clip (b, 3, 1+4k, h, w) in [-1, 1]  <->  latent (b, c, 1+k, h/8, w/8), of 2.2 (b, c, 1+k, h/16, w/16), normalised

Names, shapes and config keys are those of diffusers' AutoencoderKLWan (Wan Team 2025), so a folder of either opens in
the other. An image is a clip of one frame; working in chunks or batches changes nothing. Tiles, for frames that do not
fit in memory, do change the numbers: as in diffusers, they are blended where they overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from einops import rearrange
from torch import Tensor, nn

from videogen.config.sizes import check_frames, check_size
from videogen.models.streaming import Autoencoder, Posterior, StreamState, apply_blocks
from videogen.models.wan_vae_layers import CausalConv, WanDecoder, WanEncoder, split_frames

# The statistics of Wan 2.1's latents; the config of 2.2 brings its own.
MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip
LATENT_FRAMES_PER_CHUNK = 4  # measured: larger chunks gain little
TileStates = dict[tuple[int, int], StreamState]  # by the top left corner of a tile; (0, 0) alone without tiles


def optimize_weight_layout(model: nn.Module) -> None:
    """Store kernels tap after tap and channels last, as causal_convolution reads them, to save a copy on every call."""
    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            kernels = rearrange(module.weight.data, "o i k y x -> k o y x i").contiguous()
            module.weight.data = rearrange(kernels, "k o y x i -> o i k y x")
        elif isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)


class Tiling(NamedTuple):
    """Height and width of a tile, and the distances from one tile to the next, in pixels or in latent cells."""

    size: tuple[int, int]
    stride: tuple[int, int]


def run_tiled(blocks: Sequence[nn.Module], x: Tensor, tiling: Tiling | None, states: TileStates) -> Tensor:
    """Apply blocks to (b, t, h, w, c) tile by tile, blending each tile with those above it and on its left."""
    if tiling is None:
        return apply_blocks(blocks, x, states.setdefault((0, 0), {}))
    rows: list[Tensor] = []
    tiles_above: list[Tensor] = []
    for top in range(0, x.shape[2], tiling.stride[0]):
        tiles: list[Tensor] = []
        cropped: list[Tensor] = []
        for left in range(0, x.shape[3], tiling.stride[1]):
            window = x[:, :, top : top + tiling.size[0], left : left + tiling.size[1]]
            tile = apply_blocks(blocks, window, states.setdefault((top, left), {}))
            size, stride = ([side * tile.shape[2] // window.shape[2] for side in sides] for sides in tiling)
            if tiles_above:
                blend_overlap(tiles_above[len(tiles)], tile, size[0] - stride[0], dim=2)
            if tiles:
                blend_overlap(tiles[-1], tile, size[1] - stride[1], dim=3)
            tiles.append(tile)
            cropped.append(tile[:, :, : stride[0], : stride[1]])
        rows.append(torch.cat(cropped, dim=3))
        tiles_above = tiles
    return torch.cat(rows, dim=2)


def blend_overlap(previous: Tensor, tile: Tensor, overlap: int, *, dim: int) -> None:
    """Fade from the end of the previous tile into the start of this one, which is changed in place."""
    overlap = min(overlap, previous.shape[dim], tile.shape[dim])
    ramp = torch.arange(overlap, device=tile.device, dtype=tile.dtype) / overlap
    start = tile.narrow(dim, 0, overlap)
    end = previous.narrow(dim, previous.shape[dim] - overlap, overlap)
    start.copy_(torch.lerp(end, start, ramp.view(-1, *[1] * (tile.ndim - dim - 1))))


class WanVAE(Autoencoder, ModelMixin, ConfigMixin):
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
            raise ValueError(f"attn_scales must be empty, got {list(attn_scales)}; Wan VAEs have attention midway only")
        shared = {"mult": dim_mult, "depth": num_res_blocks, "dropout": dropout, "residual": is_residual}
        self.encoder = WanEncoder(in_channels, base_dim, 2 * z_dim, halve_time=temperal_downsample, **shared)
        self.quant_conv, self.post_quant_conv = CausalConv(2 * z_dim, 2 * z_dim, 1), CausalConv(z_dim, z_dim, 1)
        double_time = temperal_downsample[::-1]
        self.decoder = WanDecoder(z_dim, decoder_base_dim or base_dim, out_channels, double_time=double_time, **shared)
        self.latent_channels = z_dim
        self.patch = patch_size or 1
        self.time_stride = 2 ** sum(temperal_downsample)
        self.space_stride = 2 ** (len(dim_mult) - 1) * self.patch
        self.tiling: Tiling | None = None
        optimize_weight_layout(self)

    @classmethod
    def from_pretrained(cls, *args: object, **options: object) -> WanVAE:  # type: ignore[override]
        """Load as diffusers does, then restore the fast layout, which diffusers replaces by the one in the file."""
        loaded = super().from_pretrained(*args, **options)  # type: ignore[misc]
        optimize_weight_layout(loaded[0] if isinstance(loaded, tuple) else loaded)
        return loaded

    def enable_tiling(
        self,
        tile_sample_min_height: int = 256,
        tile_sample_min_width: int = 256,
        tile_sample_stride_height: int = 192,
        tile_sample_stride_width: int = 192,
    ) -> None:
        """Split frames that are larger than a tile, for less memory and slightly other numbers; sizes in pixels."""
        size = tile_sample_min_height, tile_sample_min_width
        stride = tile_sample_stride_height, tile_sample_stride_width
        for side, step in zip(size, stride, strict=True):
            if side % self.space_stride or step % self.space_stride or not 0 < step <= side:
                raise ValueError(
                    f"a tile and its stride must be multiples of {self.space_stride}, the stride no larger than the "
                    f"tile, got {side} and {step}; the defaults are 256 and 192"
                )
        self.tiling = Tiling(size, stride)

    def disable_tiling(self) -> None:
        """Encode and decode whole frames again."""
        self.tiling = None

    @apply_forward_hook
    def posterior(self, video: Tensor, state: TileStates | None = None) -> Posterior:
        """Encode a clip (b, 3, 1+4k, h, w), or with the state of earlier chunks (b, 3, 4k, h, w), in raw units."""
        state = {} if state is None else state
        self._check_input(video, "a clip", self.config["in_channels"] // self.patch**2)
        frames, height, width = video.shape[2:]
        check_size(width, height, self.space_stride)
        if not state:
            check_frames(frames, self.time_stride)
        elif frames % self.time_stride:
            raise ValueError(f"chunks after the first must have a multiple of {self.time_stride} frames, got {frames}")
        x = rearrange(video, "b c t (h p) (w q) -> b t h w (c q p)", p=self.patch, q=self.patch)
        # Wan 2.2's encoder works on patches of 2 x 2 pixels, and its tiles count patches: as in diffusers, they cover
        # twice the height and width of the decoder's.
        tiling = self._tiling_for(height, width, unit=1)
        chunks, blocks = split_frames(x, LATENT_FRAMES_PER_CHUNK * self.time_stride), [self.encoder, self.quant_conv]
        moments = torch.cat([run_tiled(blocks, chunk, tiling, state) for chunk in chunks], dim=1)
        mean, logvar = rearrange(moments, "b t h w (two c) -> two b c t h w", two=2)
        return Posterior(mean, logvar.clamp(-30, 20))

    @apply_forward_hook
    def reconstruct(self, raw: Tensor, state: TileStates | None = None) -> Tensor:
        """Decode raw latents (b, c, t, h, w) to (b, 3, 1+4(t-1), h, w); with an earlier state to (b, 3, 4t, h, w)."""
        state = {} if state is None else state
        self._check_input(raw, "latents", self.latent_channels)
        b, _, t, *sides = raw.shape
        height, width = (side * self.space_stride for side in sides)
        tiling = self._tiling_for(height, width, unit=self.space_stride)
        num_frames = t * self.time_stride if state else (t - 1) * self.time_stride + 1
        video = raw.new_empty(b, self.config["out_channels"] // self.patch**2, num_frames, height, width)
        start = 0
        for chunk in split_frames(rearrange(raw, "b c t h w -> b t h w c"), LATENT_FRAMES_PER_CHUNK):
            x = run_tiled([self.post_quant_conv, self.decoder], chunk, tiling, state)
            out = video[:, :, start : start + x.shape[1]]
            out.copy_(rearrange(x, "b t h w (c q p) -> b c t (h p) (w q)", p=self.patch, q=self.patch))
            start += x.shape[1]
        return video.clamp_(-1, 1)

    def denormalise(self, latents: Tensor) -> Tensor:
        """Invert normalise."""
        self._check_input(latents, "latents", self.latent_channels)
        return super().denormalise(latents)

    def _statistics(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        values = self.config["latents_mean"], self.config["latents_std"]
        if {len(value) for value in values} != {latents.shape[1]}:
            raise ValueError(f"latents_mean and latents_std of the config must have {latents.shape[1]} values each")
        dtype = torch.promote_types(latents.dtype, torch.float32)
        mean, std = (rearrange(latents.new_tensor(list(v), dtype=dtype), "c -> c 1 1 1") for v in values)
        return mean, std

    def _tiling_for(self, height: int, width: int, *, unit: int) -> Tiling | None:
        """Return the tiling in units of so many pixels, or None if a frame of height x width pixels fits in a tile."""
        if self.tiling is None or (height <= self.tiling.size[0] and width <= self.tiling.size[1]):
            return None
        return Tiling(*((rows // unit, columns // unit) for rows, columns in self.tiling))

    def _check_input(self, x: Tensor, name: str, channels: int) -> None:
        if x.ndim != 5 or x.shape[1] != channels:
            raise ValueError(f"{name} must be (b, {channels}, t, h, w), got {tuple(x.shape)}")
        if x.dtype != self.dtype:
            raise ValueError(f"this VAE works in {self.dtype}, got {x.dtype}; pass x.to(vae.dtype) or call vae.to()")
