"""Measure the distance between two sets of clips: unbiased MMD on the features of a small network.

    frames (t, h, w, 3) uint8  ->  FeatureExtractor: features (256,)  ->  two sets of clips: polynomial MMD^2

The network was trained on rendered clips alone, to classify backgrounds, cameras, events, kinds, colours, sizes and
motions (tests/bench/features.py). The distance is KID's (Binkowski et al. 2018, Eq. 4 and the kernel of section 4).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor, nn

from videogen.config.assets import ASSETS
from videogen.toybox.world.events import EVENTS
from videogen.toybox.world.motions import MOTIONS
from videogen.toybox.world.render import render
from videogen.toybox.world.scenes import CAMERAS, Scene, draw_scene
from videogen.toybox.world.things import BACKGROUNDS, COLOURS, KINDS, SIZES

WEIGHTS = ASSETS / "toybox" / "features.safetensors"
LABELS: dict[str, tuple[str, ...]] = {
    "background": tuple(BACKGROUNDS),
    "camera": tuple(CAMERAS),
    "event": ("", *EVENTS),
    "kind": KINDS,
    "colour": tuple(COLOURS),
    "size": tuple(SIZES),
    "motion": tuple(MOTIONS),
}
WIDTH = 256
REFERENCE_SEED = 2 * 10**9  # the first scene of the reference clips, which are neither judged nor trained on
MIN_CLIPS = 3
"""The fewest clips in a set: the jackknife leaves one out, and an unbiased distance needs two."""


class FeatureExtractor(nn.Module):
    """Convolves each frame, then the changes between frames; predicts for every label whether the clip shows it."""

    middle: Tensor
    spread: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.frame = nn.Sequential(
            nn.Conv2d(3, 32, 4, stride=4), nn.GroupNorm(4, 32), nn.SiLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.GroupNorm(4, 64), nn.SiLU(),
            nn.Conv2d(64, 64, 3, padding=1), nn.GroupNorm(4, 64), nn.SiLU(),
        )  # fmt: skip
        self.change = nn.Sequential(
            nn.Conv3d(64, 96, (3, 3, 3), padding=(1, 1, 1), stride=(1, 2, 2)), nn.GroupNorm(4, 96), nn.SiLU(),
            nn.Conv3d(96, 128, (3, 1, 1), padding=(1, 0, 0)), nn.GroupNorm(4, 128), nn.SiLU(),
        )  # fmt: skip
        self.mix = nn.Linear(256, WIDTH)
        self.heads = nn.ModuleDict({name: nn.Linear(WIDTH, len(labels)) for name, labels in LABELS.items()})
        # Mean and deviation of each feature over the world's clips, so that a distance weights all features alike.
        self.register_buffer("middle", torch.zeros(WIDTH))
        self.register_buffer("spread", torch.ones(WIDTH))

    def features(self, video: Tensor) -> Tensor:
        """Map clips (b, 3, t, h, w) in [-1, 1], sides multiples of 16, to (b, 256), by mean and maximum pooling."""
        frames = self.frame(rearrange(video, "b c t h w -> (b t) c h w"))
        cells = self.change(rearrange(frames, "(b t) c h w -> b c t h w", b=len(video))).flatten(2)
        return F.silu(self.mix(torch.cat([cells.mean(2), cells.amax(2)], dim=1)))

    def forward(self, video: Tensor) -> dict[str, Tensor]:
        """Predict the logits of all labels, (b, number of labels) for each name in LABELS."""
        features = self.features(video)
        return {name: head(features) for name, head in self.heads.items()}


def targets(scene: Scene) -> dict[str, Tensor]:
    """Return the multi-hot labels of a scene, (number of labels,) for each name in LABELS."""
    shown = {
        "background": {scene.background},
        "camera": {scene.camera},
        "event": {scene.event},
        **{name: {getattr(thing, name) for thing in scene.things} for name in ("kind", "colour", "size", "motion")},
    }
    return {name: torch.tensor([float(label in shown[name]) for label in labels]) for name, labels in LABELS.items()}


def load_feature_extractor(weights: Path = WEIGHTS) -> FeatureExtractor:
    """Load the trained network, in float32 and without gradients."""
    extractor = FeatureExtractor().eval().requires_grad_(False)
    extractor.load_state_dict({name: value.float() for name, value in load_file(weights).items()})
    return extractor


@torch.no_grad()
def extract_features(clips: Sequence[np.ndarray], extractor: FeatureExtractor) -> Tensor:
    """Compute standardised features (n, 256) of clips (t, h, w, 3) uint8 of any sizes."""
    videos = (rearrange(torch.from_numpy(clip), "t h w c -> 1 c t h w").float() / 127.5 - 1 for clip in clips)
    return (torch.cat([extractor.features(video) for video in videos]) - extractor.middle) / extractor.spread


def render_reference_clips(clips: Sequence[np.ndarray], *, new: bool = False) -> Iterator[np.ndarray]:
    """Render, for each clip (t, h, w, 3), another clip of the world with its size and length; new as in draw_scene."""
    # The scenes are not those that were judged: scenes shared by two sets would make their distance too small.
    for seed, clip in enumerate(clips, start=REFERENCE_SEED):
        num_frames, height, width, _ = clip.shape
        yield render(draw_scene(seed, sizes=((width, height),), lengths=(num_frames,), new=new))


class Distance(NamedTuple):
    """The squared distance between two sets, 0 in the mean where their distribution is the same, and its interval."""

    value: float
    interval: tuple[float, float]
    """95%, which may reach below 0."""


def mmd(a: Tensor, b: Tensor) -> Distance:
    """Estimate the squared maximum mean discrepancy of features (n, d) and (m, d), without bias.

    The kernel is (x·y / d + 1)^3. The interval is the jackknife's, from leaving out one clip at a time.
    """
    n, m = len(a), len(b)
    if min(n, m) < MIN_CLIPS:
        raise ValueError(f"a distance between two sets needs {MIN_CLIPS} clips in each, got {n} and {m}; judge more")
    a, b = a.double(), b.double()
    within_a, within_b, across = ((x @ y.T / x.shape[1] + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    within_a.fill_diagonal_(0)
    within_b.fill_diagonal_(0)

    def estimate(sum_a: Tensor, n: int, sum_b: Tensor, m: int, sum_across: Tensor) -> Tensor:
        return sum_a / (n * (n - 1)) + sum_b / (m * (m - 1)) - 2 * sum_across / (n * m)

    sum_a, sum_b, sum_across = within_a.sum(), within_b.sum(), across.sum()
    value = float(estimate(sum_a, n, sum_b, m, sum_across))
    without_a = estimate(sum_a - 2 * within_a.sum(1), n - 1, sum_b, m, sum_across - across.sum(1))
    without_b = estimate(sum_a, n, sum_b - 2 * within_b.sum(1), m - 1, sum_across - across.sum(0))
    variance = (n - 1) * without_a.var(correction=0) + (m - 1) * without_b.var(correction=0)
    half_width = 1.96 * float(variance.sqrt())
    return Distance(value, (value - half_width, value + half_width))
