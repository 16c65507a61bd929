"""Many judged clips as a table: how often each clause holds, with its interval.

[Judged]  ->  {"class": Count(250, 256), ..., "all, one thing": ...}
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from videogen.toybox.judge.clauses import Clauses
from videogen.toybox.judge.found import Found
from videogen.toybox.judge.measures import Quality, diversity
from videogen.toybox.judge.verdict import CLAUSES, judge, wilson
from videogen.toybox.scenes import Scene

NUMBERS = ("no thing", "one thing", "two things", "three things")


class Case(NamedTuple):
    """A prompt, what it says, and the scene that it was said of, if there is one."""

    prompt: str
    clauses: Clauses
    scene: Scene | None = None


class Judged(NamedTuple):
    """A clip that was made for a case."""

    case: Case
    seed: int
    found: Found
    holds: dict[str, bool]
    quality: Quality


class Count(NamedTuple):
    """How many of some clips are right."""

    right: int
    num: int

    @property
    def share(self) -> float:
        """Right ones among all."""
        return self.right / max(self.num, 1)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the share."""
        return wilson(self.right, self.num)


def count(verdicts: Sequence[tuple[Case, dict[str, bool]]]) -> dict[str, Count]:
    """How often each clause that was said holds, and all of them, also by the number of things that are named."""
    right, num = defaultdict[str, int](int), defaultdict[str, int](int)
    for case, holds in verdicts:
        rows = [*holds.items(), (f"all, {NUMBERS[min(len(case.clauses.things), 3)]}", holds["all"])]
        for name, value in rows:
            num[name] += 1
            right[name] += value
    order = [*CLAUSES, *(f"all, {number}" for number in NUMBERS)]
    return {name: Count(right[name], num[name]) for name in order if num[name]}


def tally(judged: Sequence[Judged]) -> dict[str, Count]:
    """The table of some clips."""
    return count([(one.case, one.holds) for one in judged])


def shuffled(judged: Sequence[Judged]) -> dict[str, Count]:
    """The floor: the same clips under captions of others, half a table away, so that seeds of one prompt never meet.

    Empty where there is no other caption.
    """
    cases = [one.case for one in judged]
    if len({case.prompt for case in cases}) < 2:
        return {}
    others = cases[len(cases) // 2 :] + cases[: len(cases) // 2]
    return count([(other, judge(one.found, other.clauses)) for one, other in zip(judged, others, strict=True)])


def average(judged: Sequence[Judged]) -> dict[str, float]:
    """The mean of each measure over the clips that have it, and of the diversity over prompts."""
    values = defaultdict[str, list[float]](list)
    prompts, said = defaultdict[str, list[Found]](list), dict[str, Clauses]()
    for one in judged:
        prompts[one.case.prompt].append(one.found)
        said[one.case.prompt] = one.case.clauses
        for name, value in one.quality._asdict().items():
            if value is not None:
                values[name].append(value)
    spreads = [diversity(clips, said[prompt]) for prompt, clips in prompts.items()]
    values["diversity"] = [spread for spread in spreads if spread is not None]
    return {name: float(np.mean(of_clips)) for name, of_clips in values.items() if of_clips}
