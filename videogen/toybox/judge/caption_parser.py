"""Read a caption of the toybox back into what it says.

"a large red circle moves right on a black background"  ->  Clauses

A caption is a row of phrases out of the tables that captions are made from. They are told apart by taking the longest
that fits, word by word, and put together by what stands beside what.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from videogen.toybox.world import captions
from videogen.toybox.world.captions import NUMBERS, VERBS, WAYS


class Said(NamedTuple):
    """What a caption says of one thing; what it does not say is empty."""

    kind: str
    colour: str = ""
    size: str = ""
    motion: str = ""
    sense: str = ""
    """clockwise or counterclockwise."""


class Clauses(NamedTuple):
    """What a caption says; what it does not say is empty. Relation and event are of the first thing to the second."""

    things: tuple[Said, ...]
    background: str = ""
    camera: str = ""
    relation: str = ""
    event: str = ""


class Phrase(NamedTuple):
    """Some words of a caption and what they mean, of one sort: kind, colour, place, verb, ..."""

    sort: str
    meaning: str


FILLING = (
    "a", "an", "and", "while", "is", "that",
    "a video of", "a short clip of", "there is", "a little film of", "we see", "look at", "watch",
    "a picture of", "an image of", *(f"{number} objects" for number in NUMBERS.values()),
)  # fmt: skip
"""Words of the patterns, which say nothing of what is shown, but that objects are as many as are named."""


@cache
def phrases() -> dict[tuple[str, ...], tuple[Phrase, ...]]:
    """Every phrase, as words, and all that it can mean."""
    tables = {
        "kind": captions.KIND_WORDS,
        "colour": captions.COLOUR_WORDS,
        "size": captions.SIZE_WORDS,
        "background": captions.BACKGROUND_WORDS,
        "camera": captions.CAMERA_WORDS,
        "relation": captions.RELATION_WORDS,
        "way": WAYS,
        "sense": {sense: (sense,) for sense in ("clockwise", "counterclockwise")},
        "filling": {words: (words,) for words in FILLING},
        "verb": {name: tuple(form for verb in verbs for form in verb) for name, verbs in VERBS.items()},
        "event": {name: tuple(form for verb in verbs for form in verb) for name, verbs in captions.TOGETHER.items()},
        "behind": {"behind": tuple(f"{form} behind" for verb in captions.BEHIND for form in verb)},
    }
    found: dict[tuple[str, ...], tuple[Phrase, ...]] = {}
    for sort, table in tables.items():
        for meaning, words in table.items():
            for one in filter(None, words):
                key = tuple(one.split())
                found[key] = (*found.get(key, ()), Phrase(sort, meaning))
    return found


def split(text: str) -> list[tuple[Phrase, ...]]:
    """A caption as phrases, each with all that it can mean; the longest phrase that fits comes first."""
    words, table = re.findall(r"[a-z0-9]+", text.lower()), phrases()
    longest = max(map(len, table))
    found, i = [], 0
    while i < len(words):
        sizes = range(min(longest, len(words) - i), 0, -1)
        size = next((size for size in sizes if tuple(words[i : i + size]) in table), None)
        if size is None:
            raise ValueError(f"the judge cannot read {words[i]!r} in {text!r}: it is no word of the toybox's captions")
        found.append(table[tuple(words[i : i + size])])
        i += size
    return found


def parse(text: str) -> Clauses:
    """What a caption of the world's grammar says; a ValueError names the first word that no caption has."""
    things: list[Said] = []
    whole: dict[str, str] = {}
    named: dict[str, str] = {}  # size and colour of the thing whose kind comes next
    verbs: set[str] = set()
    unled = False  # a verb was said that needs a way, such as "bounces": side to side, or as a ball does
    for options in split(text):
        sorts = {phrase.sort: phrase.meaning for phrase in options}
        if "kind" in sorts:
            things.append(Said(sorts["kind"], **named))
            named = {}
        elif "verb" in sorts and things:
            verbs = {phrase.meaning for phrase in options}
            things[-1] = things[-1]._replace(motion=only(verbs & UNLED))
            unled = not things[-1].motion
        elif "way" in sorts and things:
            led = {phrase.meaning for phrase in options if phrase.sort == "way"}
            things, unled = lead(things, verbs, led, behind=whole.get("event") == "behind"), False
            if not any(thing.motion for thing in things):
                raise ValueError(f"the judge cannot tell which motion {text!r} means: no caption says it so")
        elif "sense" in sorts and things:
            things[-1] = things[-1]._replace(sense=sorts["sense"])
        for sort in {"size", "colour"} & sorts.keys() & named.keys():
            raise ValueError(f"{text!r} says a {sort} twice before it names a thing; say it before each thing's name")
        for sort in ("size", "colour"):
            named |= {sort: sorts[sort]} if sort in sorts else {}
        for sort in ("background", "camera", "relation", "event", "behind"):
            whole |= {"event" if sort == "behind" else sort: sorts[sort]} if sort in sorts else {}
    if not things:
        raise ValueError(f"{text!r} names no thing that the judge could look for")
    if named:
        raise ValueError(f"{text!r} says {', '.join(named.values())} of no thing; say it before the thing's name")
    if unled:
        raise ValueError(f"the judge cannot tell which motion {text!r} means: no caption says it so")
    return Clauses(tuple(things), **whole)


UNLED = frozenset(name for name in VERBS if "" in WAYS.get(name, ("",)))
"""Motions that can be told by a verb alone."""


def only(meanings: set[str]) -> str:
    """The one meaning there is; empty where a way has to decide."""
    return next(iter(meanings)) if len(meanings) == 1 else ""


def lead(things: Sequence[Said], verbs: set[str], ways: set[str], *, behind: bool) -> list[Said]:
    """Things, of which the last moves the way that is said, or the first, if it does so behind the last."""
    moved = 0 if behind else -1
    motion = only(ways - {"roll left", "roll right"} if behind else ways & verbs)
    changed = list(things)
    changed[moved] = changed[moved]._replace(motion=motion)
    return changed
