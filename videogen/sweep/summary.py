"""Rows to what they mean: means with intervals over seeds and prompts, what is undominated, which setting to use.

    rows, axes  ->  [Setting]  ->  front, Choice

Intervals are 95%, Student's t, for as many clips as those of few prompts are worth. Settings are compared clip by
clip: same prompt, same seed, same noise.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from videogen.config.parsing import to_mapping
from videogen.config.sample import SampleConfig
from videogen.intervals import effective_number
from videogen.sweep.axes import TEXTS, Axis, say
from videogen.sweep.plan import FRESH_NOISE, SOLVER
from videogen.sweep.results import Row

# 97.5% quantiles of Student's t for 1 to 30 degrees of freedom; the normal's beyond.
T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
AS_FAST = 1.05  # times the least seconds: two settings that cost the same are measured so far apart
OR_BETTER = f"; of those within {AS_FAST - 1:.0%} of its seconds, the best"
UNSEEN_DB = 40.0  # a usual bound beyond which a difference is not seen
DRAWING = "fresh noise"
NOT_MEASURES = ("key", "prompt", "seed", "clip", "reference", "command", "error", *to_mapping(SampleConfig()))
Rated = tuple[object, float]  # a clip's prompt, and a number of it
Clip = tuple[object, object]  # prompt, seed
Value = tuple[str, ...]  # of a setting, one text a field on the axes


class Mean(NamedTuple):
    """A mean and half the width of its 95% interval, which one value alone does not have."""

    value: float
    half: float | None
    num: int


class Setting(NamedTuple):
    """One combination of the axes and its rows that worked."""

    values: Value
    rows: list[Row]
    means: dict[str, Mean]
    num_failed: int


class Choice(NamedTuple):
    """The setting to use, and the rule that chose it."""

    setting: Setting
    rule: str


def mean_of(clips: Sequence[Rated]) -> Mean:
    """Mean and interval of a number that clips have."""
    mean, error, degrees = standard_error(clips)
    if not degrees:
        return Mean(mean, None, len(clips))
    t = T_975[degrees - 1] if degrees <= len(T_975) else 1.96
    return Mean(mean, t * error, len(clips))


def standard_error(clips: Sequence[Rated]) -> tuple[float, float, int]:
    """The mean, its standard error and the degrees of freedom, of as many clips as they are worth."""
    values = [value for _, value in clips]
    mean, worth = statistics.fmean(values), effective_number(clips)
    degrees = int(worth) - 1
    return mean, math.sqrt(statistics.pvariance(values, mean) / (worth - 1)) if degrees else 0.0, degrees


def value_of(row: Row, names: Sequence[str]) -> Value:
    """Where a row stands on the axes, as texts: 4, euler, 0.2-0.8."""
    return tuple(say_cell(name, row[name]) for name in names)


def say_cell(name: str, value: object) -> str:
    """A row's cell as the axes say their values; a list stands in it as JSON, and a text may look like one."""
    return say(json.loads(value) if isinstance(value, str) and name not in TEXTS else value)


def measures_of(rows: Sequence[Row]) -> list[str]:
    """The columns that are measured numbers, in the table's order."""
    names = dict.fromkeys(name for row in rows for name in row if name not in NOT_MEASURES)
    return [name for name in names if any(isinstance(row.get(name), int | float) for row in rows)]


def summarise(rows: Sequence[Row], names: Sequence[str]) -> list[Setting]:
    """Rows by setting, in order of first appearance."""
    groups: dict[Value, list[Row]] = {}
    for row in rows:
        groups.setdefault(value_of(row, names), []).append(row)
    settings = []
    for values, group in groups.items():
        good = [row for row in group if not row.get("error")]
        found = {name: of_clips(good, name) for name in measures_of(good)}
        means = {name: mean_of(clips) for name, clips in found.items() if clips}
        settings.append(Setting(values, good, means, len(group) - len(good)))
    return settings


