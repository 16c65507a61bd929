"""Prompts of one's own for the judge: captions in the world's words, or any sentence with its clauses beside it.

captions.txt or .jsonl  ->  [Case(prompt, clauses)]
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from videogen.toybox.judge.caption_parser import Clauses, Said, parse
from videogen.toybox.judge.scores import Case
from videogen.toybox.world.captions import BACKGROUND_WORDS
from videogen.toybox.world.motions import MOTIONS
from videogen.toybox.world.scenes import CAMERAS
from videogen.toybox.world.things import COLOURS, KINDS, SIZES

VOCABULARY = {
    "kind": KINDS, "colour": COLOURS, "size": SIZES, "motion": MOTIONS, "sense": ("clockwise", "counterclockwise"),
    "background": BACKGROUND_WORDS, "camera": CAMERAS,
}  # fmt: skip


def read_cases(path: Path) -> Iterator[Case]:
    """Prompts of one's own; a bad line is named by its number."""
    if not path.is_file():
        raise ValueError(f"no captions file {path}")
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if line.strip():
            try:
                yield own_case(json.loads(line)) if path.suffix == ".jsonl" else Case(line.strip(), parse(line))
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{path} line {number}: {error}") from None


def own_case(row: object) -> Case:
    """A prompt whose clauses stand beside it."""
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise ValueError(f"every line needs a prompt and its clauses, got {row!r}")
    for name in row.keys() & VOCABULARY.keys():
        if row[name] and row[name] not in VOCABULARY[name]:
            raise ValueError(f"{name} {row[name]!r} is none of {', '.join(VOCABULARY[name])}")
    thing = {name: row[name] for name in Said._fields if name in row}
    whole = {name: row[name] for name in ("background", "camera") if name in row}
    if unknown := row.keys() - thing.keys() - whole.keys() - {"prompt"}:
        raise ValueError(
            f"unknown key {min(unknown)!r}; allowed are prompt, {', '.join(Said._fields)}, background, camera"
        )
    return Case(row["prompt"], Clauses((Said(**thing),), **whole))
