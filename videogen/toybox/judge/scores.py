"""Many judged clips as a table: how often each clause holds, with its interval.

[Judged]  ->  {"class": Count(250, 256), ..., "all, one thing": ...}
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from videogen.intervals import effective_number, wilson
from videogen.toybox.judge.caption_parser import Clauses
from videogen.toybox.judge.observations import Found
from videogen.toybox.judge.quality import Quality, diversity
from videogen.toybox.judge.verdict import CLAUSES, judge
from videogen.toybox.world.scenes import Scene

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
    """How many of some clips are right, and as how many independent ones they count."""

    right: int
    num: int
    effective: float

    @property
    def share(self) -> float:
        """Right ones among all."""
        return self.right / max(self.num, 1)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the share, that of so many independent clips."""
        return wilson(self.share * self.effective, self.effective)


def count_clips(outcomes: Sequence[tuple[str, bool]]) -> Count:
    """(caption, whether it is right) of each clip, counted.

    Wilson's interval is for as many clips as they are worth (Korn & Graubard 1998).
    """
    return Count(sum(right for _, right in outcomes), len(outcomes), effective_number(outcomes))


def count(verdicts: Sequence[tuple[Case, dict[str, bool]]]) -> dict[str, Count]:
    """How often each clause that was said holds, and all of them, also by the number of things that are named."""
    outcomes = defaultdict[str, list[tuple[str, bool]]](list)
    for case, holds in verdicts:
        rows = [*holds.items(), (f"all, {NUMBERS[min(len(case.clauses.things), 3)]}", holds["all"])]
        for name, value in rows:
            outcomes[name].append((case.prompt, value))
    order = [*CLAUSES, *(f"all, {number}" for number in NUMBERS)]
    return {name: count_clips(outcomes[name]) for name in order if name in outcomes}


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
