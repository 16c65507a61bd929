"""Summarise the rows of a sweep: means with intervals over seeds and prompts, the Pareto front, a recommended setting.

    rows, axes  ->  [Setting]  ->  pareto_front, Choice

Intervals are 95%, Student's t, for the effective number of clips, since those of one prompt are alike. Settings are
compared clip by clip: same prompt, same seed, same noise.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from videogen.config.parsing import to_mapping
from videogen.config.sample import SampleConfig
from videogen.intervals import effective_sample_size
from videogen.sweep.axes import TEXT_FIELDS, Axis, format_value
from videogen.sweep.plan import SDE_SAMPLERS, SOLVER_FIELDS
from videogen.sweep.results import Row

# 97.5% quantiles of Student's t for 1 to 30 degrees of freedom; the normal's beyond.
T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
EQUAL_COST = 1.05  # times the least seconds: two settings that cost the same are measured this far apart
OR_BETTER = f"; of those within {EQUAL_COST - 1:.0%} of its seconds, the best"
INVISIBLE_DB = 40.0  # a usual bound of PSNR, above which a difference is not visible
FRESH_NOISE = "fresh noise"  # a made-up field: "on" for the samplers that draw noise at every step
NOT_MEASURES = ("key", "prompt", "seed", "clip", "reference", "command", "error", *to_mapping(SampleConfig()))
ClipValue = tuple[object, float]  # a clip's prompt, and a number measured of it
ClipKey = tuple[object, object]  # prompt, seed
SettingKey = tuple[str, ...]  # a setting's value of each field on the axes, as texts


class Mean(NamedTuple):
    """A mean and half the width of its 95% interval, which is None for a single value."""

    value: float
    half_width: float | None
    num: int

    @property
    def low(self) -> float:
        """The lower end of the interval."""
        return self.value - (self.half_width or 0.0)


class Setting(NamedTuple):
    """One combination of the axes, and its rows that worked."""

    values: SettingKey
    rows: list[Row]
    means: dict[str, Mean]
    num_failed: int

    @property
    def seconds(self) -> float:
        """The mean seconds of a clip."""
        return self.means["total_seconds"].value


class Choice(NamedTuple):
    """The recommended setting, and the rule that chose it."""

    setting: Setting
    rule: str


def mean_of(clips: Sequence[ClipValue]) -> Mean:
    """Compute the mean and the interval of a number that was measured of clips."""
    mean, error, degrees = standard_error(clips)
    if not degrees:
        return Mean(mean, None, len(clips))
    t = T_975[degrees - 1] if degrees <= len(T_975) else 1.96
    return Mean(mean, t * error, len(clips))


def standard_error(clips: Sequence[ClipValue]) -> tuple[float, float, int]:
    """Compute a mean, its standard error and its degrees of freedom, for the effective number of clips."""
    values = [value for _, value in clips]
    mean, num = statistics.fmean(values), effective_sample_size(clips)
    degrees = int(num) - 1
    return mean, math.sqrt(statistics.pvariance(values, mean) / (num - 1)) if degrees else 0.0, degrees


def setting_key(row: Row, names: Sequence[str]) -> SettingKey:
    """Return a row's values of some fields as texts: 4, euler, 0.2-0.8."""
    # A row holds a list as JSON; the value of a text field may look like JSON and is none.
    cells = [(row[name], isinstance(row[name], str) and name not in TEXT_FIELDS) for name in names]
    return tuple(format_value(json.loads(str(cell)) if is_json else cell) for cell, is_json in cells)


def measures_of(rows: Sequence[Row]) -> list[str]:
    """List the columns that hold measured numbers, in the table's order."""
    names = dict.fromkeys(name for row in rows for name in row if name not in NOT_MEASURES)
    return [name for name in names if any(isinstance(row.get(name), int | float) for row in rows)]


