"""What many clips of few prompts are worth: those of one prompt are alike, and say less than as many of others would.

[(prompt, value) of a clip]  ->  the number of independent clips that they count as
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from math import sqrt


def effective_number(clips: Sequence[tuple[object, float]]) -> float:
    """The number of clips over the design effect of their mean (Kish 1965), prompts being the clusters.

    As many as there are clips where those of a prompt are no more alike than others, as there are prompts where they
    are the same, and never more or less. Of one prompt alone its clips are the sample.
    """
    groups = defaultdict[object, list[float]](list)
    for prompt, value in clips:
        groups[prompt].append(value)
    num = len(clips)
    if len(groups) < 2:
        return num
    mean = sum(value for _, value in clips) / num
    apart = sum((value - mean) ** 2 for _, value in clips)
    if apart == 0:
        return len(groups)  # nothing tells how alike they are
    between = sum(sum(value - mean for value in group) ** 2 for group in groups.values())
    return min(num, max(len(groups), num * apart / between)) if between else num


def wilson(successes: float, num: float, z: float = 1.96) -> tuple[float, float]:
    """The 95% interval of a share (Wilson 1927), which stays within 0 and 1 and is right for small numbers, too."""
    if not num:
        return 0.0, 1.0
    share, scale = successes / num, 1 + z * z / num
    middle = (share + z * z / (2 * num)) / scale
    half = z * sqrt(share * (1 - share) / num + z * z / (4 * num * num)) / scale
    return max(0.0, middle - half), min(1.0, middle + half)
