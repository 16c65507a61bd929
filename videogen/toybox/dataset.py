"""Serve the toybox as a data set without files: every clip is drawn from its seed on demand.

DataConfig (toybox = number of clips)  ->  ToyboxClips: entries (seed, size, frames, token count), captions  ->  Clip
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
from videogen.data.folder import Clip, scale_and_crop
from videogen.packing.patch_schedule import Patch
from videogen.toybox import caption, draw_scene, render
from videogen.toybox.folder import WORLD_VERSION, clip_seed
from videogen.toybox.token_labels import ground_truth
from videogen.toybox.world.free_captions import free_caption
from videogen.toybox.world.scenes import FRAME_SIZES, LENGTHS, Scene, scene_extent

# A clip, its caption and its ground truth need the scene in turn, and captions are embedded sixteen batches ahead.
draw_cached_scene = lru_cache(4096)(draw_scene)


@dataclass(frozen=True)
class ToyboxEntry:
    """Seed, size and number of tokens of a clip that is drawn on demand."""

    seed: int
    frames: int
    width: int
    height: int
    num_tokens: int


class ToyboxClips:
    """Clips of the toybox: they depend on the seed alone, and a larger set begins with a smaller one."""

    def __init__(self, config: DataConfig, patch: Patch, *, seed: int = 0) -> None:
        self.config, self.seed = config, seed
        self.sizes = tuple(map(parse_size, config.toybox_sizes)) or FRAME_SIZES
        self.lengths = config.toybox_lengths or LENGTHS
        self.entries: list[ToyboxEntry] = []
        for index in range(config.toybox):
            scene_seed = clip_seed(seed, index)
            (width, height), frames = scene_extent(scene_seed, sizes=self.sizes, lengths=self.lengths)
            cells = (1 + (frames - 1) // TIME_STRIDE) * (height // SPACE_STRIDE) * (width // SPACE_STRIDE)
            self.entries.append(ToyboxEntry(scene_seed, frames, width, height, cells // math.prod(patch)))
        self.captions: dict[int, list[str]] = {}

    def scene(self, index: int) -> Scene:
        """Draw the scene of a clip."""
        return draw_cached_scene(self.entries[index].seed, sizes=self.sizes, lengths=self.lengths)

    def names(self) -> list[str]:
        """Return the clips' names: the seeds of their scenes."""
        return [str(entry.seed) for entry in self.entries]

    def caption(self, index: int, epoch: int = 0) -> str:
        """Caption a clip; the epochs read its captions in turn."""
        if index not in self.captions:
            self.captions[index] = self.write_captions(index)
        return self.captions[index][epoch % self.config.toybox_captions]

    def write_captions(self, index: int) -> list[str]:
        """Write all captions of a clip, a share of them in free English: drawing its scene takes longer than these."""
        scene, seed = self.scene(index), self.entries[index].seed
        num = self.config.toybox_captions
        is_free = np.random.default_rng([seed, 3]).random(num) < self.config.toybox_free
        return [(free_caption if is_free[i] else caption)(scene, seed + i) for i in range(num)]

    def read(self, index: int, epoch: int = 0) -> Clip:
        """Render a clip, the same in every epoch."""
        scene = self.scene(index)
        frames = torch.from_numpy(np.ascontiguousarray(render(scene)))
        video = scale_and_crop(frames, scene.width, scene.height)
        return Clip(rearrange(video, "t c h w -> c t h w"), self.caption(index, epoch))

    def ground_truth(self, index: int) -> dict[str, np.ndarray]:
        """Label the latent cells of a clip: the arrays of token_labels.GroundTruth by name."""
        return ground_truth(self.scene(index), time_stride=TIME_STRIDE, space_stride=SPACE_STRIDE)._asdict()

    def key(self, index: int, epoch: int) -> tuple[object, ...]:
        """Return everything that determines the content of a clip, as a key for caches."""
        return WORLD_VERSION, self.entries[index].seed, self.sizes, self.lengths

    def num_windows(self, index: int) -> int:
        """Return 1: a clip is drawn whole."""
        return 1

    def report(self, index: int, reason: str) -> None:
        """Raise AssertionError: every clip can be drawn, so a failure is a bug of the toybox."""
        raise AssertionError(f"clip {index} of the toybox cannot be drawn, which is a bug: {reason}")
