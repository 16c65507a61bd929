"""The layers before the blocks of the DiT: patches, noise levels, text and image features become tokens of width d."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from videogen.models.dit_blocks import FeedForward, Norm, dtype_of
from videogen.packing.packs import Lengths


def sinusoid(timestep: Tensor, size: int) -> Tensor:
    """Cosines and sines of a time (u,) at geometric frequencies, (u, size) (Vaswani et al. 2017)."""
    half = size // 2
    steps = torch.arange(half, dtype=torch.float32, device=timestep.device)
    rates = torch.exp(-math.log(1e4) * steps / half)  # in diffusers' order: at timestep 1000 its rounding shows
    angles = timestep.float()[:, None] * rates
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


class PatchEmbedding(nn.Conv3d):
    """A convolution on patches of its own size, one by one (n, c, pt, ph, pw) -> (n, d, 1, 1, 1): one product."""

    def forward(self, input: Tensor) -> Tensor:
        """Called as any other layer is, so that adapters and offloading find it."""
        return rearrange(F.linear(input.flatten(1), self.weight.flatten(1), self.bias), "n d -> n d 1 1 1")


class MLP(nn.Module):
    """Two linear layers around an activation, named as diffusers names its embedders."""

    def __init__(self, in_size: int, out_size: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_size, out_size)
        self.linear_2 = nn.Linear(out_size, out_size)


class ImageEmbedder(nn.Module):
    """What CLIP says of a clip's images, brought to the model's width (Wan 2.1 image-to-video)."""

    def __init__(self, image_dim: int, d: int, num_rows: int | None) -> None:
        super().__init__()
        self.norm1, self.norm2 = Norm(image_dim), Norm(d)
        self.ff = FeedForward(image_dim, image_dim, d, approximate="none")
        self.pos_embed = nn.Parameter(torch.zeros(1, num_rows, image_dim)) if num_rows else None

    def forward(self, rows: Tensor, lengths: Lengths) -> Tensor:
        """Rows (m, image_dim) of clips with so many each, as (m, d); with first and last frame, which is which."""
        rows = rows.to(dtype_of(self.ff.net[2]))
        if self.pos_embed is not None:
            if set(lengths) != {self.pos_embed.shape[1]}:
                raise ValueError(
                    f"this model reads {self.pos_embed.shape[1]} rows of a first and a last image a clip, got "
                    f"{', '.join(map(str, sorted(set(lengths))))}; give it both images"
                )
            rows = rows + self.pos_embed[0].to(rows.dtype).repeat(len(lengths), 1)
        return self.norm2(self.ff(self.norm1(rows)))


class ConditionEmbedder(nn.Module):
    """Noise level, text and image, brought to the model's width."""

    def __init__(
        self, d: int, freq_dim: int, text_dim: int, image_dim: int | None = None, num_image_rows: int | None = None
    ) -> None:
        super().__init__()
        self.freq_dim = freq_dim
        self.time_embedder = MLP(freq_dim, d)
        self.time_proj = nn.Linear(d, 6 * d)
        self.text_embedder = MLP(text_dim, d)
        self.image_embedder = ImageEmbedder(image_dim, d, num_image_rows) if image_dim else None

    def time(self, sigma: Tensor) -> Tensor:
        """Noise levels (u,) as embeddings (u, d); Wan's timestep is 1000 sigma, whole where sigma is float64."""
        mlp = self.time_embedder
        waves = sinusoid(1000 * sigma, self.freq_dim).to(dtype_of(mlp.linear_1))
        return mlp.linear_2(F.silu(mlp.linear_1(waves)))

    def text(self, tokens: Tensor) -> Tensor:
        """Text rows (m, text_dim) as (m, d)."""
        mlp = self.text_embedder
        return mlp.linear_2(F.gelu(mlp.linear_1(tokens.to(dtype_of(mlp.linear_1))), approximate="tanh"))
