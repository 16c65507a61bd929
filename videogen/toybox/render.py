"""Paint a scene: each thing only around itself, over what lies behind.

Scene  ->  render: frames (t, h, w, 3) uint8, masks: what is seen of each thing (t, n, h, w) float32
"""

from collections.abc import Iterator
from math import ceil

import numpy as np
from einops import rearrange

from videogen.toybox.backgrounds import paint
from videogen.toybox.motions import Pose
from videogen.toybox.scenes import Scene, track
from videogen.toybox.shapes import draw


def window(centre: np.ndarray, span: int, length: int) -> np.ndarray:
    """The span of whole pixels around each centre, (t,) -> (t, span); one that is out of sight waits at the border."""
    first = np.clip(np.floor(centre).astype(int) - span // 2, -span, length)
    return rearrange(first, "t -> t 1") + np.arange(span)


def layers(scene: Scene, pose: Pose, span: int) -> Iterator[tuple[tuple[np.ndarray, ...], np.ndarray]]:
    """Each thing from back to front: where it lies in frames with a border of span, and what it shows (t, s, s, 4)."""
    frame = rearrange(np.arange(scene.num_frames), "t -> t 1 1")
    for i, thing in enumerate(scene.things):
        x, y, radius, angle, opacity = (rearrange(part[:, i].astype(np.float32), "t -> t 1 1") for part in pose)
        rows = rearrange(window(pose.y[:, i], span, scene.height), "t h -> t h 1")
        columns = rearrange(window(pose.x[:, i], span, scene.width), "t w -> t 1 w")
        right, down = (columns + 0.5 - x) / radius, (rows + 0.5 - y) / radius
        cosine, sine = np.cos(angle), np.sin(angle)
        shown = draw(thing, cosine * right + sine * down, sine * right - cosine * down, radius)
        yield (frame, rows + span, columns + span), shown * rearrange(opacity, "t h w -> t h w 1")


def widest(pose: Pose) -> int:
    """Pixels across the largest thing's window."""
    return 2 * ceil(pose.radius.max() + 1) + 1


def masks(scene: Scene) -> np.ndarray:
    """How much of each pixel shows each thing, (t, n, h, w): later things hide earlier ones."""
    pose = track(scene)
    border = widest(pose)
    shape = (scene.num_frames, scene.height + 2 * border, scene.width + 2 * border)
    found = np.zeros((len(scene.things), *shape), np.float32)
    for i, (place, shown) in enumerate(layers(scene, pose, border)):
        cover = np.zeros(shape, np.float32)
        cover[place] = shown[..., 3]
        found *= 1 - cover
        found[i] = cover
    return rearrange(found[:, :, border:-border, border:-border], "n t h w -> t n h w")


def render(scene: Scene) -> np.ndarray:
    """The frames of a scene, (t, h, w, 3) uint8."""
    pose = track(scene)
    border = widest(pose)
    frames = np.zeros((scene.num_frames, scene.height + 2 * border, scene.width + 2 * border, 3), np.float32)
    inside = (slice(None), slice(border, -border), slice(border, -border))
    frames[inside] = paint(scene)
    for place, shown in layers(scene, pose, border):
        frames[place] = frames[place] * (1 - shown[..., 3:]) + shown[..., :3]
    return (frames[inside] + 0.5).clip(0, 255).astype(np.uint8)
