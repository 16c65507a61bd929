"""Publish a sweep: report.html beside its clips, grid.mp4, contact.png, pareto.png, best.toml.

    folder of rows and clips  ->  one self-contained folder that opens from disk, without network or server

The template is report.html beside this file; the data and the plots are put into it, and it loads nothing else.
"""

from __future__ import annotations

import html
import json
import shlex
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

from videogen.config.parsing import to_mapping, toml_value
from videogen.data.files import save_text
from videogen.sweep import summary
from videogen.sweep.choice import Choice, choose_setting, compare_settings, intents
from videogen.sweep.contact_sheet import default_position, dimensions, position_of, write_contact_sheet, write_grid
from videogen.sweep.findings import describe_sweep, format_mean, format_setting, measure_name
from videogen.sweep.measures import MEASURE_MEANINGS
from videogen.sweep.plan import Plan
from videogen.sweep.plots import check_matplotlib, plot_marginals, plot_pareto, save_png, to_svg
from videogen.sweep.results import Row, read_rows
from videogen.sweep.runner import config_of
from videogen.sweep.summary import Effect, Setting, effects, pareto_front, setting_key

PAGE_SHARE = 10  # times as long as writing the page took, until it is written anew
TEMPLATE = Path(__file__).with_name("report.html")


class Conclusions(NamedTuple):
    """The settings of a sweep with their means, what measures quality, the recommended setting, and the sentences."""

    settings: list[Setting]
    quality: str | None
    choice: Choice | None  # none where the clips do not suffice
    findings: list[str]
    ranked: list[Setting]  # the settings, with a quality where it can be compared with that of others
    effects: list[tuple[Effect, Effect]]  # of each axis on quality and seconds

    @property
    def is_rated(self) -> bool:
        """True if some setting has a quality, so that there is something to plot."""
        return self.quality is not None and any(self.quality in setting.means for setting in self.ranked)


def publish(folder: Path, plan: Plan, rows: Sequence[Row]) -> Conclusions:
    """Write the page, the images and best.toml into a folder that already holds the rows and the clips."""
    check_matplotlib()
    conclusions = write_page(folder, plan, rows)  # first: it needs none of the images
    write_best(folder / "best.toml", plan, conclusions.choice)
    write_grid(folder, plan, rows, conclusions.choice)
    write_contact_sheet(folder, plan, conclusions.settings, conclusions.choice)
    if conclusions.quality is not None and conclusions.is_rated:
        figure = plot_pareto(conclusions.ranked, conclusions.quality, plan.names, legend=True)
        save_png(figure, folder / "pareto.png")
    return conclusions


def write_page(folder: Path, plan: Plan, rows: Sequence[Row]) -> Conclusions:
    """Write report.html of the rows that there are."""
    conclusions = conclude(plan, rows)
    save_text(folder / "report.html", render_html(plan, rows, conclusions, folder / "best.toml"))
    return conclusions


def growing_page(folder: Path, plan: Plan) -> Callable[[Row], None]:
    """Return a function that writes the page anew as rows come, from the first on, in a tenth of the time at most."""
    due = 0.0

    def write(_row: Row) -> None:
        nonlocal due
        began = time.monotonic()
        if began >= due:
            write_page(folder, plan, list(read_rows(folder).values()))
            due = time.monotonic() + PAGE_SHARE * (time.monotonic() - began)

    return write


def conclude(plan: Plan, rows: Sequence[Row]) -> Conclusions:
    """Summarise the rows, choose a setting and describe both."""
    settings, quality, base = summary.summarise(rows, plan.names), summary.quality_name(rows), plan.bases[0].config
    choice = choose_setting(settings, quality, plan.axes, base)
    compared = compare_settings(settings, quality, plan.axes, base)
    both = []
    if quality is not None:
        clips = [row for setting in compared for row in setting.rows]
        axes = [axis for axis in plan.axes if quality != "psnr_db" or not {*intents([axis])}]
        both = list(zip(effects(clips, axes, quality), effects(clips, axes, "total_seconds"), strict=True))
    findings = describe_sweep(plan, settings, quality, choice, [of_quality for of_quality, _ in both])
    bare = [setting._replace(means={k: v for k, v in setting.means.items() if k != quality}) for setting in settings]
    ranked = [own if own in compared else without for own, without in zip(settings, bare, strict=True)]
    sure = choice if choice is not None and choice.doubt is None else None
    return Conclusions(settings, quality, sure, findings, ranked, both)


