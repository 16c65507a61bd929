"""Embed patches, noise levels, text and image features as rows of the model's width d, before the blocks of the DiT.

patches (n, c, pt, ph, pw), sigma (u,), text (m, text_dim), image rows (m, image_dim)  ->  rows of width d
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from videogen.models.dit_blocks import FeedForward, FP32LayerNorm, compute_dtype
from videogen.packing.packs import Lengths


class PatchEmbedding(nn.Conv3d):
    """A convolution on patches of its own size, (n, c, pt, ph, pw) -> (n, d, 1, 1, 1), computed as one product."""

    def forward(self, input: Tensor) -> Tensor:
        """Embed patches; called like any other layer, so that adapters and offloading find it."""
        return rearrange(F.linear(input.flatten(1), self.weight.flatten(1), self.bias), "n d -> n d 1 1 1")


class MLP(nn.Module):
    """Two linear layers, named as diffusers names those of its embedders."""

    def __init__(self, in_size: int, out_size: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_size, out_size)
        self.linear_2 = nn.Linear(out_size, out_size)


class ImageEmbedder(nn.Module):
    """CLIP's features of a clip's images, projected to the model's width (Wan 2.1 image-to-video)."""

    def __init__(self, image_dim: int, d: int, num_rows: int | None) -> None:
        super().__init__()
        self.norm1, self.norm2 = FP32LayerNorm(image_dim), FP32LayerNorm(d)
        self.ff = FeedForward(image_dim, image_dim, d, approximate="none")
        self.pos_embed = nn.Parameter(torch.zeros(1, num_rows, image_dim)) if num_rows else None

    def forward(self, rows: Tensor, lengths: Lengths) -> Tensor:
        """Project CLIP's rows (m, image_dim), of the given number per clip, to (m, d).

        A model of first and last frames adds position embeddings, which tell the two images of a clip apart.
        """
        rows = rows.to(compute_dtype(self.ff.net[2]))
        if self.pos_embed is not None:
            if set(lengths) != {self.pos_embed.shape[1]}:
                raise ValueError(
                    f"this model reads {self.pos_embed.shape[1]} rows of a first and a last image a clip, got "
                    f"{', '.join(map(str, sorted(set(lengths))))}; give it both images"
                )
            rows = rows + self.pos_embed[0].to(rows.dtype).repeat(len(lengths), 1)
        return self.norm2(self.ff(self.norm1(rows)))


class ConditionEmbedder(nn.Module):
    """The embedders of noise level, text and image."""

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
        """Embed noise levels (u,) as (u, d); Wan's timestep is 1000 sigma, a whole number if sigma is float64."""
        mlp = self.time_embedder
        waves = sinusoidal_embedding(1000 * sigma, self.freq_dim).to(compute_dtype(mlp.linear_1))
        return mlp.linear_2(F.silu(mlp.linear_1(waves)))

    def text(self, tokens: Tensor) -> Tensor:
        """Project text rows (m, text_dim) to (m, d)."""
        mlp = self.text_embedder
        return mlp.linear_2(F.gelu(mlp.linear_1(tokens.to(compute_dtype(mlp.linear_1))), approximate="tanh"))


def sinusoidal_embedding(timestep: Tensor, size: int) -> Tensor:
    """Compute cosines and sines of timesteps (u,) at geometric frequencies, (u, size) (Vaswani et al. 2017)."""
    half = size // 2
    steps = torch.arange(half, dtype=torch.float32, device=timestep.device)
    frequencies = torch.exp(-math.log(1e4) * steps / half)  # In diffusers' order: its rounding shows at timestep 1000.
    angles = timestep.float()[:, None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1)
