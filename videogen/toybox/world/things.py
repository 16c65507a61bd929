"""List the kinds, colours and sizes of things and the palettes of backgrounds, and load the pictures of things."""

from collections.abc import Sequence
from functools import cache
from typing import TypeVar

import numpy as np
from einops import rearrange, reduce
from PIL import Image

from videogen.config.assets import ASSETS

T = TypeVar("T")
Colour = tuple[int, int, int]

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "ring")
DIGITS: tuple[str, ...] = tuple("0123456789")
SPRITES: tuple[str, ...] = (
    "cat", "dog", "fish", "bird", "butterfly", "car", "rocket", "boat",
    "balloon", "apple", "tree", "sun", "moon", "ghost", "crown", "football",
)  # fmt: skip
"""Pictures from Noto Emoji, which have colours of their own."""
KINDS: tuple[str, ...] = (*SHAPES, *DIGITS, *SPRITES)

ROUND_KINDS = frozenset({"circle", "ring"})
"""Kinds that look the same at every angle, so they neither spin nor roll."""
ROLLING_KINDS = (frozenset(SHAPES) - ROUND_KINDS) | {"football", "apple", "sun"}
SPINNING_KINDS = (frozenset(SHAPES) - ROUND_KINDS) | frozenset(SPRITES)
"""Digits do not spin: a turned 6 is a 9."""

COLOURS: dict[str, Colour] = {
    "red": (215, 25, 30),
    "green": (25, 165, 50),
    "blue": (40, 100, 255),
    "yellow": (250, 225, 30),
    "orange": (255, 125, 0),
    "purple": (140, 40, 200),
    "white": (250, 250, 250),
    "pink": (255, 140, 200),
}

SIZES: dict[str, tuple[float, float]] = {"small": (0.13, 0.15), "large": (0.195, 0.22)}
"""Smallest and largest radius, as a share of the frame's shorter side."""

BACKGROUNDS: dict[str, tuple[Colour, ...]] = {
    "black": ((0, 0, 0),),
    "white": ((250, 250, 250),),
    "grey": ((120, 120, 120),),
    "dark blue": ((18, 28, 100),),
    "teal gradient": ((5, 35, 45), (50, 135, 140)),
    "sunset": ((60, 20, 90), (235, 120, 90)),
    "checkerboard": ((30, 30, 34), (96, 96, 102)),
    "night sky": ((6, 7, 30),),
    "sea": ((175, 215, 240), (15, 75, 140), (60, 130, 185)),
    "grass": ((150, 205, 245), (60, 120, 40), (105, 165, 65)),
    "desert": ((190, 225, 250), (205, 160, 95), (235, 200, 140)),
    "snow": ((130, 165, 205), (238, 242, 250), (200, 212, 232)),
}
"""The palette of each background; `backgrounds.PAINTERS` lays it out."""

TEXTURED_BACKGROUNDS: tuple[str, ...] = ("checkerboard", "night sky", "sea", "grass", "desert", "snow")
"""Backgrounds on which the motion of the camera is visible along both axes."""

TILE_SIZE, TILES_PER_ROW = 64, 8
SPRITE_SHEET = ASSETS / "toybox" / "sprites.png"


@cache
def load_tile(kind: str) -> np.ndarray:
    """Load the picture of a digit or sprite, (64, 64, 4) in 0 ... 1, premultiplied; it fills a circle of radius 31."""
    row, column = divmod((*DIGITS, *SPRITES).index(kind), TILES_PER_ROW)
    with Image.open(SPRITE_SHEET) as sheet:
        box = (column * TILE_SIZE, row * TILE_SIZE, (column + 1) * TILE_SIZE, (row + 1) * TILE_SIZE)
        pixels = np.asarray(sheet.convert("RGBA").crop(box), np.float32) / 255
    return np.concatenate([pixels[..., :3] * pixels[..., 3:], pixels[..., 3:]], axis=-1)


@cache
def tile_mipmap(kind: str, level: int) -> np.ndarray:
    """Average a tile down to 1 / 2^level of its size, and pad it with one transparent pixel on every side."""
    pixels = reduce(load_tile(kind), "(h a) (w b) c -> h w c", "mean", a=2**level, b=2**level)
    return np.pad(pixels, ((1, 1), (1, 1), (0, 0)))


def visible_colours(kind: str, colour: str) -> np.ndarray:
    """List the colours of a thing, (n, 3) in 0 ... 255: its one colour, or those of a sprite's pixels."""
    if colour:
        return np.array([COLOURS[colour]], np.float32)
    pixels = rearrange(tile_mipmap(kind, 2), "h w c -> (h w) c")
    opaque = pixels[pixels[:, 3] > 0.9]
    return 255 * opaque[:, :3] / opaque[:, 3:]


@cache
def has_contrast(kind: str, colour: str, background: str) -> bool:
    """True if a thing is visible on all of a background, also after chroma subsampling (BT.601 distance)."""
    # Chroma counts half: it is stored at half the resolution and quantised more coarsely.
    to_ycc = np.array([[0.299, 0.587, 0.114], [-0.084, -0.166, 0.25], [0.25, -0.209, -0.041]], np.float32)
    palette = np.array(BACKGROUNDS[background], np.float32)
    if len(palette) == 2:  # A gradient also shows every colour between its two.
        palette = palette[0] + np.linspace(0, 1, 5)[:, None] * (palette[1] - palette[0])
    differences = (rearrange(visible_colours(kind, colour), "n c -> n 1 c") - palette) @ to_ycc.T
    is_distinct = np.linalg.norm(differences, axis=-1).min(axis=1) > 35
    return float(is_distinct.mean()) > 0.6


def sample_choice(rng: np.random.Generator, options: Sequence[T], *, first_probability: float | None = None) -> T:
    """Sample one option uniformly, or the first with a probability of its own and the others uniformly."""
    if first_probability is None or len(options) == 1:
        return options[int(rng.integers(len(options)))]
    return options[0] if rng.random() < first_probability else options[1 + int(rng.integers(len(options) - 1))]
