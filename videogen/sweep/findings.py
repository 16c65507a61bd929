"""Describe what a sweep found, in sentences.

    settings, effects, choice  ->  ["Beyond 16 steps heun changes next to nothing: ...", ...]

The numbers come from summary.py; this file adds only grammar.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from videogen.sweep.choice import DISTURBED, INVISIBLE_DB, Choice, Doubt, compare_settings, disturbance, intents
from videogen.sweep.plan import Plan
from videogen.sweep.summary import Effect, Mean, Setting, pareto_front

MEASURE_NAMES = {"psnr_db": "PSNR", "ssim": "SSIM", "total_seconds": "seconds"}
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight", 9: "nine"}
FIELD_NAMES = {"guidance_interval": "guidance within", "cfg_zero": "CFG-Zero*"}


def measure_name(measure: str) -> str:
    """Name a measure as a sentence has it."""
    return MEASURE_NAMES.get(measure, measure.removeprefix("score_").replace("_", " "))


def format_number(value: float, measure: str) -> str:
    """Format a measured number with its unit."""
    if measure == "psnr_db":
        return f"{value:.1f} dB"
    return f"{value:.3g} s" if measure.endswith("seconds") else f"{value:.3g}"


def format_mean(mean: Mean, measure: str) -> str:
    """Format a mean with its interval: "41.2 ± 0.8 dB"."""
    if not mean.half_width:
        return format_number(mean.value, measure)
    if measure == "psnr_db":
        return f"{mean.value:.1f} ± {mean.half_width:.1f} dB"
    unit = " s" if measure.endswith("seconds") else ""
    return f"{mean.value:.3g} ± {mean.half_width:.2g}{unit}"


def format_setting(values: Sequence[str], names: Sequence[str]) -> str:
    """Describe a setting in a few words: "8 steps, dpmpp_2m, guidance 3"."""
    return ", ".join(format_field(name, value) for name, value in zip(names, values, strict=True))


def format_field(name: str, value: str) -> str:
    """Describe one field of a setting: "8 steps", "dpmpp_2m", "guidance 3"."""
    if name in ("steps", "frames", "fps", "seconds"):
        return f"{value} {name}"
    return value if name in ("sampler", "size") else f"{FIELD_NAMES.get(name, name)} {value}"


def describe_sweep(
    plan: Plan,
    settings: Sequence[Setting],
    quality: str | None,
    choice: Choice | None,
    quality_effects: Sequence[Effect],
) -> list[str]:
    """Describe what to use or why nothing is recommended, what was run, when a solver is exact, which axes matter."""
    counts = describe_counts(plan, settings)
    if plan.unknown_words:
        counts += f" This checkpoint has never seen: {', '.join(plan.unknown_words)}."
    compared = compare_settings(settings, quality, plan.axes, plan.bases[0].config)
    if quality is None:
        if not any(setting.rows for setting in settings):
            return ["No run has worked yet.", counts]
        if plan.reference_steps:
            return ["No reference could be made, as the log says; the same command tries again.", counts]
        return ["Nothing here measures quality: give --score, or leave --reference above 0.", counts]
    sentences = [counts]
    if choice is not None and choice.doubt is not None:
        sentences = [describe_doubt(choice.setting, choice.doubt, plan.names), counts]
    elif choice is not None:
        cost = format_cost_and_quality(choice.setting, quality)
        sentences = [f"Use {format_setting(choice.setting.values, plan.names)}: {cost}.", counts]
    if quality == "psnr_db" and (fields := intents(plan.axes)):
        sentences.insert(0 if choice is None else 1, describe_intents(fields))
    if (factor := disturbance(settings)) > DISTURBED:
        sentences.append(
            f"Other load disturbed the seconds: equal work took up to {factor:.1f} times as long. Settings are chosen "
            "by what they evaluate instead."
        )
    if any("psnr_db" in setting.means for setting in settings) and "steps" in plan.names:
        sentences += describe_convergence(settings, plan.names)
    return sentences + describe_effects(quality_effects, quality) + describe_front(compared, quality, plan.names)


def describe_doubt(setting: Setting, doubt: Doubt, names: Sequence[str]) -> str:
    """Say what the clips cannot tell apart, and how many of them would."""
    noun = "seed" if doubt.is_of_seeds else "clip"
    count = f"{NUMBERS.get(doubt.num_clips, str(doubt.num_clips))} {noun}{'' if doubt.num_clips == 1 else 's'}"
    needed = "more than a thousand would" if doubt.num_needed is None else f"{doubt.num_needed} would"
    if doubt.num_needed is None and doubt.are_equal:
        needed = "all score the same, and harder prompts may not"
    if doubt.num_clips == 1:
        needed = "give several, such as --seeds 0:7:8"
    others = [format_setting(rival.values, names) for rival in doubt.rivals[:3]]
    apart = f": {' or '.join(others)} from {format_setting(setting.values, names)}" if others else ""
    text = f"{count} cannot tell these apart{apart}; {needed}."
    return f"Look at the clips side by side: {text}"


def describe_intents(fields: Sequence[str]) -> str:
    """Say of which fields closeness to a reference says nothing."""
    listed = " and ".join(FIELD_NAMES.get(name, name.replace("_", " ")) for name in fields)
    return (
        f"Nothing here judges {listed}: another value makes another clip, not a better or worse solved one. Compare "
        "the clips side by side, or give --score module:function."
    )


def describe_counts(plan: Plan, settings: Sequence[Setting]) -> str:
    """Count the settings, prompts, seeds and clips, and those that failed or are still to be sampled."""
    clips, failed = sum(len(setting.rows) for setting in settings), sum(setting.num_failed for setting in settings)
    prompts, seeds = len({run.prompt for run in plan.bases}), len({run.seed for run in plan.bases})
    counts = {"setting": len(settings), "prompt": prompts, "seed": seeds, "clip": clips}
    *most, last = (f"{num} {noun}{'' if num == 1 else 's'}" for noun, num in counts.items())
    missing = len(settings) * len(plan.bases) - clips - failed
    text = f"{', '.join(most)}: {last}" + (f", {failed} failed (the table says why)" if failed else "")
    return text + (f", {missing} still to be made." if missing > 0 else ".")


def format_cost_and_quality(setting: Setting, quality: str) -> str:
    """Describe a setting's results: "0.41 s a clip, PSNR 41.2 ± 0.8 dB"."""
    seconds = format_number(setting.seconds, "seconds")
    return f"{seconds} a clip, {measure_name(quality)} {format_mean(setting.means[quality], quality)}"


