"""Read pictures and animations by Pillow: upright, in 8 bits, laid on a background where they are transparent.

.png, .jpg, .webp, .avif, .bmp, .tiff  ->  frames (h, w, 3) uint8, each with the time at which it leaves the screen
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from einops import rearrange

from videogen.data.file_format import explain_picture
from videogen.data.findings import UnreadableFile

if TYPE_CHECKING:
    from numpy import ndarray
    from PIL.Image import Image

IMAGE_SUFFIXES = (".png", ".apng", ".jpg", ".jpeg", ".webp", ".avif", ".bmp", ".tif", ".tiff")
ANIMATED_SUFFIXES = (".png", ".apng", ".webp", ".avif")  # further images of a .jpg are previews, those of a .tiff pages
WHITE = "white"
FRAME_SECONDS = 0.1  # as browsers show a frame whose file gives no time


@contextmanager
def open_picture(path: Path) -> Iterator[Image]:
    """Open a picture; what is wrong with it inside becomes an UnreadableFile that names the file."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            yield image
    except Image.DecompressionBombError as error:
        million = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        words = f"the picture has more than the {million:.0f} million pixels that are opened; scale it down"
        raise UnreadableFile(path, "huge_picture", words) from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise explain_picture(path, error) from error


def is_animation(path: Path) -> bool:
    """True if a file is a picture with several frames in time."""
    if path.suffix.lower() not in ANIMATED_SUFFIXES:
        return False
    with open_picture(path) as image:
        return getattr(image, "n_frames", 1) > 1


def read_image_file(path: Path, background: str = WHITE) -> ndarray:
    """Read a picture, or the first frame of an animation, as a clip of one frame (1, h, w, 3)."""
    with open_picture(path) as image:
        return rearrange(to_pixels(image, background), "h w rgb -> 1 h w rgb")


def read_animation(path: Path, background: str = WHITE) -> Iterator[tuple[float, ndarray]]:
    """Yield (seconds until it leaves the screen, frame (h, w, 3)) of an animation."""
    seconds = 0.0
    with open_picture(path) as image:
        num_frames = getattr(image, "n_frames", 1)
        first = int(bool(getattr(image, "default_image", False)))  # which a PNG shows where nothing can be animated
        for i in range(first, num_frames):
            image.seek(i)
            image.load()
            seconds += image.info.get("duration", 0) / 1000 or FRAME_SECONDS
            yield seconds, to_pixels(image, background)


def to_pixels(image: Image, background: str) -> ndarray:
    """Convert a picture to pixels (h, w, 3): turned as its EXIF data asks, on a background, scaled to 8 bits.

    Raises a ValueError where its numbers have no known range: whole ones of 32 bits, and fractions beyond 0 to 1.
    """
    import numpy as np
    from PIL import Image, ImageOps

    has_16_bits = image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PNG")
    image = ImageOps.exif_transpose(image)
    if has_16_bits:  # which Pillow would clip to white
        image = Image.fromarray((np.asarray(image) // 257).astype("uint8"))
    elif image.mode in ("I", "F"):
        low, high = float(np.asarray(image).min()), float(np.asarray(image).max())
        if image.mode == "I" or low < 0 or high > 1:
            raise ValueError(f"its numbers reach from {low:g} to {high:g}; save it in 8 or 16 bits, or in 0 to 1")
        image = Image.fromarray(np.rint(np.asarray(image) * 255).astype("uint8"))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, background), rgba)
    return np.array(image.convert("RGB"))


def check_background(colour: str) -> None:
    """Refuse a background that is no colour that Pillow knows."""
    from PIL import ImageColor

    try:
        ImageColor.getrgb(colour)
    except ValueError:
        raise ValueError(f"a background is a colour such as white, black or #80ff00, got {colour!r}") from None
