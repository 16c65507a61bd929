"""What many clips of few prompts are worth: those of one prompt are alike, and say less than as many of others would.

[(prompt, value) of a clip]  ->  the number of independent clips that they count as
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence


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
