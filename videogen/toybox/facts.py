"""What is where in a scene, for a network to say beside denoising: truth that only a drawn world has.

Scene  ->  cover (n, t, h, w): how much of each cell of 4 x 8 x 8 pixels shows each thing  ->  facts (k, t, h, w)
"""

import numpy as np
from einops import rearrange, reduce

from videogen.toybox.render import masks
from videogen.toybox.scenes import Scene, track
from videogen.toybox.things import COLOURS, KINDS

WAYS = ("right", "left", "down", "up")
FACTS: tuple[str, ...] = (*KINDS, *COLOURS, *WAYS)
"""What may be said of a cell: the kind and the colour of what it shows, and where that goes."""
LEAST_SPEED = 0.25  # pixels a frame; slower things stay


def cover(scene: Scene, *, frames: int = 4, side: int = 8) -> np.ndarray:
    """How much of each cell shows each thing, (n, 1 + (t - 1) / frames, h / side, w / side) in 0 ... 1."""
    shown = reduce(masks(scene), "t n (h p) (w q) -> n t h w", "mean", p=side, q=side)
    rest = reduce(shown[:, 1:], "n (t f) h w -> n t h w", "mean", f=frames) if scene.num_frames > 1 else shown[:, 1:]
    return np.concatenate([shown[:, :1], rest], axis=1)


def ways(scene: Scene, *, frames: int = 4) -> np.ndarray:
    """Which of the four ways each thing goes in each group of frames, (n, t, 4) of 0 and 1; the first as the second."""
    pose, groups = track(scene), (scene.num_frames - 1) // frames
    if not groups:
        return np.zeros((len(scene.things), 1, len(WAYS)), np.float32)
    path = np.stack([pose.x, pose.y])[:, np.arange(groups + 1) * frames]
    speed = rearrange(np.diff(path, axis=1) / frames, "xy t n -> n t xy")
    speed = np.concatenate([speed[:, :1], speed], axis=1)
    both = np.stack([speed > LEAST_SPEED, speed < -LEAST_SPEED], axis=-1)  # right and left, then down and up
    return rearrange(both, "n t xy sign -> n t (xy sign)").astype(np.float32)


def facts(scene: Scene, cover: np.ndarray) -> np.ndarray:
    """For each fact, how much of each cell it is true of, (k, t, h, w), from the cover of the scene."""
    found = np.zeros((len(FACTS), *cover.shape[1:]), np.float32)
    for thing, shown, way in zip(scene.things, cover, ways(scene), strict=True):
        found[FACTS.index(thing.kind)] += shown
        if thing.colour:
            found[FACTS.index(thing.colour)] += shown
        found[-len(WAYS) :] += rearrange(way, "t k -> k t 1 1") * shown
    return found.clip(0, 1)
