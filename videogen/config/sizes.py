"""Parse sizes and patches, and refuse sizes and lengths that a model's strides forbid."""

from __future__ import annotations

import math
import re

TIME_STRIDE, SPACE_STRIDE = 4, 8  # frames and pixels a latent cell of VideoVAE


def parse_size(size: str) -> tuple[int, int]:
    """Parse "64x48" to (64, 48): width and height in pixels."""
    match = re.fullmatch(r"\s*(\d+)\s*[xX×]\s*(\d+)\s*", size)
    if match is None or 0 in (sides := (int(match[1]), int(match[2]))):
        raise ValueError(f"size must be WIDTHxHEIGHT in pixels, such as 64x64, got {size!r}; or a shape, such as 9:16")
    return sides


def parse_ratio(size: str) -> tuple[int, int] | None:
    """Parse "9:16" to (9, 16), the shape of a frame; None for anything else."""
    match = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", size)
    return None if match is None or 0 in (sides := (int(match[1]), int(match[2]))) else sides


def fit_ratio(ratio: tuple[int, int], *, area: int, multiple: int) -> tuple[int, int]:
    """Compute the width and height of a shape, of about an area in pixels, as the nearest multiples."""
    width = math.sqrt(area * ratio[0] / ratio[1])
    w, h = (multiple * max(1, round(side / multiple)) for side in (width, area / width))
    return w, h


def parse_patch(name: str) -> tuple[int, int, int]:
    """Parse "1x4x4" to (1, 4, 4): frames, rows and columns of latent cells in one token."""
    match = re.fullmatch(r"\s*(\d+)x(\d+)x(\d+)\s*", name)
    if match is None or 0 in (sides := (int(match[1]), int(match[2]), int(match[3]))):
        raise ValueError(f"a patch must be TxHxW in latent cells, such as 1x4x4, got {name!r}")
    return sides


def require_positive(config: object, *names: str) -> None:
    """Refuse fields that are 0 or less, infinite or not a number."""
    for name in names:
        if not 0 < (value := getattr(config, name)) < math.inf:
            raise ValueError(f"{name} must be above 0, got {value:g}")


def check_frames(frames: int, stride: int) -> None:
    """Refuse a length that is not 1 + a multiple of the stride, offering the two nearest that are."""
    if (frames - 1) % stride:
        below = frames - (frames - 1) % stride
        raise ValueError(f"frames must be 1 + a multiple of {stride}, got {frames}; try {below} or {below + stride}")


def check_size(width: int, height: int, stride: int) -> None:
    """Refuse a size that is not a multiple of the stride, offering the two nearest that are."""
    if width % stride == 0 and height % stride == 0:
        return
    below = [max(stride, side - side % stride) for side in (width, height)]
    above = [-(-side // stride) * stride for side in (width, height)]
    raise ValueError(
        f"width and height must be multiples of {stride}, got {width}x{height}; "
        f"try {below[0]}x{below[1]} or {above[0]}x{above[1]}"
    )
