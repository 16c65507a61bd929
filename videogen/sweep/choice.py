"""Choose the setting to recommend, or say what the clips cannot tell.

    [Setting], what measures quality, axes, the command's own settings  ->  Choice(setting, rule, doubt)

Closeness to a reference (PSNR) judges effort alone: settings of one intent are compared, and the fewest steps that look
like the reference, or else those at the knee, are chosen. A score judges both.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from videogen.config.sample import SampleConfig
from videogen.intervals import effective_sample_size, num_needed, t_quantile
from videogen.packing.patch_schedule import parse_patch_shares
from videogen.sweep.axes import Axis, format_value
from videogen.sweep.plan import EFFORT_FIELDS, SDE_SAMPLERS
from videogen.sweep.results import Row
from videogen.sweep.summary import (
    ClipValue,
    Costs,
    Setting,
    SettingKey,
    clip_key,
    complete_settings,
    numbers,
    standard_error,
    undominated,
)

EQUAL_COST = 1.05  # times the least seconds: two settings that cost the same are measured this far apart
OR_BETTER = f"; of those within {EQUAL_COST - 1:.0%} of its seconds, the best"
EQUAL_SCORE = 0.1  # of the best score: a setting whose interval stays this near to it is as good
MIN_BEND = 0.1  # of a curve above the line between its ends, both as shares of these: a straight one has no knee
MIN_CLIPS = 3  # independent ones: two have an interval of 12 times their standard error
DISTURBED = 1.5  # times the least seconds of an evaluation of equal work, above which something else took them
INVISIBLE_DB = 40.0  # a usual bound of PSNR, above which a difference is not visible
FRESH_NOISE = "fresh noise"  # a made-up field: "on" for the samplers that draw noise at every step
# Columns of which rows with equal values take equal seconds an evaluation.
EQUAL_WORK = ("size", "frames", "seconds", "fps", "patch", "first_block_cache", "mag_cache")


class Doubt(NamedTuple):
    """What the clips of a sweep cannot tell apart, and how many of them would."""

    rivals: list[Setting]
    num_clips: int
    num_needed: int | None  # None for more than a thousand
    is_of_seeds: bool  # of one prompt, so that clips are seeds
    are_equal: bool  # every clip of a rival scores as the chosen setting's


class Choice(NamedTuple):
    """The setting that looks best, the rule that chose it, and why the clips do not suffice to recommend it."""

    setting: Setting
    rule: str
    doubt: Doubt | None = None


def compare_settings(
    settings: Sequence[Setting], quality: str | None, axes: Sequence[Axis], base: SampleConfig
) -> list[Setting]:
    """List the settings that a measure can compare: all by a score; by closeness to a reference, those of one intent.

    Each intent has a reference of its own, so closeness says nothing of guidance and the like: they stay as in base.
    The same holds for a sampler that draws fresh noise.
    """
    if quality is None:
        return []
    rated = complete_settings(settings, quality)
    if quality != "psnr_db":
        return rated
    if not any(name in EFFORT_FIELDS for axis in axes for name in axis.names):
        return []
    fixed = fixed_fields(rated, axes, base)
    return [setting for setting in rated if fixed.items() <= fields_of(setting, axes).items()]


def intents(axes: Sequence[Axis]) -> list[str]:
    """List the fields of intent on the axes."""
    return [name for axis in axes for name in axis.names if name not in EFFORT_FIELDS]


def fields_of(setting: Setting, axes: Sequence[Axis]) -> dict[str, str]:
    """Return a setting's values by field, and whether its sampler draws fresh noise."""
    values = dict(zip((name for axis in axes for name in axis.names), setting.values, strict=True))
    return values | ({FRESH_NOISE: format_value(values["sampler"] in SDE_SAMPLERS)} if "sampler" in values else {})


def intent_of(setting: Setting, axes: Sequence[Axis]) -> dict[str, str]:
    """Return a setting's values of the fields of intent."""
    return {name: value for name, value in fields_of(setting, axes).items() if name in intents(axes)}


def fixed_fields(settings: Sequence[Setting], axes: Sequence[Axis], base: SampleConfig) -> dict[str, str]:
    """Return the fields that closeness to a reference says nothing of, at the command's own values."""
    fixed = {name: format_value(getattr(base, name)) for name in intents(axes)}
    noise = {fields_of(setting, axes).get(FRESH_NOISE) for setting in settings} - {None}
    own = format_value(base.sampler in SDE_SAMPLERS)
    return fixed | ({FRESH_NOISE: own} if own in noise and len(noise) > 1 else {})


