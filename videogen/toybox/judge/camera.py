"""How the camera moves, told from the background alone.

seen (t, h, w, 3), Behind  ->  Camera: name, speed

Of all pans and zooms at an even pace, the one is taken under which the background of one frame best matches that of a
later one; things are left out, as far as their colours give them away.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from videogen.toybox.judge.background import Behind
from videogen.toybox.judge.colour_space import length, soften, spread
from videogen.toybox.world.scenes import CAMERAS
from videogen.toybox.world.things import TEXTURED

LEGS = 8
"""A clip is compared at so many steps: over each, even a fast camera moves less than half a field of a checkerboard."""
LEAST_WAY, MOST_WAY = 0.01, 0.08
"""How far a camera goes in one leg, as a share of the frame, or of the logarithm of its scale in a zoom."""
NUM_PACES = 12
THING = 25.0
"""Seen distance from the background at which a pixel may belong to a thing."""
MARGIN = 2
"""Pixels about a thing that are left out with it."""
CLEARER = 0.9
"""A camera moves where that leaves so much less difference, as a share, than standing still does."""
MOST_DIFFERENCE = 25.0
"""What one pixel counts at most: what appears and disappears at edges must not decide."""


class Camera(NamedTuple):
    """A motion of the camera, in pixels a frame or the logarithm of a scale a frame."""

    name: str = "still"
    speed: float = 0.0

    def view(self, num_frames: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Its shift to the right and down, and its scale about the middle, each (t,)."""
        right, down, closer = CAMERAS[self.name]
        step = np.arange(num_frames) * self.speed
        return right * step, down * step, np.exp(closer * step)


def look_at_camera(seen: np.ndarray, behind: Behind) -> Camera:
    """The camera's motion; it stands still where there is nothing to see it by."""
    if behind.name not in TEXTURED or len(seen) == 1:
        return Camera()
    stops = np.unique(np.linspace(0, len(seen) - 1, LEGS + 1).round().astype(int))
    # Softened, so that noise, which interpolation would soften, speaks for no motion.
    frames, empty = soften(seen[stops, ..., 0]), ~things(seen[stops], behind._replace(plate=behind.plate[stops]))
    steps = float(np.diff(stops).mean())
    least = CLEARER * difference(frames, empty, Camera(), 1.0)
    best = Camera()
    for name, (right, _, closer) in CAMERAS.items():
        side = 1 if closer else frames.shape[2 if right else 1]
        for way in np.geomspace(LEAST_WAY, MOST_WAY, NUM_PACES if name != "still" else 0):
            camera = Camera(name, float(way * side / steps))
            if (found := difference(frames, empty, camera, steps)) < least:
                best, least = camera, found
    return refine(best, least, frames, empty, steps)


def refine(best: Camera, least: float, frames: np.ndarray, empty: np.ndarray, steps: float) -> Camera:
    """A camera's pace, found on a grid, more finely."""
    for share in (1 / 20, -1 / 20, 1 / 40, -1 / 40) if best.name != "still" else ():
        camera = best._replace(speed=best.speed * (1 + share))
        if (found := difference(frames, empty, camera, steps)) < least:
            best, least = camera, found
    return best


def things(seen: np.ndarray, behind: Behind) -> np.ndarray:
    """Where something stands before the background, with a margin, (t, h, w); stars are no things."""
    differs = length(seen - behind.plate) > THING
    if behind.name != "night sky":
        return spread(differs, MARGIN)
    return spread(~spread(~differs, 2), 2 + MARGIN)  # what is wider than a star, which is all that there is to go by


def difference(frames: np.ndarray, empty: np.ndarray, camera: Camera, steps: float) -> float:
    """Mean difference between frames and those before them, moved as the camera says, where both are empty."""
    height, width = frames.shape[1:]
    right, down, closer = (part[1] for part in camera._replace(speed=camera.speed * steps).view(2))
    row = height / 2 + (np.arange(height) + 0.5 - height / 2) / closer + down - 0.5
    column = width / 2 + (np.arange(width) + 0.5 - width / 2) / closer + right - 0.5
    rows, row_share = np.clip(row, 0, height - 1.001).astype(int), row - np.floor(row)
    columns, column_share = np.clip(column, 0, width - 1.001).astype(int), column - np.floor(column)
    inside = ((row >= 0) & (row <= height - 1))[:, None] & ((column >= 0) & (column <= width - 1))
    total, count = 0.0, 0
    for before, after in pairwise(range(len(frames))):
        upper, lower = frames[before, rows], frames[before, np.minimum(rows + 1, height - 1)]
        strip = upper + row_share[:, None].astype(np.float32) * (lower - upper)
        left, next_ = strip[:, columns], strip[:, np.minimum(columns + 1, width - 1)]
        moved = left + column_share.astype(np.float32) * (next_ - left)
        valid = inside & empty[after] & empty[before][np.ix_(rows, columns)]
        total += float(np.minimum(np.abs(moved - frames[after]), MOST_DIFFERENCE)[valid].sum())
        count += int(valid.sum())
    return total / max(count, 1)
