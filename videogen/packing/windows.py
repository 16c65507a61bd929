"""Plan the windows in which a clip is denoised that is extended, or longer than the model was trained on.

which latent frames are known, window length  ->  [Window(low, high)], one after another
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

OVERLAP = 2  # latent frames: one says where things are, two how they move


class Window(NamedTuple):
    """The latent frames of a clip that are denoised together, known ones included.

    One that begins within the clip with an unknown latent frame is to be made without it: a model takes the first for
    one frame that stands alone, and would hold it for the frames of a whole one.
    """

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
        before, after, lead = low, end - high, 0
        if after and not before:
            num_new = max(2, length - OVERLAP)
            lead = int(high > num_new)  # the frame that is left out
            low = high - num_new + 1 if lead else 0
        elif high - low + min(before, OVERLAP) > length:
            high, after = low + length - min(before, OVERLAP), 0
        room = length - (high - low) - lead
        right = min(after, max(OVERLAP, room // 2 if before else room))
        left = min(before, max(OVERLAP, room - right))
        windows.append(Window(low - left - lead, high + right))
        known[low:high] = [True] * (high - low)
    return windows