def choose_setting(
    settings: Sequence[Setting], quality: str | None, axes: Sequence[Axis], base: SampleConfig
) -> Choice | None:
    """Choose the setting to recommend; None if nothing compares settings, or none of them is complete."""
    rated = compare_settings(settings, quality, axes, base)
    if quality is None or not rated:
        return None
    costs = count_costs(rated)
    if quality == "psnr_db":
        choice = choose_by_closeness(rated, costs)
        fixed = fixed_fields(complete_settings(settings, quality), axes, base)
        if fixed:
            stays = " and ".join(f"{name} stays at the command's {value}" for name, value in fixed.items())
            rule = f"{choice.rule}; {stays}, for closeness to a reference with the same setting says nothing of it"
            choice = choice._replace(rule=rule)
        if fields_of(choice.setting, axes).get(FRESH_NOISE) == format_value(base.sampler not in SDE_SAMPLERS):
            rule = f"{choice.rule}; closeness says nothing of {FRESH_NOISE}: choose by eye or by --score"
            choice = choice._replace(rule=rule)
    else:
        choice = choose_by_score(rated, quality, costs, axes, base)
    return choice._replace(doubt=find_doubt(choice.setting, rated, quality, costs, axes))


def choose_by_score(
    rated: Sequence[Setting], quality: str, costs: Costs, axes: Sequence[Axis], base: SampleConfig
) -> Choice:
    """Choose the fastest setting that is about as good as the best, of the same intent; of equal ones the command's."""
    own = {name: format_value(getattr(base, name)) for name in intents(axes)}

    def goodness(setting: Setting) -> tuple[float, bool]:
        return setting.means[quality].value, intent_of(setting, axes) == own

    best = max(rated, key=goodness)
    rated = [setting for setting in rated if intent_of(setting, axes) == intent_of(best, axes)]
    rule = (
        f"the fastest of the settings whose {quality.removeprefix('score_')} is not worse than the best one's "
        f"({best.means[quality].value:.4g}) by more than one standard error of the difference, clip by clip" + OR_BETTER
    )
    as_good = [setting for setting in rated if setting is best or not is_worse(setting, best, quality)]
    return Choice(fastest(as_good, quality, costs), rule)


def choose_by_closeness(rated: Sequence[Setting], costs: Costs) -> Choice:
    """Choose the fastest setting that looks like its reference, or else the one behind which more effort pays less."""
    close = [setting for setting in rated if setting.means["psnr_db"].low >= INVISIBLE_DB]
    if close:
        bound = f"{INVISIBLE_DB:g} dB or more, the lower end of its 95% interval"
        return Choice(
            fastest(close, "psnr_db", costs), f"the fastest whose PSNR to the reference is {bound}{OR_BETTER}"
        )
    rule = f"none is surely at {INVISIBLE_DB:g} dB or more, so the fastest at the knee: more seconds bring less"
    return Choice(find_knee(rated, "psnr_db", costs), rule)


def find_knee(settings: Sequence[Setting], quality: str, costs: Costs) -> Setting:
    """Return the undominated setting farthest above the line from the cheapest to the best (Satopää et al. 2011)."""
    front = undominated(settings, quality, costs)
    points = [(costs[setting.values], setting.means[quality].value) for setting in front]
    (low_cost, low), (high_cost, high) = points[0], points[-1]
    if len(front) < 3:
        return front[-1]
    heights = [(y - low) / (high - low) - (x - low_cost) / (high_cost - low_cost) for x, y in points]
    return front[heights.index(max(heights))] if max(heights) > MIN_BEND else front[-1]


def count_costs(settings: Sequence[Setting]) -> Costs:
    """Return each setting's seconds, or where other load disturbed those, what it evaluates in tokens' work."""
    if disturbance(settings) <= DISTURBED:
        return {setting.values: setting.seconds for setting in settings}
    return {setting.values: statistics.fmean(map(work_of, setting.rows)) for setting in settings}


def work_of(row: Row) -> float:
    """Count the evaluations of a row's clip, each by its tokens relative to patches of one latent cell."""
    patch = str(row.get("patch") or "")
    share = sum(share / math.prod(sides) for sides, share in parse_patch_shares(patch)) if patch else 1.0
    return float(str(row["evaluations"])) * share


