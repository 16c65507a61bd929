"""A page of judged clips: prompt, clip, what was found, clause by clause; one file that opens from disk.

[Judged] with their frames, tables  ->  HTML
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from videogen.toybox.judge.caption_parser import Clauses, Said
from videogen.toybox.judge.observations import Found, FoundThing
from videogen.toybox.judge.quality import MEANINGS as OF_MEASURES
from videogen.toybox.judge.scores import Count, Judged
from videogen.toybox.judge.verdict import MEANINGS

if TYPE_CHECKING:
    from videogen.toybox.judge.features import Distance

TEMPLATE = Path(__file__).with_name("report.html")


def picture(frames: np.ndarray, fps: float) -> str:
    """A clip as an animated picture inside the page, without loss; the last frame stays a little."""
    first, *rest = (Image.fromarray(frame) for frame in frames)
    file = io.BytesIO()
    pause = [round(1000 / fps)] * len(rest) + [600]
    first.save(file, "webp", save_all=True, append_images=rest, duration=pause, loop=0, lossless=True)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def say_thing(thing: FoundThing | Said) -> str:
    """A thing in a few words."""
    words = (thing.size, thing.colour, thing.kind, thing.motion and f"· {thing.motion}", thing.sense)
    return " ".join(word for word in words if word)


def say_found(found: Found) -> str:
    """What was found, in a line."""
    things = "; ".join(map(say_thing, found.things)) or "nothing recognisable"
    events = ", ".join(event.name for event in found.events)
    camera = "" if found.camera.name == "still" else found.camera.name
    return " | ".join(part for part in (things, events, found.background or "no known background", camera) if part)


def say_clauses(clauses: Clauses) -> str:
    """What a caption was read as, in a line."""
    things = "; ".join(map(say_thing, clauses.things))
    said = (things, clauses.relation, clauses.event, clauses.background, clauses.camera)
    return " | ".join(part for part in said if part)


def percent(one: Count | None) -> str:
    """A share with its interval: 97.3% (95.1-98.5)."""
    if one is None:
        return ""
    low, high = one.interval
    return f"{one.share:.1%} ({100 * low:.1f}-{100 * high:.1f})"


def table(columns: Mapping[str, Mapping[str, Count]]) -> str:
    """The tables side by side, a row a clause."""
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    rows = "".join(
        f'<tr><th title="{html.escape(MEANINGS.get(name, ""))}">{html.escape(name)}</th>'
        + "".join(f"<td>{percent(column.get(name))}</td>" for column in columns.values())
        + f"<td>{next((column[name].num for column in columns.values() if name in column), '')}</td></tr>"
        for name in names
    )
    return f"<table><thead><tr><th>clause</th>{head}<th>clips</th></tr></thead><tbody>{rows}</tbody></table>"


def say_means(means: Mapping[str, float]) -> list[tuple[str, str]]:
    """What each measure is, and its mean."""
    return [(OF_MEASURES[name], f"{value:.3g}") for name, value in means.items()]


def say_distances(distances: Mapping[str, Distance]) -> list[tuple[str, str]]:
    """Which clips are how far from the world's, with the interval."""
    return [
        (
            f"distance of {name} to other clips of the world (MMD², 0 is none)",
            f"{one.value:.3g} ({one.interval[0]:.3g} to {one.interval[1]:.3g})",
        )
        for name, one in distances.items()
    ]


def measures(said: Sequence[tuple[str, str]]) -> str:
    """The measures, a line each."""
    rows = "".join(f"<div><dt>{html.escape(meaning)}</dt><dd>{value}</dd></div>" for meaning, value in said)
    return f"<dl>{rows}</dl>"


def card(one: Judged, frames: np.ndarray, fps: float) -> str:
    """One clip."""
    marks = "".join(
        f'<li class="{"yes" if holds else "no"}">{"✓" if holds else "✗"} {name}</li>'
        for name, holds in one.holds.items()
        if name != "all"
    )
    wrong = " ".join(name for name, holds in one.holds.items() if not holds)
    return (
        f'<article data-wrong="{wrong}"><img src="{picture(frames, fps)}" alt="" loading="lazy"><div>'
        f'<p class="prompt">{html.escape(one.case.prompt)} <span class="quiet">seed {one.seed}</span></p>'
        f'<p class="quiet">said: {html.escape(say_clauses(one.case.clauses))}<br>'
        f"found: {html.escape(say_found(one.found))}</p><ul>{marks}</ul></div></article>"
    )


def render(
    title: str,
    columns: Mapping[str, Mapping[str, Count]],
    means: Mapping[str, float],
    distances: Mapping[str, Distance],
    clips: Sequence[tuple[Judged, np.ndarray]],
    fps: float,
) -> str:
    """The whole page."""
    wrong = {name: sum(not one.holds.get(name, True) for one, _ in clips) for name in MEANINGS}
    options = "".join(f'<option value="{name}">{name} wrong ({num})</option>' for name, num in wrong.items() if num)
    parts = {
        "<!-- title -->": html.escape(title),
        "<!-- table -->": table(columns),
        "<!-- measures -->": measures([*say_means(means), *say_distances(distances)]),
        "<!-- options -->": f'<option value="">all clips ({len(clips)})</option>{options}',
        "<!-- clips -->": "\n".join(card(one, frames, fps) for one, frames in clips),
    }
    text = TEMPLATE.read_text(encoding="utf-8")
    for mark, made in parts.items():
        text = text.replace(mark, made)
    return text
