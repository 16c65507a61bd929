"""Plan the windows in which a clip is denoised that is extended, or longer than the model was trained on.

which latent frames are known, window length  ->  [Window(low, high)], one after another
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

OVERLAP = 2  # latent frames: one says where things are, two how they move


class Window(NamedTuple):
    """The latent frames of a clip that are denoised together, known ones included."""

    low: int
    high: int


def plan_windows(is_known: Sequence[bool], length: int) -> list[Window]:
    """Cover the latent frames that are not known by windows of at most a length, where the overlap leaves room for it.

    They go from known frames to unknown ones: forward, or backward where only the end is known.
    """
    length, windows, known = max(length, OVERLAP + 1), list[Window](), list(is_known)
    while not all(known):
        low = known.index(False)
        high = next((i for i in range(low, len(known)) if known[i]), len(known))
        end = next((i for i in range(high, len(known)) if not known[i]), len(known))
        before, after = low, end - high
        if after and not before:
            low = max(low, high - (length - OVERLAP))
        elif high - low + min(before, OVERLAP) > length:
            high, after = low + length - min(before, OVERLAP), 0
        room = length - (high - low)
        right = min(after, max(OVERLAP, room // 2 if before else room))
        left = min(before, max(OVERLAP, room - right))
        windows.append(Window(low - left, high + right))
        known[low:high] = [True] * (high - low)
    return windows
