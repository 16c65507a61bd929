"""The eight shapes as signed distances, and digits and sprites as pictures.

points in the unit disc (x to the right, y up), radius in pixels  ->  colour and cover of each point, (..., 4)
"""

from collections.abc import Callable
from math import cos, log2, pi, sin, sqrt

import numpy as np
from einops import rearrange

from videogen.toybox.world.motions import Thing
from videogen.toybox.world.things import COLOURS, DIGITS, TILE, picture

Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Signed distance to a shape inside the unit circle, from points (x to the right, y up); below zero is inside."""


def circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Fills the unit circle."""
    return np.hypot(x, y) - 1


def ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A circle with a hole of half its radius."""
    return np.abs(np.hypot(x, y) - 0.76) - 0.24


def box(x: np.ndarray, y: np.ndarray, width: float, height: float) -> np.ndarray:
    """A rectangle, given by half its width and height."""
    return np.maximum(np.abs(x) - width, np.abs(y) - height)


def square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Flat on its side."""
    return box(x, y, sqrt(0.5), sqrt(0.5))


def cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A plus sign."""
    length, width = sqrt(1 - 0.3**2), 0.3
    return np.minimum(box(x, y, length, width), box(x, y, width, length))


def diamond(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Narrower than high, so that no turned square is one."""
    width = 0.65
    return (np.abs(x) / width + np.abs(y) - 1) / sqrt(1 / width**2 + 1)


def triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """With equal sides, pointing up."""
    return np.maximum(sqrt(0.75) * np.abs(x) + 0.5 * y, -y) - 0.5


def star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Five points, one of them up."""
    tenth, inner = pi / 5, 0.45
    # Every point is mirrored into the half of the upper point, where the outline is one straight edge.
    angle = np.abs((np.arctan2(x, y) + tenth) % (2 * tenth) - tenth)
    along, across = 1 - inner * cos(tenth), inner * sin(tenth)
    rho = np.hypot(x, y)
    return ((rho * np.cos(angle) - 1) * across + rho * np.sin(angle) * along) / np.hypot(along, across)


def heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Two half discs on a square on its corner (Quilez, 2D distance functions), about its centre of mass."""
    scale = 0.6567  # height of the centre of mass over the tip, which is also the farthest point from it
    x, y = np.abs(x) * scale, (y + 1) * scale
    lobe = np.hypot(x - 0.25, y - 0.75) - sqrt(2) / 4
    along = np.maximum(x + y, 0) / 2
    side = np.minimum(np.hypot(x, y - 1), np.hypot(x - along, y - along)) * np.sign(x - y)
    return np.where(x + y > 1, lobe, side) / scale


DISTANCES: dict[str, Distance] = {
    "circle": circle,
    "square": square,
    "triangle": triangle,
    "star": star,
    "heart": heart,
    "diamond": diamond,
    "cross": cross,
    "ring": ring,
}


def look_up(padded: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A picture (s + 2, s + 2, 4) at points of the disc that fills it, between its pixels; nothing outside."""
    side = len(padded) - 2
    scale = side * 31 / TILE
    column = np.clip(side / 2 + 0.5 + scale * x, 0, side + 0.999)
    row = np.clip(side / 2 + 0.5 - scale * y, 0, side + 0.999)
    left, top = column.astype(int), row.astype(int)
    u, v = (rearrange(part, "... -> ... 1") for part in (column - left, row - top))
    upper = (1 - u) * padded[top, left] + u * padded[top, left + 1]
    lower = (1 - u) * padded[top + 1, left] + u * padded[top + 1, left + 1]
    return (1 - v) * upper + v * lower


def draw(thing: Thing, x: np.ndarray, y: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """What a thing shows at points of its disc: colours 0 ... 255, premultiplied, and cover, (..., 4).

    radius in pixels says how soft an edge is, or which halving of a picture has one pixel a pixel.
    """
    if thing.kind in DISTANCES:
        cover = rearrange(np.clip(0.5 - radius * DISTANCES[thing.kind](x, y), 0, 1), "... -> ... 1")
        return cover * np.array((*COLOURS[thing.colour], 1), np.float32)
    level = min(max(log2(31 / float(np.mean(radius))), 0.0), 3.0)
    fine, share = int(level), level - int(level)
    found = look_up(picture(thing.kind, fine), x, y)
    if share:
        found = (1 - share) * found + share * look_up(picture(thing.kind, fine + 1), x, y)
    tint = COLOURS[thing.colour] if thing.kind in DIGITS else (255, 255, 255)
    return found * np.array((*tint, 1), np.float32)