def summarise(rows: Sequence[Row], names: Sequence[str]) -> list[Setting]:
    """Group rows by setting, in order of first appearance, and average every measure."""
    groups: dict[SettingKey, list[Row]] = {}
    for row in rows:
        groups.setdefault(setting_key(row, names), []).append(row)
    settings = []
    for key, group in groups.items():
        good = [row for row in group if not row.get("error")]
        means = {}
        for name in measures_of(good):
            means[name] = mean_of([(row["prompt"], value) for row in good for value in numbers([row], name)])
        settings.append(Setting(key, good, means, len(group) - len(good)))
    return settings


def numbers(rows: Sequence[Row], name: str) -> list[float]:
    """List the numbers of a column, without its empty cells."""
    return [float(value) for row in rows if isinstance(value := row.get(name), int | float)]


def clip_key(row: Row) -> ClipKey:
    """Return the prompt and the seed of a row, which decide a clip's noise and are the same under every setting."""
    return row["prompt"], row["seed"]


def complete_settings(settings: Sequence[Setting], quality: str) -> list[Setting]:
    """List the rated settings with every clip; those a stopped sweep left incomplete may have had the easy prompts."""
    clips = [set(map(clip_key, setting.rows)) for setting in settings]
    every = set().union(*clips)
    return [
        setting
        for setting, own in zip(settings, clips, strict=True)
        if own == every and not setting.num_failed and quality in setting.means
    ]


def quality_name(rows: Sequence[Row]) -> str | None:
    """Return the column that measures quality: the first score, else the PSNR to the reference, else None."""
    names = measures_of([row for row in rows if not row.get("error")])
    scores = [name for name in names if name.startswith("score_")]
    return next(iter([*scores, *(name for name in names if name == "psnr_db")]), None)


def pareto_front(settings: Sequence[Setting], quality: str) -> list[Setting]:
    """List the settings that no other beats in both quality and seconds, fastest first."""
    rated = complete_settings(settings, quality)
    front: list[Setting] = []
    for setting in sorted(rated, key=lambda setting: (setting.seconds, -setting.means[quality].value)):
        if not front or setting.means[quality].value > front[-1].means[quality].value:
            front.append(setting)
    return front


def choose_setting(
    settings: Sequence[Setting], quality: str | None, axes: Sequence[Axis], base: SampleConfig
) -> Choice | None:
    """Choose the setting to recommend; None if nothing measures quality or no setting is complete."""
    rated = complete_settings(settings, quality) if quality is not None else []
    if quality is None or not rated:
        return None
    return choose_by_closeness(rated, axes, base) if quality == "psnr_db" else choose_by_score(rated, quality)


def choose_by_score(rated: Sequence[Setting], quality: str) -> Choice:
    """Choose the fastest setting that is about as good as the best."""
    best = max(rated, key=lambda setting: setting.means[quality].value)
    name = {"psnr_db": "PSNR to the reference"}.get(quality, quality.removeprefix("score_"))
    rule = (
        f"the fastest of the settings whose {name} is not worse than the best one's "
        f"({best.means[quality].value:.4g}) by more than one standard error of the difference, clip by clip" + OR_BETTER
    )
    as_good = [setting for setting in rated if setting is best or not is_worse(setting, best, quality)]
    return Choice(fastest(as_good, quality), rule)


def choose_by_closeness(rated: Sequence[Setting], axes: Sequence[Axis], base: SampleConfig) -> Choice:
    """Choose the fastest setting that looks like its reference; fields that the reference shares stay as in base.

    PSNR to a reference judges the solver alone. It says nothing about guidance and the like, nor about a sampler that
    draws fresh noise, because each of these is compared with a reference of its own kind.
    """
    names = [name for axis in axes for name in axis.names]
    values_of = [dict(zip(names, setting.values, strict=True)) for setting in rated]
    fixed = {name: format_value(getattr(base, name)) for name in names if name not in SOLVER_FIELDS}
    if "sampler" in names:
        base_noise = format_value(base.sampler in SDE_SAMPLERS)
        values_of = [values | {FRESH_NOISE: format_value(values["sampler"] in SDE_SAMPLERS)} for values in values_of]
        if {values[FRESH_NOISE] for values in values_of} != {base_noise}:
            fixed[FRESH_NOISE] = base_noise
    same = [setting for setting, values in zip(rated, values_of, strict=True) if fixed.items() <= values.items()]
    close = [setting for setting in same or rated if setting.means["psnr_db"].low >= INVISIBLE_DB]
    bound = f"{INVISIBLE_DB:g} dB or more, the lower end of its 95% interval"
    rule = f"the fastest whose PSNR to the reference is {bound}{OR_BETTER}"
    if not close:
        nearest = choose_by_score(same or rated, "psnr_db")
        close, rule = [nearest.setting], f"none is surely at {INVISIBLE_DB:g} dB or more, so {nearest.rule}"
    if fixed and same:
        stays = " and ".join(f"{name} stays at the command's {value}" for name, value in fixed.items())
        rule += f"; {stays}, for closeness to a reference with the same setting says nothing of it"
    elif fixed:
        listed = ", ".join(fixed)
        rule += (
            f"; closeness to a reference with the same {listed} says nothing of {listed}: choose by eye or by --score"
        )
    return Choice(fastest(close, "psnr_db"), rule)


