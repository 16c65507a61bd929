"""Render a scene: paint the background, then each thing within a window of pixels around it.

Scene  ->  render: frames (t, h, w, 3) uint8, masks: visible coverage of each thing (t, n, h, w) float32
"""

from collections.abc import Iterator
from math import ceil

import numpy as np
from einops import rearrange

from videogen.toybox.world.backgrounds import render_background
from videogen.toybox.world.scenes import Scene, track
from videogen.toybox.world.shapes import render_thing


def pixel_window(centre: np.ndarray, size: int, length: int) -> np.ndarray:
    """Number the pixels around each centre, (t,) -> (t, size), shifted where they would leave a frame of a length."""
    size = min(size, length)
    first = np.clip(np.floor(centre).astype(int) - size // 2, 0, length - size)
    return rearrange(first, "t -> t 1") + np.arange(size)


def render_layers(scene: Scene) -> Iterator[tuple[tuple[np.ndarray, ...], np.ndarray]]:
    """Render each thing, back to front: indices of a window (t, s, s) around it, and pixels (t, s, s, 4) of it.

    Every window fits the largest thing; the pixels are those of render_thing, times the opacity.
    """
    pose = track(scene)
    size = 2 * ceil(pose.radius.max() + 1) + 1
    frame = rearrange(np.arange(scene.num_frames), "t -> t 1 1")
    for i, thing in enumerate(scene.things):
        x, y, radius, angle, opacity = (rearrange(values[:, i].astype(np.float32), "t -> t 1 1") for values in pose)
        rows = rearrange(pixel_window(pose.y[:, i], size, scene.height), "t h -> t h 1")
        columns = rearrange(pixel_window(pose.x[:, i], size, scene.width), "t w -> t 1 w")
        right, down = (columns + 0.5 - x) / radius, (rows + 0.5 - y) / radius
        cosine, sine = np.cos(angle), np.sin(angle)
        pixels = render_thing(thing, cosine * right + sine * down, sine * right - cosine * down, radius)
        yield (frame, rows, columns), pixels * rearrange(opacity, "t h w -> t h w 1")


def masks(scene: Scene) -> np.ndarray:
    """Render the visible coverage of each thing in each pixel, (t, n, h, w) in 0 ... 1; later things hide earlier."""
    shape = (scene.num_frames, scene.height, scene.width)
    visible = np.zeros((len(scene.things), *shape), np.float32)
    for i, (window, pixels) in enumerate(render_layers(scene)):
        coverage = np.zeros(shape, np.float32)
        coverage[window] = pixels[..., 3]
        visible *= 1 - coverage
        visible[i] = coverage
    return rearrange(visible, "n t h w -> t n h w")


def render(scene: Scene) -> np.ndarray:
    """Render the frames of a scene, (t, h, w, 3) uint8."""
    frames = np.empty((scene.num_frames, scene.height, scene.width, 3), np.float32)
    frames[:] = render_background(scene)
    for window, pixels in render_layers(scene):
        frames[window] = frames[window] * (1 - pixels[..., 3:]) + pixels[..., :3]
    return (frames + 0.5).clip(0, 255).astype(np.uint8)
