"""Parse a caption of the toybox into the clauses that it states.

"a large red circle moves right on a black background"  ->  Clauses

A caption is a row of phrases from the tables that captions are generated from. The longest phrase that matches is
taken, word by word, and an adjective, verb or direction belongs to the thing that is named next to it.
"""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

from videogen.toybox.world import captions
from videogen.toybox.world.captions import DIRECTION_WORDS, MOTION_VERBS, NUMBER_WORDS


class Said(NamedTuple):
    """The attributes of one thing in a caption; those that the caption leaves open are empty."""

    kind: str
    colour: str = ""
    size: str = ""
    motion: str = ""
    sense: str = ""
    """clockwise or counterclockwise."""


class Clauses(NamedTuple):
    """A caption's clauses, empty where it leaves one open; relation and event are of the first thing to the second."""

    things: tuple[Said, ...]
    background: str = ""
    camera: str = ""
    relation: str = ""
    event: str = ""


class Phrase(NamedTuple):
    """One meaning of some words of a caption, with its sort: kind, colour, background, verb, ..."""

    sort: str
    meaning: str


FILLERS = (
    "a", "an", "and", "while", "is", "that",
    "a video of", "a short clip of", "there is", "a little film of", "we see", "look at", "watch",
    "a picture of", "an image of", *(f"{number} objects" for number in NUMBER_WORDS.values()),
)  # fmt: skip
"""Words of the sentence patterns, without a clause of their own: a number only repeats how many things are named."""
COMPLETE_VERBS = frozenset(motion for motion in MOTION_VERBS if "" in DIRECTION_WORDS.get(motion, ("",)))
"""Motions that their verb alone states; the others need a direction."""


@cache
def phrase_table() -> dict[tuple[str, ...], tuple[Phrase, ...]]:
    """Map every phrase, as words, to all that it can mean."""
    sorts = {
        "kind": captions.KIND_WORDS,
        "colour": captions.COLOUR_WORDS,
        "size": captions.SIZE_WORDS,
        "background": captions.BACKGROUND_WORDS,
        "camera": captions.CAMERA_WORDS,
        "relation": captions.RELATION_WORDS,
        "direction": DIRECTION_WORDS,
        "sense": {sense: (sense,) for sense in ("clockwise", "counterclockwise")},
        "filler": {words: (words,) for words in FILLERS},
        "verb": {name: tuple(form for verb in verbs for form in verb) for name, verbs in MOTION_VERBS.items()},
        "event": {name: tuple(form for verb in verbs for form in verb) for name, verbs in captions.JOINT_VERBS.items()},
        "behind": {"behind": tuple(f"{form} behind" for verb in captions.BEHIND_VERBS for form in verb)},
    }
    table: dict[tuple[str, ...], tuple[Phrase, ...]] = {}
    for sort, meanings in sorts.items():
        for meaning, wordings in meanings.items():
            for key in (tuple(wording.split()) for wording in wordings if wording):
                table[key] = (*table.get(key, ()), Phrase(sort, meaning))
    return table


def split_phrases(text: str) -> list[tuple[Phrase, ...]]:
    """Split a caption into phrases, the longest match first; each comes with all that it can mean."""
    words, table = re.findall(r"[a-z0-9]+", text.lower()), phrase_table()
    longest = max(map(len, table))
    phrases = []
    while words:
        sizes = range(min(longest, len(words)), 0, -1)
        size = next((size for size in sizes if tuple(words[:size]) in table), None)
        if size is None:
            raise ValueError(f"the judge cannot read {words[0]!r} in {text!r}: the toybox's captions have no such word")
        phrases.append(table[tuple(words[:size])])
        words = words[size:]
    return phrases


def parse(text: str) -> Clauses:
    """Parse a caption of the world's grammar; a ValueError names the first word that is not in it."""
    unclear_motion = (
        f"the judge cannot tell which motion {text!r} means; state it as the toybox's captions do, such as "
        "'moves to the right'"
    )
    things: list[Said] = []
    of_clip: dict[str, str] = {}
    adjectives: dict[str, str] = {}  # size and colour of the thing whose kind comes next
    verbs: set[str] = set()
    needs_direction = False  # after a verb such as "bounces": side to side, or up and down
    for meanings in split_phrases(text):
        by_sort = {phrase.sort: phrase.meaning for phrase in meanings}
        if "kind" in by_sort:
            things.append(Said(by_sort["kind"], **adjectives))
            adjectives = {}
        elif "verb" in by_sort and things:
            verbs = {phrase.meaning for phrase in meanings}
            things[-1] = things[-1]._replace(motion=unique(verbs & COMPLETE_VERBS))
            needs_direction = not things[-1].motion
        elif "direction" in by_sort and things:
            motions = {phrase.meaning for phrase in meanings if phrase.sort == "direction"}
            # "A passes behind B from left to right": the direction comes after B and is that of A, which never rolls.
            behind = of_clip.get("event") == "behind"
            motion = unique(motions - {"roll left", "roll right"} if behind else motions & verbs)
            things[0 if behind else -1] = things[0 if behind else -1]._replace(motion=motion)
            needs_direction = False
            if not any(thing.motion for thing in things):
                raise ValueError(unclear_motion)
        elif "sense" in by_sort and things:
            things[-1] = things[-1]._replace(sense=by_sort["sense"])
        for sort in {"size", "colour"} & by_sort.keys() & adjectives.keys():
            raise ValueError(f"{text!r} gives a {sort} twice before it names a thing; give one for each thing")
        adjectives |= {sort: by_sort[sort] for sort in ("size", "colour") if sort in by_sort}
        for sort in {"background", "camera", "relation", "event", "behind"} & by_sort.keys():
            of_clip["event" if sort == "behind" else sort] = by_sort[sort]
    if not things:
        raise ValueError(f"{text!r} names no thing that the judge could look for; name one, such as 'a red circle'")
    if adjectives:
        raise ValueError(f"{text!r} gives {', '.join(adjectives.values())} to no thing; put it before the thing's name")
    if needs_direction:
        raise ValueError(unclear_motion)
    return Clauses(tuple(things), **of_clip)


def unique(meanings: set[str]) -> str:
    """Return the only meaning; empty where there are none or several, and a direction has to decide."""
    return next(iter(meanings)) if len(meanings) == 1 else ""