def describe_convergence(settings: Sequence[Setting], names: Sequence[str]) -> list[str]:
    """Say from how many steps on each sampler is as good as its reference, averaged over all other fields."""
    steps_at, sampler_at = names.index("steps"), names.index("sampler") if "sampler" in names else None

    def sampler_of(setting: Setting) -> str:
        return "" if sampler_at is None else setting.values[sampler_at]

    sentences, unconverged = [], []
    rated = sorted((setting for setting in settings if "psnr_db" in setting.means), key=sampler_of)
    for sampler, group in groupby(rated, key=sampler_of):
        psnr: dict[int, list[float]] = {}
        for setting in group:
            psnr.setdefault(int(setting.values[steps_at]), []).append(setting.means["psnr_db"].value)
        curve = [(steps, sum(values) / len(values)) for steps, values in sorted(psnr.items())]
        name = sampler or "the sampler"
        first = next((i for i in range(len(curve)) if all(db >= INVISIBLE_DB for _, db in curve[i:])), None)
        steps, db = curve[-1 if first is None else first]
        if first is None:
            unconverged.append(f"{name} ({steps} steps, {db:.1f} dB)")
        else:
            beyond = f"{'Beyond' if first else 'Even beyond'} {steps} steps"
            sentences.append(f"{beyond} {name} changes next to nothing: {db:.1f} dB to its reference there.")
    if unconverged:
        listed = ", ".join(unconverged)
        sentences.append(f"At the most steps tried, these are still below {INVISIBLE_DB:g} dB: {listed}.")
    return sentences


def describe_effects(quality_effects: Sequence[Effect], quality: str) -> list[str]:
    """Say which axis moves the quality most, and which do not move it beyond their interval."""
    ranked = sorted((effect for effect in quality_effects if len(effect.places) > 1), key=lambda effect: -effect.spread)
    if not ranked:
        return []
    top = ranked[0]
    low, high = (pick(top.places, key=lambda place: place[1].value) for pick in (min, max))
    least, most = (format_number(place[1].value, quality) for place in (low, high))
    if least == most:
        axes = " or ".join(effect.axis.name for effect in ranked)
        return [f"{measure_name(quality)} does not move with {axes}: it is {most} everywhere."]
    sentences = [f"{measure_name(quality)} moves most with {top.axis.name}: {least} at {low[0]}, {most} at {high[0]}."]
    flat = [effect.axis.name for effect in ranked[1:] if is_within_noise(effect)]
    if flat:
        sentences.append(f"With {' or '.join(flat)} it does not move beyond the 95% interval, clip by clip.")
    return sentences


def is_within_noise(effect: Effect) -> bool:
    """True if the interval of the gap between the least and the greatest place reaches down to 0."""
    return effect.gap is not None and effect.gap.half_width is not None and effect.gap.value <= effect.gap.half_width


def describe_front(settings: Sequence[Setting], quality: str, names: Sequence[str]) -> list[str]:
    """Describe the two ends of the Pareto front; nothing if it is one setting."""
    front = pareto_front(settings, quality)
    if len(front) < 2:
        return []
    fast, good = (
        f"{format_setting(setting.values, names)} ({format_cost_and_quality(setting, quality)})"
        for setting in (front[0], front[-1])
    )
    return [f"Of {len(settings)} settings {len(front)} are undominated, from {fast} to {good}."]
