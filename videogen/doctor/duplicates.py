"""Find files that show the same, by what a few of their frames look like.

fingerprints (n, bytes)  ->  groups of files that look alike
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

LARGEST_DIFFERENCE = 0.12  # root mean square, of the picture's own contrast; coding and scaling change less
MIN_CONTRAST = 3.0  # of 255: pictures of one colour have no look of their own
BITS, BANDS = 16, 12  # of random directions; files that look alike agree in all bits of one band at least


def group_duplicates(fingerprints: Sequence[bytes]) -> list[list[int]]:
    """Group the numbers of files that look alike, in order; a file without a like is in no group.

    Candidates agree in the signs of sixteen random projections (Charikar 2002), one of twelve sets of them; all pairs
    of candidates are then compared pixel by pixel.
    """
    numbers = [number for number, fingerprint in enumerate(fingerprints) if fingerprint]
    if len(numbers) < 2:
        return []
    looks = np.stack([np.frombuffer(fingerprints[number], dtype=np.uint8) for number in numbers]).astype(np.float32)
    looks -= looks.mean(axis=1, keepdims=True)
    contrasts = np.sqrt(np.square(looks).mean(axis=1))
    directions = np.random.default_rng(0).standard_normal((looks.shape[1], BITS * BANDS), dtype=np.float32)
    codes = np.packbits((looks @ directions > 0).reshape(len(looks), BANDS, BITS), axis=2)
    leader = list(range(len(numbers)))  # each file points to an earlier one that looks alike, or to itself

    def root(place: int) -> int:
        while leader[place] != place:
            place = leader[place]
        return place

    for band in range(BANDS):
        buckets = defaultdict[bytes, list[int]](list)
        for place in np.flatnonzero(contrasts >= MIN_CONTRAST).tolist():
            buckets[codes[place, band].tobytes()].append(place)
        for places in buckets.values():
            heads = places[:1]  # Each is compared with the first of every group alone: copies are many.
            for place in (place for place in places[1:] if leader[place] == place):
                difference = np.sqrt(np.square(looks[heads] - looks[place]).mean(axis=1))
                allowed = LARGEST_DIFFERENCE * np.minimum(contrasts[heads], contrasts[place])
                alike = np.flatnonzero(difference <= allowed)
                if len(alike):
                    first, second = sorted((root(heads[alike[0]]), place))
                    leader[second] = first
                else:
                    heads.append(place)
    groups = defaultdict[int, list[int]](list)
    for place, number in enumerate(numbers):
        groups[root(place)].append(number)
    return [group for group in groups.values() if len(group) > 1]
