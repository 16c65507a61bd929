"""Compare what was detected in a clip with the clauses of its caption.

Found, Clauses  ->  {"class": True, "colour": False, ..., "all": False}: the clauses that were stated, and all together
"""

from __future__ import annotations

from itertools import permutations

import numpy as np

from videogen.toybox.judge.caption_parser import Clauses, Said, parse
from videogen.toybox.judge.observations import Found, FoundThing
from videogen.toybox.judge.read_clip import read

CLAUSE_MEANINGS: dict[str, str] = {
    "present": "every named thing has one in the clip of its class or its colour",
    "count": "there are as many things as are named",
    "class": "shapes, digits and sprites are of the named class",
    "colour": "things have the stated colours",
    "size": "small and large",
    "motion": "direction or kind of motion, and clockwise where that is stated",
    "relation": "the first thing is where the caption puts it, seen from the second",
    "event": "two things pass each other, collide, or one passes behind the other",
    "background": "what is behind all things",
    "camera": "pans and zooms",
    "all": "every stated clause",
}
CLAUSES: tuple[str, ...] = tuple(CLAUSE_MEANINGS)
"""Every clause, in the order of a table."""
MATCH_WEIGHTS = {"kind": 2.5, "colour": 2.0, "size": 1.0, "motion": 1.0}
"""How much an attribute that agrees counts when named and detected things are matched: looks before motion."""
ANY_THING = 0.1  # a named thing is rather matched with some thing than with none


def judge(found: Found, clauses: Clauses) -> dict[str, bool]:
    """Judge which of the stated clauses hold."""
    matches = match_things(found, clauses)
    pairs = list(zip(clauses.things, (None if i is None else found.things[i] for i in matches), strict=True))
    holds = {
        "present": all(thing and is_like(stated, thing) for stated, thing in pairs),
        "count": len(found.things) == len(clauses.things),
        "class": all(thing and thing.kind == stated.kind for stated, thing in pairs),
    }
    for name in ("colour", "size", "motion"):
        constrained = [(stated, thing) for stated, thing in pairs if getattr(stated, name)]
        if constrained:
            holds[name] = all(thing and agrees(stated, thing, name) for stated, thing in constrained)
    if clauses.relation:
        holds["relation"] = has_relation(clauses.relation, *(thing for _, thing in pairs[:2]))
    if clauses.event:
        holds["event"] = has_event(found, clauses.event, matches)
    if clauses.background:
        holds["background"] = found.background == clauses.background
    if clauses.camera:
        holds["camera"] = found.camera.name == clauses.camera
    verdict = {name: bool(value) for name, value in holds.items()}
    return verdict | {"all": all(verdict.values())}


def is_like(stated: Said, thing: FoundThing) -> bool:
    """True if a thing has the named class or the stated colour."""
    return thing.kind == stated.kind or (stated.colour != "" and thing.colour == stated.colour)


def agrees(stated: Said, thing: FoundThing, attribute: str) -> bool:
    """True if an attribute of a thing is as stated; a motion includes its sense, where that is stated."""
    same = getattr(stated, attribute) == getattr(thing, attribute)
    return same and (attribute != "motion" or stated.sense in ("", thing.sense))


def match_things(found: Found, clauses: Clauses) -> tuple[int | None, ...]:
    """Match every named thing with the number of a detected thing or None, so that most attributes agree."""
    numbers = [*range(len(found.things)), *[None] * len(clauses.things)]

    def agreement(matches: tuple[int | None, ...]) -> float:
        things = ((stated, found.things[i]) for stated, i in zip(clauses.things, matches, strict=True) if i is not None)
        return sum(
            ANY_THING
            + sum(
                weight
                for name, weight in MATCH_WEIGHTS.items()
                if getattr(stated, name) and agrees(stated, thing, name)
            )
            for stated, thing in things
        )

    return max(dict.fromkeys(permutations(numbers, len(clauses.things))), key=agreement)


def has_relation(relation: str, first: FoundThing | None = None, second: FoundThing | None = None) -> bool:
    """True if the first thing is left of, right of, above or below the second in the first frame."""
    if first is None or second is None:
        return False
    dx, dy = (float(a[0] - b[0]) for a, b in zip(first.pose[:2], second.pose[:2], strict=True))
    along, across = (dx, dy) if relation in ("left", "right") else (dy, dx)
    return abs(along) > abs(across) and (along > 0) == (relation in ("right", "below"))


def has_event(found: Found, event: str, matches: tuple[int | None, ...]) -> bool:
    """True if the matched things take part in the event; their order matters for "behind" only."""
    first, second = (*matches, None, None)[:2]
    return (event, first, second) in found.events or (event != "behind" and (event, second, first) in found.events)


def score(frames: np.ndarray, prompt: str) -> dict[str, float]:
    """Score a clip for a sweep's --score: the share of the prompt's clauses that hold, then each of them as 0 or 1."""
    holds = judge(read(np.asarray(frames)), parse(prompt))
    values = {name: float(value) for name, value in holds.items()}
    clauses = [value for name, value in values.items() if name != "all"]
    return {"clauses": sum(clauses) / len(clauses), **values}
