"""Estimate how far a mean over clips can be trusted: Wilson's interval of a share, and the effective sample size.

    successes, clips  ->  (low, high);  [(prompt, value) of a clip]  ->  the number of independent clips they count as

The clips of one prompt are alike, so many clips of few prompts count for less than as many of different prompts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from math import sqrt


def effective_sample_size(clips: Sequence[tuple[object, float]]) -> float:
    """Divide the number of clips by the design effect of their mean (Kish 1965), with prompts as the clusters.

    The result lies between the number of prompts, where a prompt's clips are all the same, and the number of clips,
    where they are no more alike than others. With one prompt alone, its clips are the sample.
    """
    groups = defaultdict[object, list[float]](list)
    for prompt, value in clips:
        groups[prompt].append(value)
    num = len(clips)
    if len(groups) < 2:
        return num
    mean = sum(value for _, value in clips) / num
    total = sum((value - mean) ** 2 for _, value in clips)
    if total == 0:
        return len(groups)  # all values are equal, which does not show how alike the clips of a prompt are
    between = sum(sum(value - mean for value in group) ** 2 for group in groups.values())
    return min(num, max(len(groups), num * total / between)) if between else num


def wilson(successes: float, num: float, z: float = 1.96) -> tuple[float, float]:
    """Compute the 95% interval of a share (Wilson 1927), which stays within 0 and 1 and holds for small numbers too."""
    if not num:
        return 0.0, 1.0
    share, scale = successes / num, 1 + z * z / num
    centre = (share + z * z / (2 * num)) / scale
    half_width = z * sqrt(share * (1 - share) / num + z * z / (4 * num * num)) / scale
    return max(0.0, centre - half_width), min(1.0, centre + half_width)
