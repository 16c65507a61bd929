"""Read a file of prompts to judge by: captions in the world's words, or free sentences with their clauses given.

captions.txt or .jsonl  ->  [Case(prompt, clauses)]
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from videogen.data.captions import read_rows
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
    """Read the prompts of a file in order; a ValueError names the number of the first bad row."""
    if not path.is_file():
        raise ValueError(f"there is no captions file {path}; give a .txt or .jsonl file")
    for number, row in read_rows(path):
        try:
            yield Case(row, parse(row)) if isinstance(row, str) else case_from_row(row)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} row {number}: {error}") from None


def case_from_row(row: object) -> Case:
    """Build the case of a JSON row: a prompt, and the clauses of the one thing that it describes."""
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise ValueError(f"every row needs a prompt and its clauses as a JSON object, got {row!r}")
    for name in row.keys() & VOCABULARY.keys():
        if row[name] and row[name] not in VOCABULARY[name]:
            raise ValueError(f"{name} {row[name]!r} is none of {', '.join(VOCABULARY[name])}")
    if unknown := row.keys() - VOCABULARY.keys() - {"prompt"}:
        raise ValueError(f"unknown key {min(unknown)!r}; allowed are prompt, {', '.join(VOCABULARY)}")
    thing = Said(**{name: row[name] for name in Said._fields if name in row})
    clip = {name: row[name] for name in ("background", "camera") if name in row}
    return Case(row["prompt"], Clauses((thing,), **clip))
