"""Estimate how far a mean over clips can be trusted: Wilson's and Student's intervals, and the effective sample size.

    successes, clips  ->  (low, high);  [(prompt, value) of a clip]  ->  the number of independent clips they count as

The clips of one prompt are alike, so many clips of few prompts count for less than as many of different prompts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from math import expm1, pi, sqrt, tan
from statistics import NormalDist

MAX_NEEDED = 1000


@lru_cache
def t_quantile(degrees: int) -> float:
    """Compute the 97.5% quantile of Student's t to three places: exactly below 3 degrees of freedom, else by Hill 1970.

    Hill, Algorithm 396, for the probability 0.05 outside of both quantiles.
    """
    if degrees < 3:
        return tan(pi * 0.95 / 2) if degrees == 1 else sqrt(2 / (0.05 * 1.95) - 2)
    a = 1 / (degrees - 0.5)
    b = 48 / a**2
    c = ((20700 * a / b - 98) * a - 16) * a + 96.36
    d = ((94.5 / (b + c) - 3) / b + 1) * sqrt(a * pi / 2) * degrees
    y = (0.05 * d) ** (2 / degrees)
    if y <= 0.05 + a:
        tail = 1 / (((degrees + 6) / (degrees * y) - 0.089 * d - 0.822) * (degrees + 2) * 3) + 0.5 / (degrees + 4)
        return sqrt(degrees * ((tail * y - 1) * (degrees + 1) / (degrees + 2) + 1 / y))
    x = NormalDist().inv_cdf(0.025)
    if degrees < 5:
        c += 0.3 * (degrees - 4.5) * (x + 0.6)
    c += (((0.05 * d * x - 5) * x - 7) * x - 2) * x + b
    y = (((((0.4 * x**2 + 6.3) * x**2 + 36) * x**2 + 94.5) / c - x**2 - 3) / b + 1) * x
    return sqrt(degrees * expm1(a * y**2))


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
