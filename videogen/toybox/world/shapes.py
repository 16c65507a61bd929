"""Render the eight shapes from signed distances, and digits and sprites from pictures.

points in the unit disc (x to the right, y up), radius in pixels  ->  colour and coverage of each point, (..., 4)
"""

from collections.abc import Callable
from math import cos, log2, pi, sin, sqrt

import numpy as np
from einops import rearrange

from videogen.toybox.world.motions import Thing
from videogen.toybox.world.things import COLOURS, DIGITS, TILE_SIZE, tile_mipmap

SignedDistance = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Distance of points (x to the right, y up) to a shape that the unit circle encloses; negative inside the shape."""


def circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Measure the signed distance to the unit circle."""
    return np.hypot(x, y) - 1


def ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Measure the signed distance to a circle with a hole of about half its radius."""
    return np.abs(np.hypot(x, y) - 0.76) - 0.24


def rectangle(x: np.ndarray, y: np.ndarray, half_width: float, half_height: float) -> np.ndarray:
    """Measure the signed distance to a rectangle; outside its corners it is a lower bound."""
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Measure the signed distance to a square that stands on one side."""
    return rectangle(x, y, sqrt(0.5), sqrt(0.5))


def cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Measure the signed distance to a plus sign."""
    length, width = sqrt(1 - 0.3**2), 0.3
    return np.minimum(rectangle(x, y, length, width), rectangle(x, y, width, length))


def diamond(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Measure the signed distance to a diamond; it is narrower than high, so a rotated square is no diamond."""
    width = 0.65
    return (np.abs(x) / width + np.abs(y) - 1) / sqrt(1 / width**2 + 1)


def triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Measure the signed distance to an equilateral triangle that points up."""
    return np.maximum(sqrt(0.75) * np.abs(x) + 0.5 * y, -y) - 0.5


def star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Measure the signed distance to a star with five points, one of them up."""
    tenth, inner = pi / 5, 0.45
    # Every point is mirrored into the half of the upper point, where the outline is one straight edge.
    angle = np.abs((np.arctan2(x, y) + tenth) % (2 * tenth) - tenth)
    along, across = 1 - inner * cos(tenth), inner * sin(tenth)
    rho = np.hypot(x, y)
    return ((rho * np.cos(angle) - 1) * across + rho * np.sin(angle) * along) / np.hypot(along, across)


def heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Measure the signed distance to two half discs on a tilted square (Quilez, 2D distance functions)."""
    # The origin is the centre of mass. Its height over the tip is also the radius, for the tip is the farthest point.
    scale = 0.6567
    x, y = np.abs(x) * scale, (y + 1) * scale
    lobe = np.hypot(x - 0.25, y - 0.75) - sqrt(2) / 4
    along = np.maximum(x + y, 0) / 2
    side = np.minimum(np.hypot(x, y - 1), np.hypot(x - along, y - along)) * np.sign(x - y)
    return np.where(x + y > 1, lobe, side) / scale


SIGNED_DISTANCES: dict[str, SignedDistance] = {
    "circle": circle,
    "square": square,
    "triangle": triangle,
    "star": star,
    "heart": heart,
    "diamond": diamond,
    "cross": cross,
    "ring": ring,
}


def interpolate_tile(padded: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Interpolate a padded tile (s + 2, s + 2, 4) bilinearly at points of the disc it fills; transparent outside."""
    side = len(padded) - 2
    scale = side * 31 / TILE_SIZE
    column = np.clip(side / 2 + 0.5 + scale * x, 0, side + 0.999)
    row = np.clip(side / 2 + 0.5 - scale * y, 0, side + 0.999)
    left, top = column.astype(int), row.astype(int)
    u, v = (rearrange(fraction, "... -> ... 1") for fraction in (column - left, row - top))
    upper = (1 - u) * padded[top, left] + u * padded[top, left + 1]
    lower = (1 - u) * padded[top + 1, left] + u * padded[top + 1, left + 1]
    return (1 - v) * upper + v * lower


def render_thing(thing: Thing, x: np.ndarray, y: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Render a thing at points of its disc: colours in 0 ... 255, premultiplied, and coverage in 0 ... 1, (..., 4).

    The radius in pixels sets how soft the edge of a shape is, and which mipmap level has one texel per pixel.
    """
    if thing.kind in SIGNED_DISTANCES:
        coverage = rearrange(np.clip(0.5 - radius * SIGNED_DISTANCES[thing.kind](x, y), 0, 1), "... -> ... 1")
        return coverage * np.array((*COLOURS[thing.colour], 1), np.float32)
    level = min(max(log2(31 / float(np.mean(radius))), 0.0), 3.0)
    fine, coarse_share = int(level), level - int(level)
    pixels = interpolate_tile(tile_mipmap(thing.kind, fine), x, y)
    if coarse_share:
        coarse = interpolate_tile(tile_mipmap(thing.kind, fine + 1), x, y)
        pixels = (1 - coarse_share) * pixels + coarse_share * coarse
    tint = COLOURS[thing.colour] if thing.kind in DIGITS else (255, 255, 255)
    return pixels * np.array((*tint, 1), np.float32)
