"""Estimate which background a clip shows, and the colour of every pixel if nothing stood before it.

ycc (t, h, w, 3)  ->  Background: name, plate (t, h, w, 3), error

A background is known up to chance: where its waves, tufts or stars lie. The plate is therefore the colour closest to
a pixel's own among all that the background could have there; what is far from it is something else.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from einops import rearrange, reduce

from videogen.toybox.judge.colour_space import norm, to_ycc
from videogen.toybox.world.things import BACKGROUNDS

MAX_DISTANCE = 40.0
"""YCC distance beyond which a pixel is no background at all, however far; things stand off by 35 or more."""
MAX_ERROR = 22.0
"""Mean distance, of at most MAX_DISTANCE, beyond which a clip shows none of the backgrounds."""
SKY_TOP = np.array((0.75, 0.85, 0.97), np.float32)
"""The colour of the top of a sky, as a share of that at the horizon."""


class Background(NamedTuple):
    """A background in YCC; the name is empty if it is none of the world's."""

    name: str
    plate: np.ndarray
    """The background's colour in every pixel, (t, h, w, 3)."""
    error: float
    """Mean distance of the pixels from the plate, none counted beyond MAX_DISTANCE."""


PlateFunction = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""ycc (t, h, w, 3), a background's colours in 0 ... 255  ->  the closest that it could have in each pixel"""


def closest_between(ycc: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Project each pixel onto the line between two colours."""
    start, line = to_ycc(start), to_ycc(end) - to_ycc(start)
    share = np.clip((ycc - start) @ (line / (line @ line)), 0, 1)
    return start + rearrange(share, "t h w -> t h w 1") * line


def uniform_plate(ycc: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Fill the plate with one colour; also for a night sky, whose stars are small."""
    return np.broadcast_to(to_ycc(colours[0]), ycc.shape)


def gradient_plate(ycc: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Blend from the first colour at the top to the second at the bottom."""
    share = (np.arange(ycc.shape[1], dtype=np.float32) + 0.5) / ycc.shape[1]
    rows = colours[0] + rearrange(share, "h -> h 1") * (colours[1] - colours[0])
    return np.broadcast_to(rearrange(to_ycc(rows), "h c -> 1 h 1 c"), ycc.shape)


def horizon_plate(ycc: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Find the horizon of each frame: a sky above it, the ground's colours below it, a blend of both between."""
    layers = np.stack(
        [
            closest_between(ycc, colours[0], colours[0] * SKY_TOP),
            closest_between(ycc, colours[1], colours[2]),
            closest_between(ycc, colours[0], (colours[1] + colours[2]) / 2),
        ]
    )
    distance = np.minimum(norm(layers - ycc), MAX_DISTANCE)
    sky, ground = reduce(distance[:2], "two t h w -> two t h", "mean")
    # The horizon is the row before which all is best explained as sky, and after which as ground.
    horizon = np.pad((sky - ground).cumsum(1), ((0, 0), (1, 0))).argmin(1)
    row = np.arange(ycc.shape[1]) - rearrange(horizon, "t -> t 1")
    allowed = np.stack([row < 2, row >= -2, np.abs(row + 0.5) < 2])
    best = np.where(rearrange(allowed, "layer t h -> layer t h 1"), distance, np.inf).argmin(0)
    return np.take_along_axis(layers, rearrange(best, "t h w -> 1 t h w 1"), 0)[0]


PLATES: dict[str, PlateFunction] = {
    **dict.fromkeys(("black", "white", "grey", "dark blue", "night sky"), uniform_plate),
    **dict.fromkeys(("teal gradient", "sunset"), gradient_plate),
    "checkerboard": lambda ycc, colours: closest_between(ycc, colours[0], colours[1]),
    **dict.fromkeys(("sea", "grass", "desert", "snow"), horizon_plate),
}


def estimate_background(ycc: np.ndarray) -> Background:
    """Estimate the background that fits most pixels, its plate shifted by what the whole clip is off."""
    sparse = ycc[:: max(1, len(ycc) // 4)]  # a name needs no more frames than these
    palettes = {name: np.array(BACKGROUNDS[name], np.float32) for name in PLATES}
    # No pixel counts for more than MAX_DISTANCE, so that things are not held against a background.
    errors = {
        name: float(np.minimum(norm(sparse - plate(sparse, palettes[name])), MAX_DISTANCE).mean())
        for name, plate in PLATES.items()
    }
    name = min(errors, key=lambda name: errors[name])
    if errors[name] > MAX_ERROR:  # things may still stand out from what most pixels are
        return Background("", np.broadcast_to(np.median(sparse, axis=(0, 1, 2)), ycc.shape), errors[name])
    plate = PLATES[name](ycc, palettes[name])
    difference = ycc - plate
    near = difference[norm(difference) < MAX_DISTANCE / 2]
    plate = plate + (np.median(near[:: 1 + len(near) // 4000], axis=0) if len(near) else np.float32(0))
    return Background(name, plate, errors[name])
