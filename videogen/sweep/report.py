"""What a sweep shows: report.html beside its clips, grid.mp4, contact.png, pareto.png, best.toml.

    folder of rows and clips  ->  one self-contained folder that opens from disk, without network or server

The template is report.html beside this file; the data and the plots are put into it, and nothing in it is fetched.
"""

from __future__ import annotations

import html
import json
import shlex
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

from videogen.config.parsing import to_mapping
from videogen.config.sample import SampleConfig
from videogen.data.files import save_text
from videogen.sweep.contact_sheet import dimensions, place_of, usual_place, write_contact, write_grid
from videogen.sweep.findings import label, name_of, paragraphs, with_interval
from videogen.sweep.measures import MEANINGS
from videogen.sweep.plan import Plan
from videogen.sweep.plots import check_matplotlib, marginals, pareto, save_png, to_svg
from videogen.sweep.results import Row
from videogen.sweep.runner import config_of
from videogen.sweep.summary import (
    Choice,
    Setting,
    choose,
    effects,
    front,
    measures_of,
    quality_name,
    summarise,
    value_of,
)

TEMPLATE = Path(__file__).with_name("report.html")


class Found(NamedTuple):
    """What the rows say."""

    settings: list[Setting]
    quality: str | None
    choice: Choice | None
    findings: list[str]


def publish(folder: Path, plan: Plan, rows: Sequence[Row]) -> Found:
    """Write everything that a reader looks at; the rows and clips are there already."""
    check_matplotlib()
    found = find(plan, rows)
    best = folder / "best.toml"
    write_best(best, plan, found.choice)
    save_text(folder / "report.html", render(plan, rows, found, best))  # first: it can be read without the pictures
    write_grid(folder, plan, rows, found.choice)
    write_contact(folder, plan, found.settings, found.choice)
    if found.quality is not None and any(found.quality in one.means for one in found.settings):
        save_png(pareto(found.settings, found.quality, plan.names, named=True), folder / "pareto.png")
    return found


def find(plan: Plan, rows: Sequence[Row]) -> Found:
    """Summary, choice and sentences."""
    settings, quality = summarise(rows, plan.names), quality_name(rows)
    choice = choose(settings, quality, plan.axes, plan.bases[0].config)
    moved = effects(rows, plan.axes, quality) if quality else []
    return Found(settings, quality, choice, paragraphs(plan, settings, quality, choice, moved))


def write_best(path: Path, plan: Plan, choice: Choice | None) -> None:
    """The chosen settings as a TOML file for sample.py --config; an old one goes where nothing can be chosen."""
    if choice is None:
        path.unlink(missing_ok=True)
        return
    rule = choice.rule[0].upper() + choice.rule[1:]
    lines = [
        f"# {best_command(path, plan, 'PROMPT')}",
        f"# Chosen by a sweep over {', '.join(axis.name for axis in plan.axes)}.",
        f"# The rule: {rule}.",
        "",
        to_toml(config_of(choice.setting.rows[0])),
    ]
    save_text(path, "\n".join(lines))


def best_command(path: Path, plan: Plan, prompt: str) -> str:
    """The command that uses the chosen settings."""
    return shlex.join(["python", "sample.py", prompt, *plan.beside(), "--config", str(path)])


def to_toml(config: SampleConfig) -> str:
    """Settings as TOML; what is not set is left out."""
    plain = {key: value for key, value in to_mapping(config).items() if value is not None}
    return "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in plain.items())


def render(plan: Plan, rows: Sequence[Row], found: Found, best: Path) -> str:
    """The page: the template with the plots and the data inside."""
    told = json.dumps(page_data(plan, rows, found, best), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    parts = {"<!-- pareto -->": "", "<!-- marginals -->": "", "/* data */": told}
    title = f"Sweep over {', '.join(axis.name for axis in plan.axes)}"
    if found.quality is not None and any(found.quality in one.means for one in found.settings):
        figure = pareto(found.settings, found.quality, plan.names, named=False)
        parts["<!-- pareto -->"] = to_svg(figure, f"{name_of(found.quality)} against seconds, a point a setting")
        moved = zip(effects(rows, plan.axes, found.quality), effects(rows, plan.axes, "total_seconds"), strict=True)
        seen = [(a, b) for a, b in moved if len(a.places) > 1]
        parts["<!-- marginals -->"] = "\n".join(
            f"<figure><figcaption>{name}</figcaption>{to_svg(figure, f'what {name} does')}</figure>"
            for name, figure in marginals(seen, found.quality)
        )
    text = TEMPLATE.read_text(encoding="utf-8").replace("<!-- title -->", html.escape(title))
    for mark, made in parts.items():
        before, after = text.split(mark)
        text = before + made + after
    return text


def page_data(plan: Plan, rows: Sequence[Row], found: Found, best: Path) -> dict[str, object]:
    """What the page's script reads."""
    quality, choice = found.quality, found.choice
    undominated = front(found.settings, quality) if quality else []
    order = {one.values: i for i, one in enumerate(found.settings)}
    return {
        "date": date.today().isoformat(),
        "checkpoint": dict(plan.about).get("checkpoint"),
        "findings": found.findings,
        "rule": choice.rule if choice else None,
        "best_command": best_command(best, plan, plan.bases[0].prompt) if choice else None,
        "reference": plan.describe_reference() if plan.reference_steps else None,
        "quality": quality,
        "quality_name": name_of(quality) if quality else None,
        "dimensions": [dimension._asdict() for dimension in dimensions(plan)],
        "usual": usual_place(plan, rows, choice),
        "names": list(plan.names),
        "meanings": MEANINGS,
        "measures": measures_of(rows),
        "settings": [
            {
                "label": label(one.values, plan.names),
                "chosen": choice is not None and one.values == choice.setting.values,
                "front": undominated.index(one) + 1 if one in undominated else 0,
                "values": dict(zip(plan.names, one.values, strict=True)),
                "means": {
                    name: {"value": mean.value, "text": with_interval(mean, name)} for name, mean in one.means.items()
                },
                "num": len(one.rows),
            }
            for one in found.settings
        ],
        "rows": [{**row, "place": place_of(row, plan), "setting": order[value_of(row, plan.names)]} for row in rows],
    }
