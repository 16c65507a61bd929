"""Sum up many judged clips as a table: how often each clause holds, with its interval.

[JudgedClip]  ->  {"class": Proportion(250, 256), ..., "all, one thing": ...}
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from videogen.intervals import effective_sample_size, wilson
from videogen.toybox.judge.caption_parser import Clauses
from videogen.toybox.judge.observations import Found
from videogen.toybox.judge.quality import Quality, diversity
from videogen.toybox.judge.verdict import CLAUSES, judge
from videogen.toybox.world.scenes import Scene

NUMBERS = ("no thing", "one thing", "two things", "three things")


class Case(NamedTuple):
    """A prompt, its clauses, and the scene that it describes, if there is one."""

    prompt: str
    clauses: Clauses
    scene: Scene | None = None


class JudgedClip(NamedTuple):
    """A clip's case and seed, what was detected in it, which clauses hold, and its quality."""

    case: Case
    seed: int
    found: Found
    holds: dict[str, bool]
    quality: Quality


class Proportion(NamedTuple):
    """The number of clips that are right, of how many, and the number of independent clips that these count as."""

    right: int
    num: int
    effective: float

    @property
    def share(self) -> float:
        """The share of clips that are right."""
        return self.right / max(self.num, 1)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the share, for the effective number of clips."""
        return wilson(self.share * self.effective, self.effective)


def count_clips(outcomes: Sequence[tuple[str, bool]]) -> Proportion:
    """Count the right clips among (caption, is right) pairs.

    Wilson's interval is for their effective sample size (Korn & Graubard 1998).
    """
    return Proportion(sum(right for _, right in outcomes), len(outcomes), effective_sample_size(outcomes))


def count_clauses(verdicts: Sequence[tuple[Case, dict[str, bool]]]) -> dict[str, Proportion]:
    """Count how often each stated clause holds, and all of a clip's together, also by the number of named things."""
    outcomes = defaultdict[str, list[tuple[str, bool]]](list)
    for case, holds in verdicts:
        rows = [*holds.items(), (f"all, {NUMBERS[min(len(case.clauses.things), 3)]}", holds["all"])]
        for name, value in rows:
            outcomes[name].append((case.prompt, value))
    order = [*CLAUSES, *(f"all, {number}" for number in NUMBERS)]
    return {name: count_clips(outcomes[name]) for name in order if name in outcomes}


def tally(judged: Sequence[JudgedClip]) -> dict[str, Proportion]:
    """Count how often each clause holds in some judged clips."""
    return count_clauses([(clip.case, clip.holds) for clip in judged])


def shuffled_captions(judged: Sequence[JudgedClip]) -> dict[str, Proportion]:
    """Count the floor: the same clips judged by each other's captions; empty if all have one caption.

    Captions move by half the table, so that the seeds of one prompt do not meet their own.
    """
    cases = [clip.case for clip in judged]
    if len({case.prompt for case in cases}) < 2:
        return {}
    shuffled = cases[len(cases) // 2 :] + cases[: len(cases) // 2]
    return count_clauses([(case, judge(clip.found, case.clauses)) for clip, case in zip(judged, shuffled, strict=True)])


def mean_quality(judged: Sequence[JudgedClip]) -> dict[str, float]:
    """Average each measure over the clips that have it, and the diversity over prompts."""
    values = defaultdict[str, list[float]](list)
    clips_of, clauses_of = defaultdict[str, list[Found]](list), dict[str, Clauses]()
    for clip in judged:
        clips_of[clip.case.prompt].append(clip.found)
        clauses_of[clip.case.prompt] = clip.case.clauses
        for name, value in clip.quality._asdict().items():
            if value is not None:
                values[name].append(value)
    spreads = [diversity(clips, clauses_of[prompt]) for prompt, clips in clips_of.items()]
    values["diversity"] = [spread for spread in spreads if spread is not None]
    return {name: float(np.mean(of_clips)) for name, of_clips in values.items() if of_clips}
