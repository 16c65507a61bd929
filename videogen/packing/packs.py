"""Patchify latents of any size and concatenate their tokens into one pack.

    latents [(c, t, h, w), ...]  ->  PackedVideo: tokens (n, c·pt·ph·pw), grids [(t, h, w), ...], patch

A pack has no padding, and the order of its clips means nothing: a clip's tokens are contiguous, and the position of
each is relative to its own clip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from videogen.packing.patch_schedule import Patch

Grid = tuple[int, int, int]
Lengths = tuple[int, ...]


class RopeScaling(NamedTuple):
    """How RoPE is scaled for a clip that is longer or larger than those of training (models/rope.py)."""

    kind: str
    trained: Grid  # in base cells


class PackedVideo(NamedTuple):
    """The tokens of several clips end to end; grids are counted in patches, so a clip has t·h·w tokens."""

    tokens: Tensor  # (n, c·pt·ph·pw)
    grids: tuple[Grid, ...]
    patch: Patch
    scaling: RopeScaling | None = None

    @property
    def lengths(self) -> Lengths:
        """The number of tokens of each clip: host integers, so that attention splits without a device sync."""
        return tuple(math.prod(grid) for grid in self.grids)


class PackLayout:
    """The grids (t, h, w) and the numbers of tokens of the clips in a pack.

    It is no tuple: torch.compile looks into tuples, and would recompile for each number of clips.
    """

    def __init__(self, grids: Sequence[Grid], lengths: Lengths | None = None) -> None:
        self.grids = tuple(grids)
        self.lengths = tuple(map(math.prod, self.grids)) if lengths is None else lengths


def patch_grid(shape: Sequence[int], patch: Patch) -> Grid:
    """Return the grid of patches of a latent (c, t, h, w); raises a ValueError where the patch does not divide it."""
    if any(side % step for side, step in zip(shape[1:], patch, strict=True)):
        raise ValueError(f"a latent of {tuple(shape[1:])} frames, rows, columns cannot be cut into patches of {patch}")
    t, h, w = (side // step for side, step in zip(shape[1:], patch, strict=True))
    return t, h, w


def patchify(latent: Tensor, patch: Patch) -> Tensor:
    """Cut a latent (c, t, h, w) into tokens (t·h·w, c·pt·ph·pw), row-major; a token is ordered like a Conv3d weight."""
    pt, ph, pw = patch
    return rearrange(latent, "c (t pt) (h ph) (w pw) -> (t h w) (c pt ph pw)", pt=pt, ph=ph, pw=pw)


def unpatchify(tokens: Tensor, grid: Grid, patch: Patch) -> Tensor:
    """Reassemble tokens (t·h·w, c·pt·ph·pw) into the latent (c, t, h, w)."""
    (t, h, w), (pt, ph, pw) = grid, patch
    return rearrange(tokens, "(t h w) (c pt ph pw) -> c (t pt) (h ph) (w pw)", t=t, h=h, w=w, pt=pt, ph=ph, pw=pw)


def pack(latents: Sequence[Tensor], patch: Patch) -> PackedVideo:
    """Patchify latents (c, t, h, w) of any sizes into one pack, in the order given."""
    grids = tuple(patch_grid(latent.shape, patch) for latent in latents)
    return PackedVideo(torch.cat([patchify(latent, patch) for latent in latents]), grids, patch)


def unpack(video: PackedVideo) -> list[Tensor]:
    """Return the latents (c, t, h, w) of a pack, bit for bit as they went in."""
    clips = video.tokens.split(video.lengths)
    return [unpatchify(tokens, grid, video.patch) for tokens, grid in zip(clips, video.grids, strict=True)]


def repatch(video: PackedVideo, patch: Patch) -> PackedVideo:
    """Repack the same clips in another patch size; raises a ValueError where the patch does not divide a latent."""
    return video if video.patch == patch else pack(unpack(video), patch)._replace(scaling=video.scaling)


def patch_positions(grids: Sequence[Grid], patch: Patch, base: Patch = (1, 2, 2)) -> Tensor:
    """Return patch centres (n, 3) float64 in units of base patches: a base patch in cell (f, r, c) is at (f, r, c).

    A coarse patch is thus at the mean of the base patches that it covers (1 x 2 x 2 latent cells each in Wan), and
    every patch size shares one rotary embedding (FlexiDiT, Anagnostidis et al. 2025).
    """
    centres = []
    for grid in grids:
        axes = [
            (torch.arange(side, dtype=torch.float64) + 0.5) * step / base_step - 0.5
            for side, step, base_step in zip(grid, patch, base, strict=True)
        ]
        centres.append(rearrange(torch.stack(torch.meshgrid(*axes, indexing="ij")), "coord t h w -> (t h w) coord"))
    return torch.cat(centres)


class PackedText(NamedTuple):
    """The embedded tokens of several texts end to end; a token's weight is how many equal tokens it stands for."""

    tokens: Tensor  # (m, text_dim)
    lengths: Lengths
    weights: Tensor  # (m,) float32


def pack_texts(texts: Sequence[Tensor]) -> PackedText:
    """Concatenate embedded texts (m_i, text_dim) into one pack, every token with weight 1."""
    tokens = torch.cat(list(texts))
    return PackedText(tokens, tuple(len(text) for text in texts), torch.ones(len(tokens), device=tokens.device))


def pad_texts(texts: Sequence[Tensor], num_rows: int) -> PackedText:
    """Pack embedded texts (m_i, text_dim), each padded with zeros to num_rows tokens: one zero token of that weight."""
    rows, weights = [], []
    for text in texts:
        num_zeros = max(0, num_rows - len(text))
        rows += [text, text.new_zeros(min(1, num_zeros), text.shape[1])]
        weights += [1.0] * len(text) + [float(num_zeros)] * min(1, num_zeros)
    lengths = tuple(len(text) + (len(text) < num_rows) for text in texts)
    tokens = torch.cat(rows)
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    return PackedText(tokens, lengths, torch.tensor(weights, device=tokens.device, dtype=dtype))
