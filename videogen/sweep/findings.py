"""What a sweep found, in sentences.

    settings, effects, choice  ->  ["Beyond 16 steps heun changes next to nothing: ...", ...]

The numbers come from summary.py; here is only grammar.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from videogen.sweep.axes import Axis, say
from videogen.sweep.plan import Plan
from videogen.sweep.summary import UNSEEN_DB, Choice, Effect, Mean, Setting, front

NAMES = {"psnr_db": "PSNR", "ssim": "SSIM", "total_seconds": "seconds"}
FLAGS = {"guidance_interval": "guidance within", "cfg_zero": "CFG-Zero*"}


def name_of(measure: str) -> str:
    """A column as a sentence has it."""
    return NAMES.get(measure, measure.removeprefix("score_").replace("_", " "))


def number(value: float, measure: str) -> str:
    """A measured number with its unit."""
    if measure == "psnr_db":
        return f"{value:.1f} dB"
    if measure.endswith("seconds"):
        return f"{value:.3g} s"
    return f"{value:.3g}"


def with_interval(mean: Mean, measure: str) -> str:
    """ "41.2 ± 0.8 dB" """
    if not mean.half:
        return number(mean.value, measure)
    if measure == "psnr_db":
        return f"{mean.value:.1f} ± {mean.half:.1f} dB"
    unit = " s" if measure.endswith("seconds") else ""
    return f"{mean.value:.3g} ± {mean.half:.2g}{unit}"


def label(values: Sequence[object], names: Sequence[str]) -> str:
    """A setting in a few words: "8 steps, dpmpp_2m, guidance 3"."""
    return ", ".join(label_one(name, str(value)) for name, value in zip(names, values, strict=True))


def label_one(name: str, value: str) -> str:
    """One field of a setting."""
    if name in ("steps", "frames", "fps", "seconds"):
        return f"{value} {name}"
    if name in ("sampler", "size"):
        return value
    return f"{FLAGS.get(name, name)} {value}"


def paragraphs(
    plan: Plan, settings: Sequence[Setting], quality: str | None, choice: Choice | None, moved: Sequence[Effect]
) -> list[str]:
    """The findings: what was run, what to use, where steps stop to matter, which axes do."""
    counts = what_was_run(plan, settings)
    if quality is None:
        nothing = "Nothing here measures quality: give --score, or leave --reference above 0."
        if plan.reference_steps:
            nothing = "No reference could be made, as the log says; the same command tries again."
        return [nothing if any(one.rows for one in settings) else "No run has worked yet.", counts]
    said = [counts]
    if choice is not None:
        use = f"Use {label(choice.setting.values, plan.names)}: {cost_and_quality(choice.setting, quality)}."
        said = [use, counts]
    if any("psnr_db" in one.means for one in settings) and "steps" in plan.names:
        said += convergence(settings, plan.names)
    said += what_matters(moved, quality)
    said += trade(settings, quality, plan.names)
    return said


def what_was_run(plan: Plan, settings: Sequence[Setting]) -> str:
    """Counts, and how many failed."""
    clips, failed = sum(len(one.rows) for one in settings), sum(one.num_failed for one in settings)
    prompts = len({run.prompt for run in plan.bases})
    seeds = len({run.seed for run in plan.bases})
    told = f"{many(len(settings), 'setting')}, {many(prompts, 'prompt')}, {many(seeds, 'seed')}: {many(clips, 'clip')}"
    missing = len(settings) * len(plan.bases) - clips - failed
    told += f", {failed} failed (the table says why)" if failed else ""
    return told + (f", {missing} still to be made." if missing > 0 else ".")


def many(num: int, noun: str) -> str:
    """ "1 clip", "3 clips" """
    return f"{num} {noun}{'' if num == 1 else 's'}"


def cost_and_quality(setting: Setting, quality: str) -> str:
    """ "0.41 s a clip, PSNR 41.2 ± 0.8 dB" """
    seconds = number(setting.means["total_seconds"].value, "seconds")
    return f"{seconds} a clip, {name_of(quality)} {with_interval(setting.means[quality], quality)}"


def convergence(settings: Sequence[Setting], names: Sequence[str]) -> list[str]:
    """From how many steps on each sampler is as good as its reference, all else at its mean."""
    steps_at, sampler_at = names.index("steps"), names.index("sampler") if "sampler" in names else None

    def sampler_of(one: Setting) -> str:
        return "" if sampler_at is None else str(one.values[sampler_at])

    said, short = [], []
    rated = sorted((one for one in settings if "psnr_db" in one.means), key=sampler_of)
    for sampler, group in groupby(rated, key=sampler_of):
        curve = mean_curve([(int(str(one.values[steps_at])), one.means["psnr_db"].value) for one in group])
        who = sampler or "the sampler"
        near = [i for i in range(len(curve)) if all(db >= UNSEEN_DB for _, db in curve[i:])]
        if near:
            steps, db = curve[near[0]]
            begins = "Beyond" if near[0] else "Even beyond"
            said.append(f"{begins} {steps} steps {who} changes next to nothing: {db:.1f} dB to its reference there.")
        else:
            steps, db = curve[-1]
            short.append(f"{who} ({steps} steps, {db:.1f} dB)")
    if short:
        said.append(f"At the most steps tried, these are still below {UNSEEN_DB:g} dB: {', '.join(short)}.")
    return said


def mean_curve(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Mean of the second at each first, in rising order."""
    groups: dict[int, list[float]] = {}
    for x, y in points:
        groups.setdefault(x, []).append(y)
    return [(x, sum(ys) / len(ys)) for x, ys in sorted(groups.items())]


def what_matters(moved: Sequence[Effect], quality: str) -> list[str]:
    """Which axis moves the quality, and which does not beyond its interval."""
    seen = [effect for effect in moved if len(effect.places) > 1]
    if not seen:
        return []
    ranked = sorted(seen, key=lambda effect: -effect.spread)
    top = ranked[0]
    low, high = min(top.places, key=lambda p: p[1].value), max(top.places, key=lambda p: p[1].value)
    said = [
        f"{name_of(quality)} moves most with {top.axis.name}: {number(low[1].value, quality)} at {low[0]}, "
        f"{number(high[1].value, quality)} at {high[0]}."
    ]
    still = [effect.axis.name for effect in ranked[1:] if within_noise(effect)]
    if still:
        said.append(f"With {' or '.join(still)} it does not move beyond the 95% interval, clip by clip.")
    return said


def within_noise(effect: Effect) -> bool:
    """Whether the interval of what lies between the least and the greatest place reaches down to nothing."""
    return effect.gap is not None and effect.gap.half is not None and effect.gap.value <= effect.gap.half


def trade(settings: Sequence[Setting], quality: str, names: Sequence[str]) -> list[str]:
    """The two ends of the undominated settings."""
    best = front(settings, quality)
    if len(best) < 2:
        return []
    cheap, dear = best[0], best[-1]
    return [
        f"Of {len(settings)} settings {len(best)} are undominated, from {label(cheap.values, names)} "
        f"({cost_and_quality(cheap, quality)}) to {label(dear.values, names)} ({cost_and_quality(dear, quality)})."
    ]


def axis_values(axis: Axis) -> list[str]:
    """An axis's places as texts."""
    return [", ".join(map(say, place)) for place in axis.places]
