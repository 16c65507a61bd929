"""Hold what was found in a clip against what its caption says.

Found, Clauses  ->  {"class": True, "colour": False, ..., "all": False}: those that were said, and all of them
"""

from __future__ import annotations

from itertools import permutations

import numpy as np

from videogen.toybox.judge.caption_parser import Clauses, Said, parse
from videogen.toybox.judge.observations import Found, FoundThing
from videogen.toybox.judge.read_clip import read

CLAUSES: tuple[str, ...] = (
    "present", "count", "class", "colour", "size", "motion", "relation", "event", "background", "camera", "all",
)  # fmt: skip
"""Every clause, in the order of a table."""
MEANINGS: dict[str, str] = {
    "present": "every thing that is named has one in the clip of its class or its colour",
    "count": "there are as many things as are named",
    "class": "shapes, digits and sprites are what they are called",
    "colour": "things have the colours that are said",
    "size": "small and large",
    "motion": "direction or kind of motion, and clockwise where that is said",
    "relation": "the first thing is where it is said to be, seen from the second",
    "event": "two things pass each other, collide, or one passes behind the other",
    "background": "what is behind everything",
    "camera": "pans and zooms that are said",
    "all": "every clause that was said",
}
WEIGHTS = {"kind": 2.5, "colour": 2.0, "size": 1.0, "motion": 1.0}
"""What agrees counts so much when it is asked which thing is meant: first of all it is known by its look."""


def judge(found: Found, clauses: Clauses) -> dict[str, bool]:
    """Which of the clauses that were said hold."""
    meant = pair(found, clauses)
    pairs = list(zip(clauses.things, (None if i is None else found.things[i] for i in meant), strict=True))
    holds = {
        "present": all(thing and is_like(said, thing) for said, thing in pairs),
        "count": len(found.things) == len(clauses.things),
        "class": all(thing and thing.kind == said.kind for said, thing in pairs),
    }
    for name in ("colour", "size", "motion"):
        wanted = [(said, thing) for said, thing in pairs if getattr(said, name)]
        if wanted:
            holds[name] = all(thing and agrees(said, thing, name) for said, thing in wanted)
    if clauses.relation:
        holds["relation"] = has_relation(clauses.relation, *(thing for _, thing in pairs[:2]))
    if clauses.event:
        holds["event"] = has_event(found, clauses.event, meant)
    if clauses.background:
        holds["background"] = found.background == clauses.background
    if clauses.camera:
        holds["camera"] = found.camera.name == clauses.camera
    plain = {name: bool(value) for name, value in holds.items()}
    return plain | {"all": all(plain.values())}


def is_like(said: Said, thing: FoundThing) -> bool:
    """Whether a thing has the class or the colour that is said."""
    return thing.kind == said.kind or (said.colour != "" and thing.colour == said.colour)


def agrees(said: Said, thing: FoundThing, attribute: str) -> bool:
    """Whether a thing is as it is said in one respect; a motion goes with the sense that is said of it."""
    same = getattr(said, attribute) == getattr(thing, attribute)
    return same and (attribute != "motion" or said.sense in ("", thing.sense))


def pair(found: Found, clauses: Clauses) -> tuple[int | None, ...]:
    """Which found thing is meant by each that is said: the pairing in which most agrees."""
    numbers = [*range(len(found.things)), *[None] * len(clauses.things)]
    pairings = dict.fromkeys(permutations(numbers, len(clauses.things)))

    def likeness(pairing: tuple[int | None, ...]) -> float:
        things = ((said, found.things[i]) for said, i in zip(clauses.things, pairing, strict=True) if i is not None)
        return sum(
            0.1  # any thing is better than none
            + sum(weight for name, weight in WEIGHTS.items() if getattr(said, name) and agrees(said, thing, name))
            for said, thing in things
        )

    return max(pairings, key=likeness)


def has_relation(relation: str, first: FoundThing | None = None, second: FoundThing | None = None) -> bool:
    """Whether the first thing is left or right of the second, above or below it, when the clip begins."""
    if first is None or second is None:
        return False
    dx, dy = (float(a[0] - b[0]) for a, b in zip(first.pose[:2], second.pose[:2], strict=True))
    along, across = (dx, dy) if relation in ("left", "right") else (dy, dx)
    return abs(along) > abs(across) and (along > 0) == (relation in ("right", "below"))


def has_event(found: Found, event: str, meant: tuple[int | None, ...]) -> bool:
    """Whether the things that are meant do together what is said; only of behind does it matter who is first."""
    happened = {(one.name, one.first, one.second) for one in found.events}
    first, second = (*meant, None, None)[:2]
    return (event, first, second) in happened or (event != "behind" and (event, second, first) in happened)


def score(frames: np.ndarray, prompt: str) -> dict[str, float]:
    """What of a prompt a clip shows: the share of its clauses that hold, then each, 0 or 1; for a sweep's --score."""
    holds = judge(read(np.asarray(frames)), parse(prompt))
    each = {name: float(value) for name, value in holds.items()}
    clauses = [value for name, value in each.items() if name != "all"]
    return {"clauses": sum(clauses) / len(clauses), **each}