def disturbance(settings: Sequence[Setting]) -> float:
    """Compute how many times as long an evaluation took at its slowest, among clips of equal work."""
    rates: dict[tuple[object, ...], list[float]] = {}
    for row in (row for setting in settings for row in setting.rows):
        if row.get("evaluations") and row.get("denoise_seconds"):
            equal = tuple(row.get(name) for name in EQUAL_WORK)
            rates.setdefault(equal, []).append(float(str(row["denoise_seconds"])) / float(str(row["evaluations"])))
    return max((max(some) / min(some) for some in rates.values()), default=1.0)


def fastest(settings: Sequence[Setting], quality: str, costs: Costs) -> Setting:
    """Return the setting of least cost; of those that noise alone may have made slower, the best."""
    least = min(costs[setting.values] for setting in settings)
    as_fast = [setting for setting in settings if costs[setting.values] <= EQUAL_COST * least]
    return max(as_fast, key=lambda setting: setting.means[quality].value)


def find_doubt(
    chosen: Setting, rated: Sequence[Setting], quality: str, costs: Costs, axes: Sequence[Axis]
) -> Doubt | None:
    """Find what speaks against recommending a setting: others that the clips cannot tell from it.

    Of its own intent, a cheaper one must be surely worse; where none is cheaper, no better one may lie far above it.
    The best of every other intent must be surely worse: it is no cheaper way to the same clip.
    """
    num = effective_sample_size([(row["prompt"], value) for row in chosen.rows for value in numbers([row], quality)])
    alike = [other for other in rated if intent_of(other, axes) == intent_of(chosen, axes)]
    cheaper = [other for other in alike if costs[other.values] * EQUAL_COST < costs[chosen.values]]
    better = [other for other in alike if other.means[quality].value > chosen.means[quality].value]
    needed: dict[SettingKey, int | None] = {}
    for other in [*(cheaper or better), *best_of_other_intents(chosen, rated, quality, axes)]:
        mean, error, degrees = standard_error(differences_of(other, chosen, quality))
        is_as_good = other in better and not cheaper
        room = EQUAL_SCORE * abs(other.means[quality].value) - mean if is_as_good else abs(mean)
        is_same = error == 0 and degrees and other in alike  # the same clips, or as good as the same, for less
        if not is_same and (not degrees or t_quantile(degrees) * error >= room):
            needed[other.values] = num_needed(room, error * math.sqrt(degrees + 1)) if degrees and room > 0 else None
    is_sure = chosen.means[quality].low >= INVISIBLE_DB if quality == "psnr_db" else not needed
    if (is_sure or not needed) and num >= MIN_CLIPS:
        return None
    rivals = [other for other in rated if other.values in needed]
    most = None if None in needed.values() else max([MIN_CLIPS, *(n for n in needed.values() if n is not None)])
    clips = len(chosen.rows)
    scaled = None if most is None else math.ceil(most * clips / num)
    are_equal = any(not any(d for _, d in differences_of(rival, chosen, quality)) for rival in rivals)
    return Doubt(rivals, clips, scaled, len({row["prompt"] for row in chosen.rows}) == 1, are_equal)


def best_of_other_intents(
    chosen: Setting, rated: Sequence[Setting], quality: str, axes: Sequence[Axis]
) -> list[Setting]:
    """List the best setting of each intent but that of the chosen one."""
    best: dict[tuple[str, ...], Setting] = {}
    for setting in sorted(rated, key=lambda setting: setting.means[quality].value):
        best[tuple(intent_of(setting, axes).values())] = setting
    return [setting for intent, setting in best.items() if intent != tuple(intent_of(chosen, axes).values())]


def differences_of(setting: Setting, other: Setting, quality: str) -> list[ClipValue]:
    """List by how much a setting's clips surpass another's, clip by clip."""
    theirs = {clip_key(row): row for row in other.rows}
    pairs = [(row, theirs[clip_key(row)]) for row in setting.rows if clip_key(row) in theirs]
    return [(a["prompt"], x - y) for a, b in pairs for x in numbers([a], quality) for y in numbers([b], quality)]


def is_worse(setting: Setting, best: Setting, quality: str) -> bool:
    """True if a setting is worse than the best by more than a standard error (Breiman et al. 1984), clip by clip.

    The 95% interval would be too wide: with two clips the fastest setting would always do.
    """
    differences = differences_of(setting, best, quality)
    if not differences:
        return True
    mean, error, _ = standard_error(differences)
    return mean + error < 0