def numbers(rows: Sequence[Row], name: str) -> list[float]:
    """A column's numbers."""
    return [float(value) for row in rows if isinstance(value := row.get(name), int | float)]


def of_clips(rows: Sequence[Row], name: str) -> list[Rated]:
    """A column's numbers, each with its prompt."""
    return [(row["prompt"], value) for row in rows for value in numbers([row], name)]


def whole(settings: Sequence[Setting]) -> list[Setting]:
    """The settings that have every clip: of a sweep that was stopped, the others may have had the easy ones."""
    clips = [{(row["prompt"], row["seed"]) for row in one.rows} for one in settings]
    every = set().union(*clips)
    return [one for one, made in zip(settings, clips, strict=True) if made == every and not one.num_failed]


def quality_name(rows: Sequence[Row]) -> str | None:
    """What counts as quality: the plug's first score, else the closeness to the reference, else nothing."""
    found = measures_of([row for row in rows if not row.get("error")])
    scores = [name for name in found if name.startswith("score_")]
    return next(iter([*scores, *(name for name in found if name == "psnr_db")]), None)


def front(settings: Sequence[Setting], quality: str) -> list[Setting]:
    """The settings that none beats in both quality and seconds, fastest first."""
    rated = sorted(
        (one for one in whole(settings) if quality in one.means),
        key=lambda one: (one.means["total_seconds"].value, -one.means[quality].value),
    )
    kept: list[Setting] = []
    for one in rated:
        if not kept or one.means[quality].value > kept[-1].means[quality].value:
            kept.append(one)
    return kept


def choose(settings: Sequence[Setting], quality: str | None, axes: Sequence[Axis], base: SampleConfig) -> Choice | None:
    """The setting to use; none where nothing measured quality or nothing worked."""
    if quality is None:
        return None
    able = [one for one in whole(settings) if quality in one.means]
    if not able:
        return None
    return choose_by_closeness(able, axes, base) if quality == "psnr_db" else choose_by_score(able, quality)


def choose_by_score(rated: Sequence[Setting], quality: str) -> Choice:
    """The fastest that is about as good as the best."""
    best = max(rated, key=lambda one: one.means[quality].value)
    name = {"psnr_db": "PSNR to the reference"}.get(quality, quality.removeprefix("score_"))
    rule = (
        f"the fastest of the settings whose {name} is not worse than the best one's "
        f"({best.means[quality].value:.4g}) by more than one standard error of the difference, clip by clip" + OR_BETTER
    )
    return Choice(fastest([one for one in rated if one is best or not worse(one, best, quality)], quality), rule)


def choose_by_closeness(rated: Sequence[Setting], axes: Sequence[Axis], base: SampleConfig) -> Choice:
    """The fastest that looks like the reference; what a reference cannot judge stays as the command has it.

    That is what has a reference of its own kind: guidance and the like, and whether the sampler draws fresh noise.
    """
    names = [name for axis in axes for name in axis.names]
    known = [dict(zip(names, one.values, strict=True)) for one in rated]
    fixed = {name: say(getattr(base, name)) for name in names if name not in SOLVER}
    if "sampler" in names:
        known = [values | {DRAWING: draws(values["sampler"])} for values in known]
        if {values[DRAWING] for values in known} != {draws(base.sampler)}:
            fixed[DRAWING] = draws(base.sampler)
    kept = [one for one, values in zip(rated, known, strict=True) if fixed.items() <= values.items()]
    close = [one for one in kept or rated if least(one.means["psnr_db"]) >= UNSEEN_DB]
    surely = f"{UNSEEN_DB:g} dB or more, the lower end of its 95% interval"
    rule = f"the fastest whose PSNR to the reference is {surely}{OR_BETTER}"
    if not close:
        alike = choose_by_score(kept or rated, "psnr_db")
        close, rule = [alike.setting], f"none is surely at {UNSEEN_DB:g} dB or more, so {alike.rule}"
    if fixed and kept:
        stays = " and ".join(f"{name} stays at the command's {value}" for name, value in fixed.items())
        rule += f"; {stays}, for closeness to a reference with the same setting says nothing of it"
    elif fixed:
        listed = ", ".join(fixed)
        rule += (
            f"; closeness to a reference with the same {listed} says nothing of {listed}: choose by eye or by --score"
        )
    return Choice(fastest(close, "psnr_db"), rule)