def fastest(settings: Sequence[Setting], quality: str) -> Setting:
    """Return the setting of least seconds; of those that noise alone may have made slower, the best."""
    least = min(setting.seconds for setting in settings)
    as_fast = [setting for setting in settings if setting.seconds <= EQUAL_COST * least]
    return max(as_fast, key=lambda setting: setting.means[quality].value)


def is_worse(setting: Setting, best: Setting, quality: str) -> bool:
    """True if a setting is worse than the best by more than a standard error (Breiman et al. 1984), clip by clip.

    The 95% interval would be too wide: with two clips the fastest setting would always do.
    """
    best_rows = {clip_key(row): row for row in best.rows}
    pairs = [(row, best_rows[clip_key(row)]) for row in setting.rows if clip_key(row) in best_rows]
    differences = [(a["prompt"], x - y) for a, b in pairs for x in numbers([a], quality) for y in numbers([b], quality)]
    if not differences:
        return True
    mean, error, _ = standard_error(differences)
    return mean + error < 0


class Effect(NamedTuple):
    """The effect of one axis on a measure: its mean over all other settings at each place of the axis."""

    axis: Axis
    places: list[tuple[str, Mean]]
    gap: Mean | None
    """From the place of the least mean to that of the greatest, clip by clip."""

    @property
    def spread(self) -> float:
        """The distance from the least mean to the greatest."""
        values = [mean.value for _, mean in self.places]
        return max(values) - min(values) if values else 0.0


def effects(rows: Sequence[Row], axes: Sequence[Axis], measure: str) -> list[Effect]:
    """Compute the marginal means of every axis; the interval is over clips, averaged over the other settings first."""
    good = [row for row in rows if not row.get("error")]
    results = []
    for axis in axes:
        clips: dict[str, dict[ClipKey, float]] = {}
        for label, place in zip(axis.labels, axis.places, strict=True):
            key = tuple(map(format_value, place))
            clips[label] = clip_means([row for row in good if setting_key(row, axis.names) == key], measure)
        places = [
            (label, mean_of([(prompt, value) for (prompt, _), value in values.items()]))
            for label, values in clips.items()
            if values
        ]
        results.append(Effect(axis, places, gap_between(places, clips)))
    return results


def clip_means(rows: Sequence[Row], measure: str) -> dict[ClipKey, float]:
    """Average a measure of each clip over some rows."""
    clips: dict[ClipKey, list[float]] = {}
    for row in rows:
        clips.setdefault(clip_key(row), []).extend(numbers([row], measure))
    return {clip: statistics.fmean(values) for clip, values in clips.items() if values}


def gap_between(places: Sequence[tuple[str, Mean]], clips: Mapping[str, Mapping[ClipKey, float]]) -> Mean | None:
    """Average the difference between the greatest and the least place over the clips that both have."""
    if len(places) < 2:
        return None
    low, high = (clips[pick(places, key=lambda place: place[1].value)[0]] for pick in (min, max))
    differences = [(clip[0], high[clip] - low[clip]) for clip in high if clip in low]
    return mean_of(differences) if differences else None
