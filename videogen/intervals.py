"""Estimate how far a mean over clips can be trusted: Wilson's and Student's intervals, and the effective sample size.

    successes, clips  ->  (low, high);  [(prompt, value) of a clip]  ->  the number of independent clips they count as

The clips of one prompt are alike, so many clips of few prompts count for less than as many of different prompts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from math import sqrt

# 97.5% quantiles of Student's t for 1 to 30 degrees of freedom; the normal's beyond.
T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
MAX_NEEDED = 1000


def t_quantile(degrees: int) -> float:
    """Return the 97.5% quantile of Student's t."""
    return T_975[degrees - 1] if degrees <= len(T_975) else 1.96


def num_needed(distance: float, deviation: float) -> int | None:
    """Compute how many clips' 95% interval is narrower than a distance to either side; None for more than a thousand.

    The deviation is that of one clip, as the clips at hand show it.
    """
    for num in range(3, MAX_NEEDED + 1):
        if t_quantile(num - 1) * deviation < distance * sqrt(num):
            return num
    return None


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
