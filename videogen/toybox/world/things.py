"""What a toy world is made of: kinds of things, colours, sizes, and backgrounds' palettes."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np
from einops import rearrange, reduce
from PIL import Image

T = TypeVar("T")
Colour = tuple[int, int, int]

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "ring")
DIGITS: tuple[str, ...] = tuple("0123456789")
SPRITES: tuple[str, ...] = (
    "cat", "dog", "fish", "bird", "butterfly", "car", "rocket", "boat",
    "balloon", "apple", "tree", "sun", "moon", "ghost", "crown", "football",
)  # fmt: skip
"""Drawn by Noto Emoji; they come in their own colours."""
KINDS: tuple[str, ...] = (*SHAPES, *DIGITS, *SPRITES)

ROUND = frozenset({"circle", "ring"})
"""Things that look the same however far they have turned: they neither spin nor roll."""
ROLLING = (frozenset(SHAPES) - ROUND) | {"football", "apple", "sun"}
SPINNING = (frozenset(SHAPES) - ROUND) | frozenset(SPRITES)
"""Not digits: a turned 6 is a 9."""

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
"""Least and greatest radius, as a share of the frame's shorter side."""

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
"""The colours a background is made of; `backgrounds` says how they are laid out."""

TEXTURED: tuple[str, ...] = ("checkerboard", "night sky", "sea", "grass", "desert", "snow")
"""Backgrounds on which a camera's motion is seen, in both directions."""

TILE, TILES_A_ROW = 64, 8
SHEET = Path(__file__).resolve().parents[3] / "assets" / "toybox" / "sprites.png"


@cache
def tile(kind: str) -> np.ndarray:
    """The picture of a digit or sprite, (64, 64, 4) in 0 ... 1, premultiplied; it fills a circle of radius 31."""
    number = (*DIGITS, *SPRITES).index(kind)
    row, column = divmod(number, TILES_A_ROW)
    with Image.open(SHEET) as sheet:
        box = (column * TILE, row * TILE, (column + 1) * TILE, (row + 1) * TILE)
        pixels = np.asarray(sheet.convert("RGBA").crop(box), np.float32) / 255
    return np.concatenate([pixels[..., :3] * pixels[..., 3:], pixels[..., 3:]], axis=-1)


@cache
def picture(kind: str, level: int) -> np.ndarray:
    """A tile at 1 / 2^level of its size, averaged, in an empty frame of one pixel."""
    halved = reduce(tile(kind), "(h a) (w b) c -> h w c", "mean", a=2**level, b=2**level)
    return np.pad(halved, ((1, 1), (1, 1), (0, 0)))


def paints(kind: str, colour: str) -> np.ndarray:
    """The colours a thing shows, (n, 3) in 0 ... 255: one, or a sprite's pixels."""
    if colour:
        return np.array([COLOURS[colour]], np.float32)
    pixels = rearrange(picture(kind, 2), "h w c -> (h w) c")
    solid = pixels[pixels[:, 3] > 0.9]
    return 255 * solid[:, :3] / solid[:, 3:]


@cache
def contrasts(kind: str, colour: str, background: str) -> bool:
    """Whether a thing can be told from all of a background, also after chroma subsampling (BT.601 distance)."""
    # Chroma counts half: it is stored at half the resolution and quantised more coarsely.
    to_ycc = np.array([[0.299, 0.587, 0.114], [-0.084, -0.166, 0.25], [0.25, -0.209, -0.041]], np.float32)
    behind = np.array(BACKGROUNDS[background], np.float32)
    if len(behind) == 2:  # a gradient has all that lies between
        behind = behind[0] + np.linspace(0, 1, 5)[:, None] * (behind[1] - behind[0])
    differences = (rearrange(paints(kind, colour), "n c -> n 1 c") - behind) @ to_ycc.T
    seen = np.linalg.norm(differences, axis=-1).min(axis=1) > 35
    return float(seen.mean()) > 0.6


def pick(rng: np.random.Generator, options: Sequence[T], *, first: float | None = None) -> T:
    """One of the options, all alike, or the first with a chance of its own."""
    if first is None or len(options) == 1:
        return options[int(rng.integers(len(options)))]
    return options[0] if rng.random() < first else options[1 + int(rng.integers(len(options) - 1))]
