"""Paint a scene: each thing only around itself, over what lies behind.

Scene  ->  render: frames (t, h, w, 3) uint8, masks: what is seen of each thing (t, n, h, w) float32
"""

from collections.abc import Iterator
from math import ceil

import numpy as np
from einops import rearrange

from videogen.toybox.world.backgrounds import paint
from videogen.toybox.world.motions import Pose
from videogen.toybox.world.scenes import Scene, track
from videogen.toybox.world.shapes import draw


def window(centre: np.ndarray, span: int, length: int) -> np.ndarray:
    """The span of whole pixels around each centre, (t,) -> (t, span), moved into the frame where it sticks out."""
    span = min(span, length)
    first = np.clip(np.floor(centre).astype(int) - span // 2, 0, length - span)
    return rearrange(first, "t -> t 1") + np.arange(span)


def layers(scene: Scene, pose: Pose, span: int) -> Iterator[tuple[tuple[np.ndarray, ...], np.ndarray]]:
    """Each thing from back to front: a span of pixels around it in every frame, and what it shows (t, s, s, 4)."""
    frame = rearrange(np.arange(scene.num_frames), "t -> t 1 1")
    for i, thing in enumerate(scene.things):
        x, y, radius, angle, opacity = (rearrange(part[:, i].astype(np.float32), "t -> t 1 1") for part in pose)
        rows = rearrange(window(pose.y[:, i], span, scene.height), "t h -> t h 1")
        columns = rearrange(window(pose.x[:, i], span, scene.width), "t w -> t 1 w")
        right, down = (columns + 0.5 - x) / radius, (rows + 0.5 - y) / radius
        cosine, sine = np.cos(angle), np.sin(angle)
        shown = draw(thing, cosine * right + sine * down, sine * right - cosine * down, radius)
        yield (frame, rows, columns), shown * rearrange(opacity, "t h w -> t h w 1")


def widest(pose: Pose) -> int:
    """Pixels across the largest thing's window."""
    return 2 * ceil(pose.radius.max() + 1) + 1


def masks(scene: Scene) -> np.ndarray:
    """How much of each pixel shows each thing, (t, n, h, w): later things hide earlier ones."""
    pose = track(scene)
    shape = (scene.num_frames, scene.height, scene.width)
    found = np.zeros((len(scene.things), *shape), np.float32)
    for i, (place, shown) in enumerate(layers(scene, pose, widest(pose))):
        cover = np.zeros(shape, np.float32)
        cover[place] = shown[..., 3]
        found *= 1 - cover
        found[i] = cover
    return rearrange(found, "n t h w -> t n h w")


def render(scene: Scene) -> np.ndarray:
    """The frames of a scene, (t, h, w, 3) uint8."""
    pose = track(scene)
    frames = np.empty((scene.num_frames, scene.height, scene.width, 3), np.float32)
    frames[:] = paint(scene)
    for place, shown in layers(scene, pose, widest(pose)):
        frames[place] = frames[place] * (1 - shown[..., 3:]) + shown[..., :3]
    return (frames + 0.5).clip(0, 255).astype(np.uint8)
