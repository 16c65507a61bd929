"""Cut latents of any size into spacetime patches and lay them end to end.

    latents [(c, t, h, w), ...]  ->  PackedVideo: tokens (n, c·pt·ph·pw), grids [(t, h, w), ...], patch

A pack has no padding and no order of its own: a clip's tokens stay together, and each knows where it is in its clip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
from einops import rearrange
from torch import Tensor

from videogen.packing.patch_schedule import Patch

Grid = tuple[int, int, int]
Lengths = tuple[int, ...]
Item = TypeVar("Item")


class Scaling(NamedTuple):
    """How places are told where a clip is longer or larger than trained (scaling.py)."""

    kind: str
    trained: Grid  # in base cells


class PackedVideo(NamedTuple):
    """Clips side by side; grids are counted in patches, so a clip has t·h·w tokens."""

    tokens: Tensor  # (n, c·pt·ph·pw)
    grids: tuple[Grid, ...]
    patch: Patch
    scaling: Scaling | None = None

    @property
    def lengths(self) -> Lengths:
        """Tokens of each clip: host integers, so that attention splits without asking the device."""
        return tuple(math.prod(grid) for grid in self.grids)


class Layout:
    """Which clips lie side by side in a pack: grids (t, h, w), lengths n.

    No tuple: --compile looks into those, and would compile anew for each number of clips.
    """

    def __init__(self, grids: Sequence[Grid], lengths: Lengths | None = None) -> None:
        self.grids = tuple(grids)
        self.lengths = tuple(map(math.prod, self.grids)) if lengths is None else lengths


def check_patch(shape: Sequence[int], patch: Patch) -> Grid:
    """The grid of patches of a (c, t, h, w) latent; a ValueError where the patch does not divide it."""
    if any(side % cut for side, cut in zip(shape[1:], patch, strict=True)):
        raise ValueError(f"a latent of {tuple(shape[1:])} frames, rows, columns cannot be cut into patches of {patch}")
    t, h, w = (side // cut for side, cut in zip(shape[1:], patch, strict=True))
    return t, h, w


def patchify(latent: Tensor, patch: Patch) -> Tensor:
    """A latent (c, t, h, w) as tokens (t·h·w, c·pt·ph·pw), row-major; within a token the order of a Conv3d weight."""
    pt, ph, pw = patch
    return rearrange(latent, "c (t pt) (h ph) (w pw) -> (t h w) (c pt ph pw)", pt=pt, ph=ph, pw=pw)


def unpatchify(tokens: Tensor, grid: Grid, patch: Patch) -> Tensor:
    """Tokens (t·h·w, c·pt·ph·pw) back to the latent (c, t, h, w)."""
    (t, h, w), (pt, ph, pw) = grid, patch
    return rearrange(tokens, "(t h w) (c pt ph pw) -> c (t pt) (h ph) (w pw)", t=t, h=h, w=w, pt=pt, ph=ph, pw=pw)


def pack(latents: Sequence[Tensor], patch: Patch) -> PackedVideo:
    """Latents of any sizes as one pack, in the order given."""
    grids = tuple(check_patch(latent.shape, patch) for latent in latents)
    return PackedVideo(torch.cat([patchify(latent, patch) for latent in latents]), grids, patch)


def unpack(video: PackedVideo) -> list[Tensor]:
    """The latents of a pack, bit for bit as they went in."""
    clips = video.tokens.split(video.lengths)
    return [unpatchify(tokens, grid, video.patch) for tokens, grid in zip(clips, video.grids, strict=True)]


def recut(video: PackedVideo, patch: Patch) -> PackedVideo:
    """The same clips in patches of another size; a ValueError where a latent is no multiple of them."""
    return video if video.patch == patch else pack(unpack(video), patch)._replace(scaling=video.scaling)


def positions(grids: Sequence[Grid], patch: Patch, base: Patch = (1, 2, 2)) -> Tensor:
    """Patch centres in base-cell units, (n, 3) float64: a base patch at grid place (f, r, c) is at (f, r, c).

    A base cell is the model's own patch, 1 x 2 x 2 latent cells in Wan, so that a coarse patch lies at the mean of the
    base patches it covers: every patch size shares one rotary embedding (FlexiDiT, Anagnostidis et al. 2025).
    """
    clips = []
    for grid in grids:
        axes = [
            (torch.arange(side, dtype=torch.float64) + 0.5) * cut / cell - 0.5
            for side, cut, cell in zip(grid, patch, base, strict=True)
        ]
        clips.append(rearrange(torch.stack(torch.meshgrid(*axes, indexing="ij")), "place t h w -> (t h w) place"))
    return torch.cat(clips)


class PackedText(NamedTuple):
    """Texts side by side; a row's weight is how many equal rows it stands for."""

    tokens: Tensor  # (m, text_dim)
    lengths: Lengths
    weights: Tensor  # (m,) float32


def pack_texts(texts: Sequence[Tensor]) -> PackedText:
    """Embedded texts (m_i, text_dim) as one pack, every row standing for itself."""
    tokens = torch.cat(list(texts))
    return PackedText(tokens, tuple(len(text) for text in texts), torch.ones(len(tokens), device=tokens.device))


def pad_texts(texts: Sequence[Tensor], num_rows: int) -> PackedText:
    """Embedded texts (m_i, text_dim), each followed by zeros up to num_rows: one row that stands for all of them."""
    parts, weights = [], []
    for text in texts:
        num_zeros = max(0, num_rows - len(text))
        parts += [text, text.new_zeros(min(1, num_zeros), text.shape[1])]
        weights += [1.0] * len(text) + [float(num_zeros)] * min(1, num_zeros)
    lengths = tuple(len(text) + (len(text) < num_rows) for text in texts)
    tokens = torch.cat(parts)
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    return PackedText(tokens, lengths, torch.tensor(weights, device=tokens.device, dtype=dtype))
