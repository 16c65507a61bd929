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
from videogen.intervals import effective_sample_size, t_quantile
from videogen.sweep.axes import TEXT_FIELDS, Axis, format_value
from videogen.sweep.results import Row

NOT_MEASURES = ("key", "prompt", "seed", "clip", "reference", "command", "error", *to_mapping(SampleConfig()))
ClipValue = tuple[object, float]  # a clip's prompt, and a number measured of it
ClipKey = tuple[object, object]  # prompt, seed
SettingKey = tuple[str, ...]  # a setting's value of each field on the axes, as texts
Costs = Mapping[SettingKey, float]  # seconds, or what stands for them


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


def mean_of(clips: Sequence[ClipValue]) -> Mean:
    """Compute the mean and the interval of a number that was measured of clips."""
    mean, error, degrees = standard_error(clips)
    if not degrees:
        return Mean(mean, None, len(clips))
    return Mean(mean, t_quantile(degrees) * error, len(clips))


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
    return undominated(rated, quality, {setting.values: setting.seconds for setting in rated})


def undominated(settings: Sequence[Setting], quality: str, costs: Costs) -> list[Setting]:
    """List the settings that no other beats in both quality and cost, the cheapest first."""
    front: list[Setting] = []
    for setting in sorted(settings, key=lambda setting: (costs[setting.values], -setting.means[quality].value)):
        if not front or setting.means[quality].value > front[-1].means[quality].value:
            front.append(setting)
    return front


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