def draws(sampler: str) -> str:
    """Whether a sampler draws fresh noise, in a word."""
    return "on" if sampler in FRESH_NOISE else "off"


def least(mean: Mean) -> float:
    """The lower end of an interval."""
    return mean.value - (mean.half or 0.0)


def fastest(settings: Sequence[Setting], quality: str) -> Setting:
    """The one of least mean seconds; of those about as fast, which noise alone tells apart, the best."""
    least_seconds = min(one.means["total_seconds"].value for one in settings)
    as_fast = [one for one in settings if one.means["total_seconds"].value <= AS_FAST * least_seconds]
    return max(as_fast, key=lambda one: one.means[quality].value)


def worse(one: Setting, best: Setting, quality: str) -> bool:
    """Whether a setting is worse than another by more than a standard error (Breiman et al. 1984), clip by clip.

    Not by its 95% interval: that of two clips is so wide that the fastest would always do.
    """
    of_best = {(row["prompt"], row["seed"]): row for row in best.rows}
    pairs = [(row, of_best[clip]) for row in one.rows if (clip := (row["prompt"], row["seed"])) in of_best]
    apart = [(a["prompt"], x - y) for a, b in pairs for x in numbers([a], quality) for y in numbers([b], quality)]
    if not apart:
        return True
    mean, error, _ = standard_error(apart)
    return mean + error < 0


class Effect(NamedTuple):
    """What one axis does to a measure: the mean over all else at each of its places."""

    axis: Axis
    places: list[tuple[str, Mean]]
    gap: Mean | None
    """From the least place to the greatest, clip by clip."""

    @property
    def spread(self) -> float:
        """From the least mean to the greatest."""
        values = [mean.value for _, mean in self.places]
        return max(values) - min(values) if values else 0.0


def effects(rows: Sequence[Row], axes: Sequence[Axis], measure: str) -> list[Effect]:
    """The marginal means of every axis; the interval is over clips whose other settings were averaged first."""
    good = [row for row in rows if not row.get("error")]
    found = []
    for axis in axes:
        clips = {", ".join(map(say, place)): at(good, axis, place, measure) for place in axis.places}
        places = [(name, mean_of(of_prompts(values))) for name, values in clips.items() if values]
        found.append(Effect(axis, places, gap_of(places, clips)))
    return found


def at(rows: Sequence[Row], axis: Axis, place: Sequence[object], measure: str) -> dict[Clip, float]:
    """A measure of each clip at one place of an axis, the mean over the other axes."""
    here = [row for row in rows if value_of(row, axis.names) == tuple(map(say, place))]
    clips = group_by(here, lambda row: (row["prompt"], row["seed"]))
    found = {(clip[0]["prompt"], clip[0]["seed"]): numbers(clip, measure) for clip in clips}
    return {clip: statistics.fmean(values) for clip, values in found.items() if values}


def of_prompts(clips: Mapping[Clip, float]) -> list[Rated]:
    """Each clip's value with its prompt."""
    return [(prompt, value) for (prompt, _), value in clips.items()]


def gap_of(places: Sequence[tuple[str, Mean]], clips: Mapping[str, Mapping[Clip, float]]) -> Mean | None:
    """What lies between the least and the greatest place, over the clips that both have."""
    if len(places) < 2:
        return None
    low, high = (clips[pick(places, key=lambda place: place[1].value)[0]] for pick in (min, max))
    apart = [(clip[0], high[clip] - low[clip]) for clip in high if clip in low]
    return mean_of(apart) if apart else None


def group_by(rows: Sequence[Row], key: Callable[[Row], object]) -> list[list[Row]]:
    """Rows of equal key together."""
    groups: dict[object, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return list(groups.values())
