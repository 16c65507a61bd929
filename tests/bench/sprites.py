"""Render the toybox's sprite sheet from two fonts: python tests/bench/sprites.py NotoSans-Bold.ttf NotoColorEmoji.ttf.

    ten white digits, sixteen emoji  ->  assets/toybox/sprites.png: tiles of 64 by 64 RGBA, row by row, eight to a row

Every sprite's smallest enclosing circle has radius 31 and its tile's centre, so it can turn in place and never be cut.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont

SHEET = Path(__file__).parents[2] / "assets" / "toybox" / "sprites.png"
TILE, RADIUS, COLUMNS = 64, 31, 8
VISIBLE = 0.25  # of full alpha
DIGIT_SIZE, EMOJI_SIZE = 512, 109  # the emoji are bitmaps of this one size
DIGITS = "0123456789"
EMOJI = {
    "cat": "\N{CAT FACE}",
    "dog": "\N{DOG FACE}",
    "fish": "\N{FISH}",
    "bird": "\N{BIRD}",
    "butterfly": "\N{BUTTERFLY}",
    "car": "\N{AUTOMOBILE}",
    "rocket": "\N{ROCKET}",
    "boat": "\N{SAILBOAT}",
    "balloon": "\N{BALLOON}",
    "apple": "\N{RED APPLE}",
    "tree": "\N{DECIDUOUS TREE}",
    "sun": "\N{BLACK SUN WITH RAYS}",
    "moon": "\N{CRESCENT MOON}",
    "ghost": "\N{GHOST}",
    "crown": "\N{CROWN}",
    "football": "\N{SOCCER BALL}",
}


class Circle(NamedTuple):
    center: np.ndarray
    """(2,): row, column."""
    radius: float

    def distances(self, points: np.ndarray) -> np.ndarray:
        """Compute the distances from the centre to each of the points (n, 2)."""
        return np.linalg.norm(points - self.center, axis=-1)


def circle_through(points: Iterable[np.ndarray]) -> Circle:
    """Compute the smallest circle with these two or three points (2,) on it."""
    first, *others = points
    sides = np.stack(others) - first
    # Two points leave one equation for two unknowns; its shortest solution is the midpoint.
    center, *_ = np.linalg.lstsq(2 * sides, np.square(sides).sum(axis=-1), rcond=None)
    return Circle(first + center, float(np.linalg.norm(center)))


def smallest_circle(points: np.ndarray) -> Circle:
    """Compute the smallest circle around points (n, 2): the farthest point outside joins its support, until none is."""
    support, circle = [points[0]], Circle(points[0], 0.0)
    while (distances := circle.distances(points)).max() > circle.radius + 1e-6:
        enclosed = [*support, points[distances.argmax()]]
        choices = [choice for size in (2, 3) for choice in combinations(enclosed, size)]
        candidates = [(choice, circle_through(choice)) for choice in choices]
        candidates = [
            (choice, candidate)
            for choice, candidate in candidates
            if candidate.distances(np.stack(enclosed)).max() <= candidate.radius + 1e-6
        ]
        support, circle = min(candidates, key=lambda pair: pair[1].radius)
    return circle


def visible_corners(picture: Image.Image) -> np.ndarray:
    """List the four corners of every visible pixel, (n, 2) rows and columns."""
    alpha = np.asarray(picture.getchannel("a"))
    pixels = rearrange(np.argwhere(alpha > VISIBLE * 255), "n yx -> n 1 yx")
    corners = pixels + np.array([(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)])
    return rearrange(corners, "n corners yx -> (n corners) yx")


def render_character(text: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """Render one character in premultiplied RGBa, with a margin; white where the font has no colours of its own."""
    side = 3 * int(font.size)
    picture = Image.new("RGBA", (side, side))
    ImageDraw.Draw(picture).text((side // 2, side // 2), text, "white", font, anchor="mm", embedded_color=True)
    # Pillow mixes text into what is below it, alpha and all: on transparent black that is premultiplied alpha.
    return Image.frombytes("RGBa", picture.size, picture.tobytes())


def to_tile(picture: Image.Image) -> np.ndarray:
    """Scale and centre a premultiplied picture by its circle: (h, w, 4) in straight RGBA."""
    (row, column), radius = smallest_circle(visible_corners(picture))
    reach = radius * TILE / 2 / RADIUS
    box = (column - reach, row - reach, column + reach, row + reach)
    return np.asarray(picture.resize((TILE, TILE), Image.Resampling.LANCZOS, box).convert("RGBA"))


def main() -> None:
    """Render every sprite and lay the tiles out; the last tiles of the sheet are empty."""
    digit_font = ImageFont.truetype(sys.argv[1], DIGIT_SIZE)
    emoji_font = ImageFont.truetype(sys.argv[2], EMOJI_SIZE)
    pictures = [render_character(digit, digit_font) for digit in DIGITS] + [
        render_character(emoji, emoji_font) for emoji in EMOJI.values()
    ]
    tiles = np.stack([to_tile(picture) for picture in pictures])
    tiles = np.pad(tiles, ((0, -len(tiles) % COLUMNS), (0, 0), (0, 0), (0, 0)))
    sheet = rearrange(tiles, "(rows columns) h w c -> (rows h) (columns w) c", columns=COLUMNS)
    SHEET.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(SHEET, optimize=True)


if __name__ == "__main__":
    main()
