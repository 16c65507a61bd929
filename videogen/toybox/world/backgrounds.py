"""Paint backgrounds, as functions of places in the world, so that a camera can move over them.

x, y (...) in pixels of the world, palette (k, 3), Grain  ->  colours (..., 3) in 0 ... 255
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from einops import rearrange

from videogen.toybox.world.scenes import Scene, view
from videogen.toybox.world.things import BACKGROUNDS

LATTICE = 64


class Grain(NamedTuple):
    """What differs between two backgrounds of one name: the frame's size, chances (64, 64, 3), height of a horizon."""

    width: int
    height: int
    chances: np.ndarray
    horizon: float


Painter = Callable[[np.ndarray, np.ndarray, np.ndarray, Grain], np.ndarray]


def mix(a: np.ndarray, b: np.ndarray, share: np.ndarray) -> np.ndarray:
    """From a to b, by a share at each place."""
    return a + rearrange(share, "... -> ... 1") * (b - a)


def noise(x: np.ndarray, y: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Smooth chances 0 ... 1 at places, one lattice point a unit, repeating after 64 (Perlin's value noise)."""
    column, row = np.floor(x).astype(int), np.floor(y).astype(int)
    u, v = ((3 - 2 * part) * part * part for part in (x - column, y - row))
    a, b = (table[(row + i) % LATTICE, column % LATTICE] for i in (0, 1))
    c, d = (table[(row + i) % LATTICE, (column + 1) % LATTICE] for i in (0, 1))
    return (1 - v) * (a + u * (c - a)) + v * (b + u * (d - b))


def plain(x: np.ndarray, y: np.ndarray, colours: np.ndarray, grain: Grain) -> np.ndarray:
    """One colour everywhere."""
    return np.broadcast_to(colours[0], (*x.shape, 3))


def gradient(x: np.ndarray, y: np.ndarray, colours: np.ndarray, grain: Grain) -> np.ndarray:
    """From the first colour at the top to the second at the bottom."""
    return mix(colours[0], colours[1], np.clip(y / grain.height, 0, 1))


def checkerboard(x: np.ndarray, y: np.ndarray, colours: np.ndarray, grain: Grain) -> np.ndarray:
    """Five fields along the shorter side, with smooth edges."""
    field = min(grain.width, grain.height) / 5
    signs = [np.clip((np.abs(place / field % 2 - 1) - 0.5) * field, -0.5, 0.5) * 2 for place in (x, y)]
    return mix(colours[0], colours[1], (1 + signs[0] * signs[1]) / 2)


def night_sky(x: np.ndarray, y: np.ndarray, colours: np.ndarray, grain: Grain) -> np.ndarray:
    """Soft stars, at most one in a cell of 11 pixels, none near its edge: a place has to ask its own cell only."""
    cell = 11.0
    column, row = np.floor(x / cell).astype(int) % LATTICE, np.floor(y / cell).astype(int) % LATTICE
    across, down, bright = np.moveaxis(grain.chances[row, column], -1, 0)
    squared = np.square(x % cell - 3 - (cell - 6) * across) + np.square(y % cell - 3 - (cell - 6) * down)
    light = np.exp(squared * -0.5) * np.clip(1.6 * bright - 0.6, 0, 1)
    return mix(colours[0], np.array((255, 250, 225), np.float32), light)


def under_sky(ground: Painter) -> Painter:
    """The sky above the horizon, paler towards it, and a ground of the other colours below."""

    def paint(x: np.ndarray, y: np.ndarray, colours: np.ndarray, grain: Grain) -> np.ndarray:
        above = np.clip((grain.horizon - y) / grain.height, 0, 1)
        sky = mix(colours[0], colours[0] * np.array((0.75, 0.85, 0.97), np.float32), above)
        below = np.clip(y - grain.horizon + 0.5, 0, 1)
        return mix(sky, ground(x, y - grain.horizon, colours[1:], grain), below)

    return paint


def sea(x: np.ndarray, y: np.ndarray, colours: np.ndarray, grain: Grain) -> np.ndarray:
    """Waves: short crests in rows that grow wider towards the viewer."""
    rows = np.sqrt(np.maximum(y, 0) + 1) * 1.1
    crest = noise(x / 7, rows * 2 + 20, grain.chances[..., 0])
    return mix(colours[0], colours[1], np.clip(4 * crest - 1.8, 0, 1))


def grass(x: np.ndarray, y: np.ndarray, colours: np.ndarray, grain: Grain) -> np.ndarray:
    """Tufts, higher than wide."""
    return mix(colours[0], colours[1], np.clip(3 * noise(x / 4, y / 7, grain.chances[..., 1]) - 1, 0, 1))


def desert(x: np.ndarray, y: np.ndarray, colours: np.ndarray, grain: Grain) -> np.ndarray:
    """Dunes: wavy bands, light on one side."""
    wave = y / 11 + 0.9 * noise(x / 17, y / 40, grain.chances[..., 2]) + 0.35 * np.sin(x / 9)
    return mix(colours[0], colours[1], np.abs(wave % 2 - 1))


def snow(x: np.ndarray, y: np.ndarray, colours: np.ndarray, grain: Grain) -> np.ndarray:
    """Drifts: broad soft shadows."""
    return mix(colours[0], colours[1], np.clip(3 * noise(x / 11, y / 5, grain.chances[..., 0]) - 1.2, 0, 1))


PAINTERS: dict[str, Painter] = {
    "black": plain,
    "white": plain,
    "grey": plain,
    "dark blue": plain,
    "teal gradient": gradient,
    "sunset": gradient,
    "checkerboard": checkerboard,
    "night sky": night_sky,
    "sea": under_sky(sea),
    "grass": under_sky(grass),
    "desert": under_sky(desert),
    "snow": under_sky(snow),
}


def paint(scene: Scene) -> np.ndarray:
    """What lies behind everything: (t, h, w, 3) float32 in 0 ... 255, t = 1 where the camera stands still."""
    rng = np.random.default_rng([scene.seed, 2])
    chances = rng.random((LATTICE, LATTICE, 3), np.float32)
    grain = Grain(scene.width, scene.height, chances, scene.height * rng.uniform(0.35, 0.6))
    shifts_x, shifts_y, scale = (rearrange(part.astype(np.float32), "t -> t 1 1") for part in view(scene))
    if scene.camera == "still":
        shifts_x, shifts_y, scale = shifts_x[:1], shifts_y[:1], scale[:1]
    down, right = np.mgrid[: scene.height, : scene.width].astype(np.float32) + 0.5
    x = scene.width / 2 + shifts_x + (right - scene.width / 2) / scale
    y = scene.height / 2 + shifts_y + (down - scene.height / 2) / scale
    return PAINTERS[scene.background](x, y, np.array(BACKGROUNDS[scene.background], np.float32), grain)
