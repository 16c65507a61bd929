"""How far a set of clips is from the toybox as a whole: MMD on features of a small network that learnt to read it.

    frames (t, h, w, 3) uint8  ->  Reader: features (256,)  ->  two sets of clips: unbiased polynomial MMD^2

The network was trained on rendered clips alone, to tell backgrounds, cameras, events, kinds, colours, sizes and motions
(tests/bench/features.py); the distance is that of Binkowski et al. 2018 (KID, Eq. 4 and the kernel of section 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor, nn

from videogen.toybox.events import EVENTS
from videogen.toybox.motions import MOTIONS
from videogen.toybox.scenes import CAMERAS, Scene
from videogen.toybox.things import BACKGROUNDS, COLOURS, KINDS, SIZES

WEIGHTS = Path(__file__).resolve().parent.parent.parent / "assets" / "toybox" / "features.safetensors"
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


class Reader(nn.Module):
    """Frames by themselves, then their changes in time; says of every label how sure it is that the clip shows it."""

    def __init__(self) -> None:
        super().__init__()
        self.frame = nn.Sequential(
            nn.Conv2d(3, 32, 4, stride=4), nn.SiLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.SiLU(),
            nn.Conv2d(64, 64, 3, padding=1), nn.SiLU(),
        )  # fmt: skip
        self.change = nn.Sequential(
            nn.Conv3d(64, 96, (3, 3, 3), padding=(1, 1, 1), stride=(1, 2, 2)), nn.SiLU(),
            nn.Conv3d(96, 128, (3, 1, 1), padding=(1, 0, 0)), nn.SiLU(),
        )  # fmt: skip
        self.mix = nn.Linear(256, WIDTH)
        self.heads = nn.ModuleDict({name: nn.Linear(WIDTH, len(labels)) for name, labels in LABELS.items()})

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
def read_features(clips: Sequence[Tensor], reader: Reader) -> Tensor:
    """Features (n, 256) of clips (t, h, w, 3) uint8 of any sizes."""
    return torch.cat([reader.features(rearrange(clip, "t h w c -> 1 c t h w").float() / 127.5 - 1) for clip in clips])


def mmd(a: Tensor, b: Tensor) -> float:
    """Squared maximum mean discrepancy of features (n, d) and (m, d) under (x·y / d + 1)^3, without bias."""
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a distance between sets needs two clips in each, got {len(a)} and {len(b)}")
    a, b = a.double(), b.double()

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x: Tensor) -> Tensor:
        gram = kernel(x, x)
        return (gram.sum() - gram.trace()) / (len(x) * (len(x) - 1))

    return float(within(a) + within(b) - 2 * kernel(a, b).mean())
