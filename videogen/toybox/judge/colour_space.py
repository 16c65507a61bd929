"""The colours that a judge compares: brightness counts whole, chroma half, for video stores it coarsely.

frames (..., 3) in 0 ... 255  ->  seen (..., 3), a linear map, so that what is blended stays blended
"""

import numpy as np
from einops import reduce

TO_SEEN = np.array([[0.299, 0.587, 0.114], [-0.084, -0.166, 0.25], [0.25, -0.209, -0.041]], np.float32)
"""BT.601 with half its chroma: the distance by which the world decides what can be told from a background."""


def see(colours: np.ndarray) -> np.ndarray:
    """Colours (..., 3) in 0 ... 255 as they are compared."""
    return np.asarray(colours, np.float32) @ TO_SEEN.T


def length(vectors: np.ndarray) -> np.ndarray:
    """The length of vectors (..., 3)."""
    return np.sqrt(np.einsum("...c,...c->...", vectors, vectors))


def halve(frames: np.ndarray) -> np.ndarray:
    """Frames (t, h, w, c) at half their size; an odd last row or column is dropped."""
    even = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
    return reduce(even, "t (h a) (w b) c -> t h w c", "mean", a=2, b=2)


def soften(frames: np.ndarray) -> np.ndarray:
    """Frames (t, h, w, ...), each pixel mixed with its neighbours."""
    for axis in (1, 2):
        around = [(1, 1) if i == axis else (0, 0) for i in range(frames.ndim)]
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(frames, around, mode="edge"), 3, axis)
        before, here, after = np.moveaxis(windows, -1, 0)
        frames = (before + 2 * here + after) / 4
    return frames


def spread(mask: np.ndarray, reach: int) -> np.ndarray:
    """A mask (t, h, w) and all that is at most so many pixels from it, along rows and columns."""
    for axis in (1, 2):
        padded = np.pad(mask, [(0, 0) if i != axis else (reach, reach) for i in range(3)])
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1, axis)
        mask = np.asarray(np.any(windows, axis=-1))
    return mask


def specks(mask: np.ndarray, reach: int) -> np.ndarray:
    """What of a mask (t, h, w) stands alone: nothing on some square so far about it, as of a star in the sky."""
    span = 2 * reach + 1
    empty = ~np.pad(mask, ((0, 0), (span, span), (span, span)))
    windows = np.lib.stride_tricks.sliding_window_view
    across, down = (np.asarray(np.all(windows(empty, span, axis), axis=-1)) for axis in (2, 1))
    # A square about (row, column) has its upper and lower side in `across` and its left and right side in `down`.
    height, width = across.shape[1], down.shape[2]
    square = (
        across[:, : height - 2 * reach]
        & across[:, 2 * reach :]
        & down[:, :, : width - 2 * reach]
        & down[:, :, 2 * reach :]
    )
    inside = spread(np.pad(square, ((0, 0), (reach, reach), (reach, reach))), reach - 1)
    return mask & inside[:, span:-span, span:-span]
