"""Convert frames to the colour space in which the judge compares them, and blur and dilate what it finds there.

frames (..., 3) in 0 ... 255  ->  YCC (..., 3), luma and two chroma axes at half weight

Video stores chroma coarsely, so it counts half. The map is linear, so that what is blended stays blended.
"""

import numpy as np
from einops import reduce

RGB_TO_YCC = np.array([[0.299, 0.587, 0.114], [-0.084, -0.166, 0.25], [0.25, -0.209, -0.041]], np.float32)
"""BT.601 with half its chroma: the distance by which the world decides what can be told from a background."""


def to_ycc(colours: np.ndarray) -> np.ndarray:
    """Convert RGB colours (..., 3) in 0 ... 255 to YCC."""
    return np.asarray(colours, np.float32) @ RGB_TO_YCC.T


def norm(vectors: np.ndarray) -> np.ndarray:
    """Compute the Euclidean norm of vectors (..., 3)."""
    return np.sqrt(np.einsum("...c,...c->...", vectors, vectors))


def halve(frames: np.ndarray) -> np.ndarray:
    """Average frames (t, h, w, c) to half their size; an odd last row or column is dropped."""
    even = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
    return reduce(even, "t (h a) (w b) c -> t h w c", "mean", a=2, b=2)


def blur(frames: np.ndarray) -> np.ndarray:
    """Blur frames (t, h, w, ...) in space with the kernel (1, 2, 1) / 4 along both axes."""
    for axis in (1, 2):
        padding = [(1, 1) if i == axis else (0, 0) for i in range(frames.ndim)]
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(frames, padding, mode="edge"), 3, axis)
        before, centre, after = np.moveaxis(windows, -1, 0)
        frames = (before + 2 * centre + after) / 4
    return frames


def dilate(mask: np.ndarray, reach: int) -> np.ndarray:
    """Dilate a mask (t, h, w) by a square that reaches so many pixels along rows and columns."""
    for axis in (1, 2):
        padded = np.pad(mask, [(0, 0) if i != axis else (reach, reach) for i in range(3)])
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1, axis)
        mask = np.asarray(np.any(windows, axis=-1))
    return mask


def isolated_specks(mask: np.ndarray, reach: int) -> np.ndarray:
    """Select what stands alone in a mask (t, h, w), as stars do: the empty outline of a square encloses it."""
    side = 2 * reach + 1
    empty = ~np.pad(mask, ((0, 0), (side, side), (side, side)))
    windows = np.lib.stride_tricks.sliding_window_view
    across, down = (np.asarray(np.all(windows(empty, side, axis), axis=-1)) for axis in (2, 1))
    # A square about (row, column) has its upper and lower side in `across` and its left and right side in `down`.
    horizontal = across[:, : -2 * reach] & across[:, 2 * reach :]
    vertical = down[:, :, : -2 * reach] & down[:, :, 2 * reach :]
    inside = dilate(np.pad(horizontal & vertical, ((0, 0), (reach, reach), (reach, reach))), reach - 1)
    return mask & inside[:, side:-side, side:-side]