def write_best(path: Path, plan: Plan, choice: Choice | None) -> None:
    """Write the chosen settings as a TOML file for sample.py --config; without a choice, delete an old one."""
    if choice is None:
        path.unlink(missing_ok=True)
        return
    config = to_mapping(config_of(choice.setting.rows[0]))
    lines = [
        f"# {best_command(path, plan, 'PROMPT')}",
        f"# Chosen by a sweep over {', '.join(axis.name for axis in plan.axes)}.",
        f"# The rule: {choice.rule[0].upper()}{choice.rule[1:]}.",
        "",
        *(f"{key} = {toml_value(value)}" for key, value in config.items() if value is not None),
    ]
    save_text(path, "\n".join(lines) + "\n")


def best_command(path: Path, plan: Plan, prompt: str) -> str:
    """Return the shell command that samples with the chosen settings."""
    return shlex.join(["python", "sample.py", prompt, *plan.shared_flags(), "--config", str(path)])


def render_html(plan: Plan, rows: Sequence[Row], conclusions: Conclusions, best: Path) -> str:
    """Render the page: the template with the plots and the data inside."""
    data = json.dumps(page_data(plan, rows, conclusions, best), ensure_ascii=False, allow_nan=False)
    parts = {"<!-- pareto -->": "", "<!-- marginals -->": "", "/* data */": data.replace("<", "\\u003c")}
    quality = conclusions.quality
    if quality is not None and conclusions.is_rated:
        figure = plot_pareto(conclusions.ranked, quality, plan.names, legend=False)
        parts["<!-- pareto -->"] = to_svg(figure, f"{measure_name(quality)} against seconds, a point a setting")
        pairs = [pair for pair in conclusions.effects if len(pair[0].places) > 1]
        parts["<!-- marginals -->"] = "\n".join(
            f"<figure><figcaption>{name}</figcaption>{to_svg(figure, f'what {name} does')}</figure>"
            for name, figure in plot_marginals(pairs, quality)
        )
    title = f"Sweep over {', '.join(axis.name for axis in plan.axes)}"
    page = TEMPLATE.read_text(encoding="utf-8").replace("<!-- title -->", html.escape(title))
    for placeholder, content in parts.items():
        before, after = page.split(placeholder)
        page = before + content + after
    return page


def page_data(plan: Plan, rows: Sequence[Row], conclusions: Conclusions, best: Path) -> dict[str, object]:
    """Collect the JSON that the page's script reads."""
    settings, quality, choice, findings, ranked, _ = conclusions
    front = [setting.values for setting in pareto_front(ranked, quality)] if quality else []
    quality = quality if conclusions.is_rated else None
    numbers = {setting.values: i for i, setting in enumerate(settings)}
    return {
        "date": date.today().isoformat(),
        "checkpoint": dict(plan.about).get("checkpoint"),
        "findings": findings,
        "rule": choice.rule if choice else None,
        "best_command": best_command(best, plan, plan.bases[0].prompt) if choice else None,
        "reference": plan.describe_reference() if plan.reference_steps else None,
        "quality": quality,
        "quality_name": measure_name(quality) if quality else None,
        "dimensions": [dimension._asdict() for dimension in dimensions(plan)],
        "usual": default_position(plan, rows, choice),
        "names": list(plan.names),
        "meanings": MEASURE_MEANINGS,
        "measures": summary.measures_of(rows),
        "settings": [
            {
                "label": format_setting(setting.values, plan.names),
                "chosen": choice is not None and setting.values == choice.setting.values,
                "front": front.index(setting.values) + 1 if setting.values in front else 0,
                "values": dict(zip(plan.names, setting.values, strict=True)),
                "means": {
                    name: {"value": mean.value, "text": format_mean(mean, name)} for name, mean in setting.means.items()
                },
                "num": len(setting.rows),
            }
            for setting in settings
        ],
        "rows": [
            {**row, "place": position_of(row, plan), "setting": numbers[setting_key(row, plan.names)]} for row in rows
        ],
    }
