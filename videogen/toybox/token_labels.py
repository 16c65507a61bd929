"""What is where in a scene, for a network to say beside denoising: truth that only a drawn world has.

Scene  ->  Truth: what each thing is, covers and does in cells of 4 x 8 x 8 pixels  ->  say: facts (k, t, h, w)
"""

from typing import NamedTuple

import numpy as np
from einops import rearrange, reduce

from videogen.toybox.world.motions import move
from videogen.toybox.world.render import masks
from videogen.toybox.world.scenes import Scene
from videogen.toybox.world.things import COLOURS, KINDS

WAYS = ("right", "left", "down", "up")
FACTS: tuple[str, ...] = (*KINDS, *COLOURS, *WAYS)
"""What may be said of a cell: the kind and the colour of what it shows, and where that goes."""
LEAST_SPEED = 0.25  # pixels a frame; slower things stay


class Truth(NamedTuple):
    """A scene in cells, in a kilobyte: things n, latent frames t."""

    names: np.ndarray  # (n, 2) int16: of each thing, the places of its kind and its colour in FACTS, or -1
    cover: np.ndarray  # (n, t, h, w) uint8: how much of each cell shows the thing, in 1/255
    ways: np.ndarray  # (n, t, 4) bool


def truth(scene: Scene, *, frames: int = 4, side: int = 8) -> Truth:
    """What is where in a scene."""
    names = [[FACTS.index(name) if name else -1 for name in (one.kind, one.colour)] for one in scene.things]
    return Truth(
        np.array(names, np.int16), (255 * cover(scene, frames, side)).round().astype(np.uint8), ways(scene, frames)
    )


def cover(scene: Scene, frames: int, side: int) -> np.ndarray:
    """How much of each cell shows each thing, (n, 1 + (t - 1) / frames, h / side, w / side) in 0 ... 1."""
    shown = reduce(masks(scene), "t n (h p) (w q) -> n t h w", "mean", p=side, q=side)
    rest = reduce(shown[:, 1:], "n (t f) h w -> n t h w", "mean", f=frames) if scene.num_frames > 1 else shown[:, 1:]
    return np.concatenate([shown[:, :1], rest], axis=1)


def ways(scene: Scene, frames: int) -> np.ndarray:
    """Which of the four ways each thing goes in each group of frames, (n, t, 4); the first frame as the first group.

    In the world, as captions have it: a thing that rests under a moving camera goes nowhere.
    """
    groups = (scene.num_frames - 1) // frames
    if not groups:
        return np.zeros((len(scene.things), 1, len(WAYS)), bool)
    poses = [move(thing, scene.num_frames) for thing in scene.things]
    path = np.stack([[pose.x, pose.y] for pose in poses])[..., np.arange(groups + 1) * frames]
    speed = np.diff(path) / frames
    speed = np.concatenate([speed[..., :1], speed], axis=-1)
    both = np.stack([speed > LEAST_SPEED, speed < -LEAST_SPEED])  # right and left, then down and up
    return np.ascontiguousarray(rearrange(both, "sign n xy t -> n t (xy sign)"))


def say(known: Truth) -> np.ndarray:
    """For each fact, how much of each cell it is true of, (k, t, h, w) float32 in 0 ... 1."""
    found = np.zeros((len(FACTS), *known.cover.shape[1:]), np.float32)
    for names, shown, way in zip(known.names, known.cover.astype(np.float32) / 255, known.ways, strict=True):
        for name in names[names >= 0]:
            found[name] += shown
        found[-len(WAYS) :] += rearrange(way, "t k -> k t 1 1") * shown
    return found.clip(0, 1)
