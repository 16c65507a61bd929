"""Hold what is known of a pack's clips while the rest is denoised: one mechanism for images, frames, masks and clips.

    clean latents and their weights, grids  ->  KnownTokens  ->  what the network sees, its noise levels, the velocity

A cell of weight w has noise up to its cap, 1 - w: 1 is given and has none, 0 is free, and between them the clip is held
at the cap until the other cells are as clean, and then freed. While a cell is held, its estimate of the clean value is
what was given. This is all that a solver is told, so that each of them takes known cells, those that renew noise too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import rearrange, reduce, repeat
from torch import Tensor

from videogen.packing.noise import NoiseLevels, interpolate
from videogen.packing.packs import PackedText, PackedVideo, pack, repatch
from videogen.packing.patch_schedule import Patch
from videogen.sampling.solvers import Velocity


class KnownLatent(NamedTuple):
    """What is known of one clip, as it is denoised."""

    clean: Tensor  # (c, t, h, w); where the weight is 0 it is only a start (video to video), or means nothing
    weight: Tensor  # (t, h, w) in 0 ... 1: how much of it is to stay


class KnownTokens(NamedTuple):
    """What is known of the clips of a pack, in the pack's own patches."""

    clean: PackedVideo
    caps: Tensor  # (u,) the highest noise levels that occur, from 1, which is free
    cap_index: PackedVideo  # with one channel: which cap a cell has

    def to(self, device: torch.device) -> KnownTokens:
        """Move all of it to a device."""
        clean, index = (video._replace(tokens=video.tokens.to(device)) for video in (self.clean, self.cap_index))
        return KnownTokens(clean, self.caps.to(device), index)

    def per_value(self, of_caps: Tensor) -> Tensor:
        """Give each value (n, c·pt·ph·pw) what stands for its cap in (u,)."""
        cells = of_caps[self.cap_index.tokens]
        return repeat(cells, "n cells -> n (c cells)", c=self.clean.tokens.shape[1] // cells.shape[1])

    def is_held(self, sigma: Tensor) -> Tensor:
        """Return which values (n, c·pt·ph·pw) are held at a noise level: those whose cap is below it."""
        return self.per_value(self.caps < float(sigma))

    def show(self, tokens: Tensor, sigma: Tensor) -> Tensor:
        """Return what the network sees of the solver's tokens: a held value has noise up to its cap alone.

        Its noise is what the solver's tokens hold at present, so that nothing jumps when it is freed.
        """
        clean, level = self.clean.tokens, float(sigma)
        noise = (tokens - (1 - level) * clean) / level
        return torch.where(self.is_held(sigma), interpolate(clean, noise, self.per_value(self.caps)), tokens)

    def hold(self, velocity: Velocity) -> Velocity:
        """Lead held values to what was given, and leave the others to a velocity."""

        def held_velocity(tokens: Tensor, sigma: Tensor) -> Tensor:
            to_given = (tokens - self.clean.tokens) / float(sigma)
            return torch.where(self.is_held(sigma), to_given, velocity(tokens, sigma))

        return held_velocity

    def restore(self, tokens: Tensor) -> Tensor:
        """Put what was given back, bit for bit."""
        return torch.where(self.per_value(self.caps == 0), self.clean.tokens, tokens)

    def values(self, sigma: Tensor) -> Tensor:
        """Return the distinct noise levels (u,) of the tokens while free ones have level sigma (1,)."""
        return torch.minimum(self.caps.to(sigma), sigma)

    def levels(self, sigma: Tensor, clips: Sequence[int], patch: Patch) -> NoiseLevels:
        """Assign noise levels to the tokens of some clips, cut into patches of some size; sigma (1,)."""
        parts = self.cap_index.tokens.split(self.cap_index.lengths)
        cells = self.cap_index._replace(
            tokens=torch.cat([parts[clip] for clip in clips]),
            grids=tuple(self.cap_index.grids[clip] for clip in clips),
        )
        return NoiseLevels(self.values(sigma), repatch(cells, patch).tokens[:, 0])


class Condition(NamedTuple):
    """What the clips of a pack are made from besides their texts."""

    known: KnownTokens | None = None
    extra_channels: Tensor | None = None  # (n, c·pt·ph·pw) behind the noised values of each token (Wan image-to-video)
    image_rows: PackedText | None = None  # CLIP's rows of the images (Wan 2.1 image-to-video)


NO_CONDITION = Condition()


def pack_known(latents: Sequence[KnownLatent], patch: Patch, coarsest: Patch) -> KnownTokens:
    """Pack what is known of clips, in the order of the pack.

    All cells of a token have one noise level, under every patch of the run: that of the one that is free the most, so
    that what is to be made anew is. Pixels beside it that were given are put back behind the decoder (`overlay`).
    """
    weights = [weight_of_patches(latent.weight, coarsest) for latent in latents]
    cap = torch.cat([1 - weight.flatten() for weight in weights])
    caps = torch.cat([cap.new_ones(1), cap[cap < 1].unique()])  # few: a token's level is looked up among them
    index = (rearrange(cap, "cells -> cells 1") == caps).int().argmax(1)
    parts = index.split([weight.numel() for weight in weights])
    cells = [part.reshape(1, *weight.shape) for part, weight in zip(parts, weights, strict=True)]
    return KnownTokens(pack([latent.clean for latent in latents], patch), caps, pack(cells, patch))


def weight_of_patches(weight: Tensor, patch: Patch) -> Tensor:
    """Give all cells (t, h, w) of a patch the least weight among them."""
    pt, ph, pw = patch
    least = reduce(weight, "(t pt) (h ph) (w pw) -> t h w", "min", pt=pt, ph=ph, pw=pw)
    return rearrange(
        repeat(least, "t h w -> t h w pt ph pw", pt=pt, ph=ph, pw=pw), "t h w pt ph pw -> (t pt) (h ph) (w pw)"
    )


def free_latent(shape: Sequence[int]) -> KnownLatent:
    """Return a latent (c, t, h, w) of which nothing is known."""
    return KnownLatent(torch.zeros(*shape), torch.zeros(*shape[1:]))
