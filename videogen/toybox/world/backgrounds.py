"""Paint backgrounds as functions of world coordinates, so that a camera can move over them.

x, y (...) in pixels of the world, palette (k, 3), BackgroundParams  ->  colours (..., 3) in 0 ... 255
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from einops import rearrange

from videogen.toybox.world.scenes import Scene, camera_transform
from videogen.toybox.world.things import BACKGROUNDS

LATTICE_SIZE = 64


class BackgroundParams(NamedTuple):
    """Parameters of one background: the frame size, a random table (64, 64, 3) and the height of the horizon."""

    width: int
    height: int
    table: np.ndarray
    horizon: float


Painter = Callable[[np.ndarray, np.ndarray, np.ndarray, BackgroundParams], np.ndarray]


def mix_colours(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Interpolate from the first colour to the second, by a share (...) at each point."""
    return first + rearrange(share, "... -> ... 1") * (second - first)


def value_noise(x: np.ndarray, y: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Evaluate smooth noise in 0 ... 1 with one lattice point per unit and period 64 (value noise, Perlin's fade)."""
    column, row = np.floor(x).astype(int), np.floor(y).astype(int)
    u, v = ((3 - 2 * fraction) * fraction * fraction for fraction in (x - column, y - row))
    a, b = (table[(row + i) % LATTICE_SIZE, column % LATTICE_SIZE] for i in (0, 1))
    c, d = (table[(row + i) % LATTICE_SIZE, (column + 1) % LATTICE_SIZE] for i in (0, 1))
    return (1 - v) * (a + u * (c - a)) + v * (b + u * (d - b))


def paint_plain(x: np.ndarray, y: np.ndarray, palette: np.ndarray, params: BackgroundParams) -> np.ndarray:
    """Paint one colour everywhere."""
    return np.broadcast_to(palette[0], (*x.shape, 3))


def paint_gradient(x: np.ndarray, y: np.ndarray, palette: np.ndarray, params: BackgroundParams) -> np.ndarray:
    """Paint a gradient from the first colour at the top to the second at the bottom."""
    return mix_colours(palette[0], palette[1], np.clip(y / params.height, 0, 1))


def paint_checkerboard(x: np.ndarray, y: np.ndarray, palette: np.ndarray, params: BackgroundParams) -> np.ndarray:
    """Paint a checkerboard with five fields along the shorter side and smooth edges."""
    field = min(params.width, params.height) / 5
    signs = [np.clip((np.abs(axis / field % 2 - 1) - 0.5) * field, -0.5, 0.5) * 2 for axis in (x, y)]
    return mix_colours(palette[0], palette[1], (1 + signs[0] * signs[1]) / 2)


def paint_night_sky(x: np.ndarray, y: np.ndarray, palette: np.ndarray, params: BackgroundParams) -> np.ndarray:
    """Paint soft stars, at most one in a cell of 11 pixels and none near its edge, so no star reaches another cell."""
    cell = 11.0
    column, row = np.floor(x / cell).astype(int) % LATTICE_SIZE, np.floor(y / cell).astype(int) % LATTICE_SIZE
    across, down, brightness = np.moveaxis(params.table[row, column], -1, 0)
    squared = np.square(x % cell - 3 - (cell - 6) * across) + np.square(y % cell - 3 - (cell - 6) * down)
    light = np.exp(squared * -0.5) * np.clip(1.6 * brightness - 0.6, 0, 1)
    return mix_colours(palette[0], np.array((255, 250, 225), np.float32), light)


def with_sky(paint_ground: Painter) -> Painter:
    """Add a sky of the first colour above the horizon, paler towards it; the ground gets the other colours."""

    def paint(x: np.ndarray, y: np.ndarray, palette: np.ndarray, params: BackgroundParams) -> np.ndarray:
        above = np.clip((params.horizon - y) / params.height, 0, 1)
        sky = mix_colours(palette[0], palette[0] * np.array((0.75, 0.85, 0.97), np.float32), above)
        below = np.clip(y - params.horizon + 0.5, 0, 1)
        return mix_colours(sky, paint_ground(x, y - params.horizon, palette[1:], params), below)

    return paint


def paint_sea(x: np.ndarray, y: np.ndarray, palette: np.ndarray, params: BackgroundParams) -> np.ndarray:
    """Paint waves: short crests in rows that grow wider towards the viewer."""
    rows = np.sqrt(np.maximum(y, 0) + 1) * 1.1
    crest = value_noise(x / 7, rows * 2 + 20, params.table[..., 0])
    return mix_colours(palette[0], palette[1], np.clip(4 * crest - 1.8, 0, 1))


def paint_grass(x: np.ndarray, y: np.ndarray, palette: np.ndarray, params: BackgroundParams) -> np.ndarray:
    """Paint tufts, higher than wide."""
    return mix_colours(palette[0], palette[1], np.clip(3 * value_noise(x / 4, y / 7, params.table[..., 1]) - 1, 0, 1))


def paint_desert(x: np.ndarray, y: np.ndarray, palette: np.ndarray, params: BackgroundParams) -> np.ndarray:
    """Paint dunes: wavy bands, light on one side."""
    wave = y / 11 + 0.9 * value_noise(x / 17, y / 40, params.table[..., 2]) + 0.35 * np.sin(x / 9)
    return mix_colours(palette[0], palette[1], np.abs(wave % 2 - 1))


def paint_snow(x: np.ndarray, y: np.ndarray, palette: np.ndarray, params: BackgroundParams) -> np.ndarray:
    """Paint drifts: broad soft shadows."""
    drift = value_noise(x / 11, y / 5, params.table[..., 0])
    return mix_colours(palette[0], palette[1], np.clip(3 * drift - 1.2, 0, 1))


PAINTERS: dict[str, Painter] = {
    **dict.fromkeys(("black", "white", "grey", "dark blue"), paint_plain),
    **dict.fromkeys(("teal gradient", "sunset"), paint_gradient),
    "checkerboard": paint_checkerboard,
    "night sky": paint_night_sky,
    "sea": with_sky(paint_sea),
    "grass": with_sky(paint_grass),
    "desert": with_sky(paint_desert),
    "snow": with_sky(paint_snow),
}


def render_background(scene: Scene) -> np.ndarray:
    """Render the background of a scene, (t, h, w, 3) float32 in 0 ... 255; t is 1 if the camera stands still."""
    rng = np.random.default_rng([scene.seed, 2])
    table = rng.random((LATTICE_SIZE, LATTICE_SIZE, 3), np.float32)
    params = BackgroundParams(scene.width, scene.height, table, scene.height * rng.uniform(0.35, 0.6))
    shift_x, shift_y, scale = (rearrange(values.astype(np.float32), "t -> t 1 1") for values in camera_transform(scene))
    if scene.camera == "still":
        shift_x, shift_y, scale = shift_x[:1], shift_y[:1], scale[:1]
    down, right = np.mgrid[: scene.height, : scene.width].astype(np.float32) + 0.5
    x = scene.width / 2 + shift_x + (right - scene.width / 2) / scale
    y = scene.height / 2 + shift_y + (down - scene.height / 2) / scale
    return PAINTERS[scene.background](x, y, np.array(BACKGROUNDS[scene.background], np.float32), params)
