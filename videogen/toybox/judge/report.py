"""Write the page of judged clips: prompt, clip, what was detected, clause by clause; one file that opens from disk.

[JudgedClip] with their frames, tables  ->  HTML
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

from videogen.toybox.judge.caption_parser import Said
from videogen.toybox.judge.observations import Found, FoundThing
from videogen.toybox.judge.quality import QUALITY_MEANINGS
from videogen.toybox.judge.scores import JudgedClip, Proportion
from videogen.toybox.judge.verdict import CLAUSE_MEANINGS

if TYPE_CHECKING:
    from videogen.toybox.judge.features import Distance

TEMPLATE = Path(__file__).with_name("report.html")


def to_data_uri(frames: np.ndarray, fps: float) -> str:
    """Encode a clip as an animated lossless WebP in a data URI; the last frame stays for 600 ms."""
    first, *rest = (Image.fromarray(frame) for frame in frames)
    file = io.BytesIO()
    durations = [round(1000 / fps)] * len(rest) + [600]
    first.save(file, "webp", save_all=True, append_images=rest, duration=durations, loop=0, lossless=True)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def describe_thing(thing: FoundThing | Said) -> str:
    """Describe a thing in a few words: "large red circle · right"."""
    motion = thing.motion and f"· {thing.motion}"
    return " ".join(filter(None, (thing.size, thing.colour, thing.kind, motion, thing.sense)))


def describe_detections(found: Found) -> str:
    """Describe in a line what the judge detected in a clip."""
    things = "; ".join(map(describe_thing, found.things)) or "nothing recognisable"
    events = ", ".join(event.name for event in found.events)
    camera = "" if found.camera.name == "still" else found.camera.name
    return " | ".join(filter(None, (things, events, found.background or "no known background", camera)))


def format_proportion(proportion: Proportion | None) -> str:
    """Format a share with its interval: 97.3% (95.1-98.5); empty for None."""
    if proportion is None:
        return ""
    low, high = proportion.interval
    return f"{proportion.share:.1%} ({100 * low:.1f}-{100 * high:.1f})"


def format_means(means: Mapping[str, float]) -> list[tuple[str, str]]:
    """Format each quality measure as its meaning and its mean."""
    return [(QUALITY_MEANINGS[name], f"{value:.3g}") for name, value in means.items()]


def format_distances(distances: Mapping[str, Distance]) -> list[tuple[str, str]]:
    """Format the distance of each set of clips to the world's, with its interval."""
    return [
        (f"distance of {name} to other clips of the world (MMD², 0 is none)", f"{value:.3g} ({low:.3g} to {high:.3g})")
        for name, (value, (low, high)) in distances.items()
    ]


def clause_table(columns: Mapping[str, Mapping[str, Proportion]]) -> str:
    """Render the proportions as an HTML table: a row for each clause, a column for each set of clips."""
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    rows = "".join(
        f'<tr><th title="{html.escape(CLAUSE_MEANINGS.get(name, ""))}">{html.escape(name)}</th>'
        + "".join(f"<td>{format_proportion(column.get(name))}</td>" for column in columns.values())
        + f"<td>{next((column[name].num for column in columns.values() if name in column), '')}</td></tr>"
        for name in names
    )
    return f"<table><thead><tr><th>clause</th>{head}<th>clips</th></tr></thead><tbody>{rows}</tbody></table>"


def clip_card(judged: JudgedClip, frames: np.ndarray, fps: float) -> str:
    """Render one clip with its prompt, detections and clauses as HTML."""
    marks = "".join(
        f'<li class="{"yes" if holds else "no"}">{"✓" if holds else "✗"} {name}</li>'
        for name, holds in judged.holds.items()
        if name != "all"
    )
    wrong = " ".join(name for name, holds in judged.holds.items() if not holds)
    clauses = judged.case.clauses
    things = "; ".join(map(describe_thing, clauses.things))
    stated = filter(None, (things, clauses.relation, clauses.event, clauses.background, clauses.camera))
    return (
        f'<article data-wrong="{wrong}"><img src="{to_data_uri(frames, fps)}" alt="" loading="lazy"><div>'
        f'<p class="prompt">{html.escape(judged.case.prompt)} <span class="quiet">seed {judged.seed}</span></p>'
        f'<p class="quiet">caption: {html.escape(" | ".join(stated))}<br>'
        f"detected: {html.escape(describe_detections(judged.found))}</p><ul>{marks}</ul></div></article>"
    )


def render_report(
    title: str,
    columns: Mapping[str, Mapping[str, Proportion]],
    means: Mapping[str, float],
    distances: Mapping[str, Distance],
    clips: Sequence[tuple[JudgedClip, np.ndarray]],
    fps: float,
) -> str:
    """Render the whole page: the template with the tables and the clips inside."""
    num_wrong = {name: sum(not judged.holds.get(name, True) for judged, _ in clips) for name in CLAUSE_MEANINGS}
    options = "".join(f'<option value="{name}">{name} wrong ({num})</option>' for name, num in num_wrong.items() if num)
    measures = "".join(
        f"<div><dt>{html.escape(meaning)}</dt><dd>{value}</dd></div>"
        for meaning, value in [*format_means(means), *format_distances(distances)]
    )
    parts = {
        "<!-- title -->": html.escape(title),
        "<!-- table -->": clause_table(columns),
        "<!-- measures -->": f"<dl>{measures}</dl>",
        "<!-- options -->": f'<option value="">all clips ({len(clips)})</option>{options}',
        "<!-- clips -->": "\n".join(clip_card(judged, frames, fps) for judged, frames in clips),
    }
    page = TEMPLATE.read_text(encoding="utf-8")
    for placeholder, content in parts.items():
        page = page.replace(placeholder, content)
    return page
