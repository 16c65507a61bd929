"""Estimate how the camera moves from the background alone.

ycc (t, h, w, 3), Background  ->  Camera: name, speed

Of all pans and zooms at an even pace, the one is taken under which the background of one frame best matches that of a
later one; things are left out, as far as their colours give them away.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from videogen.toybox.judge.background import Background
from videogen.toybox.judge.colour_space import blur, dilate, norm
from videogen.toybox.world.scenes import CAMERAS
from videogen.toybox.world.things import TEXTURED_BACKGROUNDS

NUM_LEGS = 8
"""A clip is compared in so many steps: over each, even a fast camera moves less than half a field of a checkerboard."""
MIN_LEG, MAX_LEG = 0.01, 0.08
"""How far a camera goes in one leg, as a share of the frame, or of the logarithm of its scale in a zoom."""
NUM_PACES = 12
REFINEMENTS = (1 / 20, -1 / 20, 1 / 40, -1 / 40)
"""Changes of the best pace on the grid that are tried in turn, as shares of it."""
FOREGROUND_DISTANCE = 25.0
"""YCC distance from the background at which a pixel may belong to a thing."""
FOREGROUND_MARGIN = 2
"""Pixels about a thing that are left out with it."""
MAX_ERROR_RATIO = 0.9
"""A camera moves only if that leaves no more than this share of the error that standing still leaves."""
MAX_PIXEL_ERROR = 25.0
"""The most that one pixel counts: what appears and disappears at edges must not decide."""


class Camera(NamedTuple):
    """A motion of the camera, in pixels a frame or the logarithm of a scale a frame."""

    name: str = "still"
    speed: float = 0.0

    def view(self, num_frames: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Compute the camera's shift to the right and down, and its scale about the middle, each (t,)."""
        right, down, closer = CAMERAS[self.name]
        step = np.arange(num_frames) * self.speed
        return right * step, down * step, np.exp(closer * step)


def estimate_camera(ycc: np.ndarray, background: Background) -> Camera:
    """Estimate the camera's motion; on a background without texture it counts as still."""
    if background.name not in TEXTURED_BACKGROUNDS or len(ycc) == 1:
        return Camera()
    stops = np.unique(np.linspace(0, len(ycc) - 1, NUM_LEGS + 1).round().astype(int))
    # Blurred, so that noise, which interpolation would blur, does not favour any motion.
    luma = blur(ycc[stops, ..., 0])
    empty = ~foreground_mask(ycc[stops], background._replace(plate=background.plate[stops]))
    frames_a_leg = float(np.diff(stops).mean())
    best, least_error = Camera(), MAX_ERROR_RATIO * warp_error(luma, empty, Camera(), 1.0)
    for name, (right, _, closer) in CAMERAS.items():
        side = 1 if closer else luma.shape[2 if right else 1]
        for leg in np.geomspace(MIN_LEG, MAX_LEG, NUM_PACES if name != "still" else 0):
            camera = Camera(name, float(leg * side / frames_a_leg))
            if (error := warp_error(luma, empty, camera, frames_a_leg)) < least_error:
                best, least_error = camera, error
    for share in REFINEMENTS if best.name != "still" else ():
        camera = best._replace(speed=best.speed * (1 + share))
        if (error := warp_error(luma, empty, camera, frames_a_leg)) < least_error:
            best, least_error = camera, error
    return best


def foreground_mask(ycc: np.ndarray, background: Background) -> np.ndarray:
    """Mask what stands before the background, with a margin, (t, h, w); stars are no things."""
    differs = norm(ycc - background.plate) > FOREGROUND_DISTANCE
    if background.name != "night sky":
        return dilate(differs, FOREGROUND_MARGIN)
    return dilate(~dilate(~differs, 2), 2 + FOREGROUND_MARGIN)  # only what is wider than a star is known to be a thing


def warp_error(luma: np.ndarray, empty: np.ndarray, camera: Camera, num_frames: float) -> float:
    """Measure the mean difference of frames from the ones before, warped by a camera, where both are empty."""
    height, width = luma.shape[1:]
    right, down, closer = (part[1] for part in camera._replace(speed=camera.speed * num_frames).view(2))
    row = height / 2 + (np.arange(height) + 0.5 - height / 2) / closer + down - 0.5
    column = width / 2 + (np.arange(width) + 0.5 - width / 2) / closer + right - 0.5
    rows, row_share = np.clip(row, 0, height - 1.001).astype(int), row - np.floor(row)
    columns, column_share = np.clip(column, 0, width - 1.001).astype(int), column - np.floor(column)
    inside = ((row >= 0) & (row <= height - 1))[:, None] & ((column >= 0) & (column <= width - 1))
    total, count = 0.0, 0
    for before, after in pairwise(range(len(luma))):
        upper, lower = luma[before, rows], luma[before, np.minimum(rows + 1, height - 1)]
        strip = upper + row_share[:, None].astype(np.float32) * (lower - upper)
        left, right_of_left = strip[:, columns], strip[:, np.minimum(columns + 1, width - 1)]
        warped = left + column_share.astype(np.float32) * (right_of_left - left)
        valid = inside & empty[after] & empty[before][np.ix_(rows, columns)]
        total += float(np.minimum(np.abs(warped - luma[after]), MAX_PIXEL_ERROR)[valid].sum())
        count += int(valid.sum())
    return total / max(count, 1)
