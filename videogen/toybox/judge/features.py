"""How far a set of clips is from the toybox as a whole: MMD on features of a small network that learnt to read it.

    frames (t, h, w, 3) uint8  ->  Reader: features (256,)  ->  two sets of clips: unbiased polynomial MMD^2

The network was trained on rendered clips alone, to tell backgrounds, cameras, events, kinds, colours, sizes and motions
(tests/bench/features.py); the distance is that of Binkowski et al. 2018 (KID, Eq. 4 and the kernel of section 4).
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

from videogen.toybox.world.events import EVENTS
from videogen.toybox.world.motions import MOTIONS
from videogen.toybox.world.render import render
from videogen.toybox.world.scenes import CAMERAS, Scene, draw_scene
from videogen.toybox.world.things import BACKGROUNDS, COLOURS, KINDS, SIZES

WEIGHTS = Path(__file__).resolve().parents[3] / "assets" / "toybox" / "features.safetensors"
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
FIRST_SEED = 2 * 10**9  # of the clips that others are compared with, which are neither judged nor trained on
LEAST_CLIPS = 3
"""Of a set, so that one can be left out and there is still a distance."""


class Reader(nn.Module):
    """Frames by themselves, then their changes in time; says of every label how sure it is that the clip shows it."""

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
        # Of every feature over the world's clips: a distance counts them alike.
        self.register_buffer("middle", torch.zeros(WIDTH))
        self.register_buffer("spread", torch.ones(WIDTH))

    def features(self, video: Tensor) -> Tensor:
        """Clips (b, 3, t, h, w) in [-1, 1], sides multiples of 16, as (b, 256): means and peaks over time and space."""
        frames = self.frame(rearrange(video, "b c t h w -> (b t) c h w"))
        seen = self.change(rearrange(frames, "(b t) c h w -> b c t h w", b=len(video))).flatten(2)
        return F.silu(self.mix(torch.cat([seen.mean(2), seen.amax(2)], dim=1)))

    def forward(self, video: Tensor) -> dict[str, Tensor]:
        """A logit for every label, (b, number of labels) by name."""
        features = self.features(video)
        return {name: head(features) for name, head in self.heads.items()}


def targets(scene: Scene) -> dict[str, Tensor]:
    """Which labels are true of a scene, (number of labels,) of 0 and 1 by name."""
    shown = {
        "background": {scene.background},
        "camera": {scene.camera},
        "event": {scene.event},
        **{name: {getattr(thing, name) for thing in scene.things} for name in ("kind", "colour", "size", "motion")},
    }
    return {name: torch.tensor([float(label in shown[name]) for label in labels]) for name, labels in LABELS.items()}


def load_reader(weights: Path = WEIGHTS) -> Reader:
    """The trained network."""
    reader = Reader().eval().requires_grad_(False)
    reader.load_state_dict({name: value.float() for name, value in load_file(weights).items()})
    return reader


@torch.no_grad()
def read_features(clips: Sequence[np.ndarray], reader: Reader) -> Tensor:
    """Features (n, 256) of clips (t, h, w, 3) uint8 of any sizes, in deviations of the world's from their mean."""
    videos = (rearrange(torch.from_numpy(clip), "t h w c -> 1 c t h w").float() / 127.5 - 1 for clip in clips)
    return (torch.cat([reader.features(video) for video in videos]) - reader.middle) / reader.spread


def draw_others(clips: Sequence[np.ndarray], *, new: bool = False) -> Iterator[np.ndarray]:
    """For each clip (t, h, w, 3) another of the world's, of its size and length; new as in draw_scene."""
    # Other scenes than those that were judged: what two sets share would bring them nearer than they are.
    for seed, clip in enumerate(clips, start=FIRST_SEED):
        num_frames, height, width, _ = clip.shape
        yield render(draw_scene(seed, sizes=((width, height),), lengths=(num_frames,), new=new))


class Distance(NamedTuple):
    """A squared distance between two sets, 0 if they are of one kind, and its 95% interval."""

    value: float
    interval: tuple[float, float]


def mmd(a: Tensor, b: Tensor) -> Distance:
    """Squared maximum mean discrepancy of features (n, d) and (m, d) under (x·y / d + 1)^3, without bias.

    The interval is the jackknife's: how far it moves when one clip is left out.
    """
    n, m = len(a), len(b)
    if min(n, m) < LEAST_CLIPS:
        raise ValueError(f"a distance between sets needs {LEAST_CLIPS} clips in each, got {n} and {m}")
    a, b = a.double(), b.double()
    within_a, within_b, across = (kernel(x, y) for x, y in ((a, a), (b, b), (a, b)))
    within_a.fill_diagonal_(0)
    within_b.fill_diagonal_(0)

    def estimate(sum_a: Tensor, n: int, sum_b: Tensor, m: int, both: Tensor) -> Tensor:
        return sum_a / (n * (n - 1)) + sum_b / (m * (m - 1)) - 2 * both / (n * m)

    sums = within_a.sum(), within_b.sum(), across.sum()
    value = float(estimate(sums[0], n, sums[1], m, sums[2]))
    without_a = estimate(sums[0] - 2 * within_a.sum(1), n - 1, sums[1], m, sums[2] - across.sum(1))
    without_b = estimate(sums[0], n, sums[1] - 2 * within_b.sum(1), m - 1, sums[2] - across.sum(0))
    variance = (n - 1) * without_a.var(correction=0) + (m - 1) * without_b.var(correction=0)
    half = 1.96 * float(variance.sqrt())
    return Distance(value, (value - half, value + half))


def kernel(x: Tensor, y: Tensor) -> Tensor:
    """The polynomial kernel of every pair, (n, d) and (m, d) to (n, m)."""
    return (x @ y.T / x.shape[1] + 1) ** 3
