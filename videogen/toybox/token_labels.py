"""Label the cells of a scene's latent for an auxiliary loss beside denoising: a truth that only a drawn world has.

Scene  ->  GroundTruth: identity, coverage and motion of each thing in cells of 4 x 8 x 8 pixels
       ->  label_maps: facts (k, t, h, w)
"""

from typing import NamedTuple

import numpy as np
from einops import rearrange, reduce

from videogen.toybox.world.motions import world_pose
from videogen.toybox.world.render import masks
from videogen.toybox.world.scenes import Scene
from videogen.toybox.world.things import COLOURS, KINDS

DIRECTIONS = ("right", "left", "down", "up")
FACTS: tuple[str, ...] = (*KINDS, *COLOURS, *DIRECTIONS)
"""Labels of a cell: the kind, colour and direction of motion of the things that it shows."""
MIN_SPEED = 0.25  # pixels per frame; a slower thing counts as still


class GroundTruth(NamedTuple):
    """A scene on the grid of its latent, about a kilobyte; n things, t latent frames. Cache files have these names."""

    names: np.ndarray  # (n, 2) int16: indices in FACTS of each thing's kind and colour, or -1
    cover: np.ndarray  # (n, t, h, w) uint8: share of each cell that shows the thing, in 1/255
    ways: np.ndarray  # (n, t, 4) bool: directions of motion


def ground_truth(scene: Scene, *, time_stride: int = 4, space_stride: int = 8) -> GroundTruth:
    """Compute the labels of a scene on the grid of its latent."""
    indices = [[FACTS.index(name) if name else -1 for name in (thing.kind, thing.colour)] for thing in scene.things]
    coverage = (255 * cell_coverage(scene, time_stride, space_stride)).round().astype(np.uint8)
    return GroundTruth(np.array(indices, np.int16), coverage, motion_directions(scene, time_stride))


def cell_coverage(scene: Scene, time_stride: int, space_stride: int) -> np.ndarray:
    """Compute the share of each cell that shows each thing, (n, t, h, w) in 0 ... 1; the first frame has its own cell.

    Of num_frames, height, width: t = 1 + (num_frames - 1) / time_stride, h and w are divided by space_stride.
    """
    shares = reduce(masks(scene), "t n (h p) (w q) -> n t h w", "mean", p=space_stride, q=space_stride)
    if scene.num_frames == 1:
        return shares
    rest = reduce(shares[:, 1:], "n (t f) h w -> n t h w", "mean", f=time_stride)
    return np.concatenate([shares[:, :1], rest], axis=1)


def motion_directions(scene: Scene, time_stride: int) -> np.ndarray:
    """Compute in which of DIRECTIONS each thing moves in each latent frame, (n, t, 4); the first is as the second.

    Motion is in world coordinates, as in captions: a thing at rest under a moving camera has no direction.
    """
    num_steps = (scene.num_frames - 1) // time_stride
    if not num_steps:
        return np.zeros((len(scene.things), 1, len(DIRECTIONS)), bool)
    poses = [world_pose(thing, scene.num_frames) for thing in scene.things]
    centres = np.stack([[pose.x, pose.y] for pose in poses])[..., np.arange(num_steps + 1) * time_stride]
    speed = np.diff(centres) / time_stride
    speed = np.concatenate([speed[..., :1], speed], axis=-1)
    signs = np.stack([speed > MIN_SPEED, speed < -MIN_SPEED])  # right and left, then down and up
    return np.ascontiguousarray(rearrange(signs, "sign n xy t -> n t (xy sign)"))


def label_maps(truth: GroundTruth) -> np.ndarray:
    """Compute the share of each cell for which each fact is true, (k, t, h, w) float32 in 0 ... 1."""
    maps = np.zeros((len(FACTS), *truth.cover.shape[1:]), np.float32)
    coverage = truth.cover.astype(np.float32) / 255
    for indices, cover, directions in zip(truth.names, coverage, truth.ways, strict=True):
        for index in indices[indices >= 0]:
            maps[index] += cover
        maps[-len(DIRECTIONS) :] += rearrange(directions, "t k -> k t 1 1") * cover
    return maps.clip(0, 1)
