"""The toybox as a folder without files: every clip is drawn from its seed when it is needed.

DataConfig (toybox = how many)  ->  DrawnClips: entries (seed, caption, size, frames, token count)  ->  Clip
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from einops import rearrange

from videogen.config.sizes import SPACE_STRIDE, TIME_STRIDE, parse_size
from videogen.config.train import DataConfig
from videogen.data.folder import Clip, cover, hold_out
from videogen.packing.patch_schedule import Patch
from videogen.toybox import caption, draw_scene, render
from videogen.toybox.folder import WORLD, clip_seed
from videogen.toybox.token_labels import truth
from videogen.toybox.world.scenes import FRAME_SIZES, LENGTHS, Scene, extent


@lru_cache
def scene_of(seed: int, sizes: tuple[tuple[int, int], ...], lengths: tuple[int, ...]) -> Scene:
    """A scene that was drawn a moment ago is not drawn again for its caption and its truth."""
    return draw_scene(seed, sizes=sizes, lengths=lengths)


@dataclass(frozen=True)
class DrawnEntry:
    """A clip that can be drawn, and how many tokens it makes."""

    seed: int
    frames: int
    width: int
    height: int
    num_tokens: int


class DrawnClips:
    """Clips of the toybox: the same ones for the same seed, and more of them begin with the fewer."""

    def __init__(self, config: DataConfig, patch: Patch, *, seed: int = 0) -> None:
        self.config, self.seed = config, seed
        self.sizes = tuple(map(parse_size, config.toybox_sizes)) or FRAME_SIZES
        self.lengths = config.toybox_lengths or LENGTHS
        cell = math.prod(patch)
        self.entries: list[DrawnEntry] = []
        for index in range(config.toybox):
            one = clip_seed(seed, index)
            (width, height), frames = extent(one, sizes=self.sizes, lengths=self.lengths)
            cells = (1 + (frames - 1) // TIME_STRIDE) * (height // SPACE_STRIDE) * (width // SPACE_STRIDE)
            self.entries.append(DrawnEntry(one, frames, width, height, cells // cell))
        self.captions: dict[int, str] = {}

    def scene(self, index: int) -> Scene:
        """What the clip shows."""
        return scene_of(self.entries[index].seed, self.sizes, self.lengths)

    def split(self) -> tuple[list[int], list[int]]:
        """Indices to train on and indices held out."""
        return hold_out(len(self.entries), self.config.val_clips, self.seed)

    def caption(self, index: int) -> str:
        """What is said of a clip."""
        if index not in self.captions:
            self.captions[index] = caption(self.scene(index), self.entries[index].seed)
        return self.captions[index]

    def read(self, index: int, epoch: int = 0) -> Clip:
        """The clip, drawn; every epoch has the same."""
        scene = self.scene(index)
        frames = torch.from_numpy(np.ascontiguousarray(render(scene)))
        video = cover(frames, scene.width, scene.height)
        return Clip(rearrange(video, "t c h w -> c t h w"), self.caption(index))

    def truth(self, index: int) -> dict[str, np.ndarray]:
        """What is where in the clip, in cells of its latent: the arrays of videogen.toybox.facts.Truth."""
        return truth(self.scene(index), frames=TIME_STRIDE, side=SPACE_STRIDE)._asdict()

    def key(self, index: int, epoch: int) -> tuple[object, ...]:
        """All that decides the clip's content."""
        return WORLD, self.entries[index].seed, self.sizes, self.lengths

    def report(self, index: int, reason: str) -> None:
        """Every clip can be drawn: one that cannot is a mistake of ours."""
        raise AssertionError(f"clip {index} of the toybox cannot be drawn: {reason}")
