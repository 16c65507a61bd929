"""Say what the words of the toybox's captions name: a thing, a colour, a motion, a place.

"circle"  ->  "thing"
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from videogen.data.words import split_words
from videogen.toybox.world import captions
from videogen.toybox.world.phrases import tables

SMALL = {
    *split_words(
        "a an and the of to in on at by with from that it its is are be as while not does do other there picture image"
    )
}
OTHER = "sentence"  # the words between
# The tables of the free captions by what they name. "A little bird" is small, and "the camera moves right" a motion.
SECTIONS = {
    "colour": ("colours", "colour_names"),
    "size": ("sizes",),
    "thing": ("kinds", "digits"),
    "motion": ("motions", "moving", "moving_of", "moving_sideways_of", "simple", "motion_adjectives", "ways", "senses"),
    "place": ("place",),
    "camera": ("camera",),
}


def kind_of(word: str) -> str:
    """Return what a word of a caption names, "sentence" for one that names nothing."""
    return kinds().get(word, OTHER)


@cache
def kinds() -> dict[str, str]:
    """Map the words of the plain and the free captions to what they name; the first kind that has a word keeps it."""
    plain = {
        "colour": captions.COLOUR_WORDS,
        "size": captions.SIZE_WORDS,
        "thing": captions.KIND_WORDS,
        "motion": [captions.DIRECTION_WORDS, captions.MOTION_VERBS, captions.JOINT_VERBS],
        "place": captions.BACKGROUND_WORDS,
        "camera": captions.CAMERA_WORDS,
    }
    found: dict[str, str] = {}
    for tables_of in (plain, {kind: [tables()[name] for name in names] for kind, names in SECTIONS.items()}):
        for kind, table in tables_of.items():
            for text in texts(table):
                for word in split_words(text):
                    found.setdefault(word, kind)
    return {word: kind for word, kind in found.items() if word not in SMALL}


def texts(table: object) -> Iterator[str]:
    """Yield every text of nested tables and lists."""
    if isinstance(table, str):
        yield table
    elif isinstance(table, dict):
        for value in table.values():
            yield from texts(value)
    elif isinstance(table, list | tuple):
        for value in table:
            yield from texts(value)
