"""Which background a clip shows, and what every pixel would be if nothing stood before it.

seen (t, h, w, 3)  ->  Behind: name, plate (t, h, w, 3), misfit

A background is known up to chances: where its waves, tufts or stars lie. The plate is therefore the colour nearest to
a pixel's own among all that the background could have there; what is far from it is something else.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from einops import rearrange, reduce

from videogen.toybox.judge.colour_space import length, see
from videogen.toybox.world.things import BACKGROUNDS

FAR = 40.0
"""Seen distance beyond which a pixel is no background at all, however far; things stand off by 35 or more."""
UNLIKE = 22.0
"""Mean distance, of at most FAR, beyond which a clip shows none of the backgrounds."""
PALER = np.array((0.75, 0.85, 0.97), np.float32)
"""The top of a sky, as a share of its colour at the horizon."""


class Behind(NamedTuple):
    """A background: its name, empty if it is none of them, its colour in every pixel, and how far off it is."""

    name: str
    plate: np.ndarray
    misfit: float


Nearest = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""seen (t, h, w, 3), a background's colours in 0 ... 255  ->  the nearest that it could have in each pixel"""


def between(seen: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The nearest point to each pixel on the line between two colours."""
    start, way = see(start), see(end) - see(start)
    share = np.clip((seen - start) @ (way / (way @ way)), 0, 1)
    return start + rearrange(share, "t h w -> t h w 1") * way


def plain(seen: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """One colour everywhere; also of a night sky, whose stars are small."""
    return np.broadcast_to(see(colours[0]), seen.shape)


def gradient(seen: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """From the first colour at the top to the second at the bottom."""
    share = (np.arange(seen.shape[1], dtype=np.float32) + 0.5) / seen.shape[1]
    rows = colours[0] + rearrange(share, "h -> h 1") * (colours[1] - colours[0])
    return np.broadcast_to(rearrange(see(rows), "h c -> 1 h 1 c"), seen.shape)


def mixture(seen: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Anything between two colours."""
    return between(seen, colours[0], colours[1])


def under_sky(seen: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """A sky above a horizon that is found in each frame, the ground's colours below it, a blend of both between."""
    layers = np.stack(
        [
            between(seen, colours[0], colours[0] * PALER),
            between(seen, colours[1], colours[2]),
            between(seen, colours[0], (colours[1] + colours[2]) / 2),
        ]
    )
    far = np.minimum(length(layers - seen), FAR)
    sky, ground = reduce(far[:2], "two t h w -> two t h", "mean")
    # The horizon is the row before which all is best called sky, and after which ground.
    calls = np.pad((sky - ground).cumsum(1), ((0, 0), (1, 0)))
    row = np.arange(seen.shape[1]) - rearrange(calls.argmin(1), "t -> t 1")
    usable = np.stack([row < 2, row >= -2, np.abs(row + 0.5) < 2])
    best = np.where(rearrange(usable, "layer t h -> layer t h 1"), far, np.inf).argmin(0)
    return np.take_along_axis(layers, rearrange(best, "t h w -> 1 t h w 1"), 0)[0]


NEAREST: dict[str, Nearest] = {
    **dict.fromkeys(("black", "white", "grey", "dark blue", "night sky"), plain),
    **dict.fromkeys(("teal gradient", "sunset"), gradient),
    "checkerboard": mixture,
    **dict.fromkeys(("sea", "grass", "desert", "snow"), under_sky),
}


def misfit(seen: np.ndarray, plate: np.ndarray) -> float:
    """Mean distance of all pixels to a background, none counted beyond FAR: things are not held against it."""
    return float(np.minimum(length(seen - plate), FAR).mean())


def look_behind(seen: np.ndarray) -> Behind:
    """The background that most pixels agree with, its plate shifted by what the whole clip is off."""
    few = seen[:: max(1, len(seen) // 4)]  # a name needs no more frames than these
    misfits = {
        name: misfit(few, nearest(few, np.array(BACKGROUNDS[name], np.float32))) for name, nearest in NEAREST.items()
    }
    name = min(misfits, key=lambda name: misfits[name])
    if misfits[name] > UNLIKE:  # things may still stand out from what most pixels are
        return Behind("", np.broadcast_to(np.median(few, axis=(0, 1, 2)), seen.shape), misfits[name])
    plate = NEAREST[name](seen, np.array(BACKGROUNDS[name], np.float32))
    off = seen - plate
    near = off[length(off) < FAR / 2]
    plate = plate + (np.median(near[:: 1 + len(near) // 4000], axis=0) if len(near) else np.float32(0))
    return Behind(name, plate, misfits[name])
