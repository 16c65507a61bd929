"""Hold the shares of captions that a checkpoint follows against the floors of bench mini.

verdicts by set of captions and way of making clips  ->  a row a floor: name, least, value, met, measured
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from videogen.cli.judge import count_as_json
from videogen.toybox.judge import Clauses
from videogen.toybox.judge.scores import Case, Proportion, count_clips
from videogen.toybox.world.things import SHAPES

HELD_OUT, NEW_COMBINATIONS, BY_HAND = "held-out captions", "new combinations", "paraphrases"
NEW_WORDS, BY_OTHERS = "new sentences", "sentences of another hand"
ALL_CAPTIONS = (HELD_OUT, NEW_COMBINATIONS, BY_HAND, BY_OTHERS, NEW_WORDS)
DEFAULT, OWN, AFTER_VAE, SHUFFLED = "default", "the world's own", "after the VAE", "shuffled captions"

Verdict = tuple[Case, dict[str, bool]]
Verdicts = dict[str, dict[str, list[Verdict]]]  # by the set of captions, then by the way of making clips

VAE_FACTS = (
    ("VAE: PSNR on held-out clips, dB", "psnr_db"),
    ("VAE: foreground IoU on held-out clips", "foreground_iou"),
)
"""Reported, with no floor: the judge after the VAE says whether a VAE is good enough."""


class Aim(NamedTuple):
    """A clause, the clips that it applies to, and the least share of them in which it should hold; a way of making."""

    name: str
    least: float
    clause: str
    applies: Callable[[Clauses], bool] = lambda clauses: True
    captions: str = HELD_OUT
    way: str = DEFAULT


def has_colours_of_shapes_only(clauses: Clauses) -> bool:
    """True if a colour is named, and every one is a shape's."""
    coloured = [thing.kind for thing in clauses.things if thing.colour]
    return bool(coloured) and set(coloured) <= set(SHAPES)


def has_one_thing(clauses: Clauses) -> bool:
    """True if one thing is named."""
    return len(clauses.things) == 1


def has_two_things(clauses: Clauses) -> bool:
    """True if two things are named."""
    return len(clauses.things) == 2


AIMS = (
    *(Aim(f"after the VAE: {clause}", 0.99, clause, way=AFTER_VAE) for clause in ("class", "colour", "motion", "all")),
    Aim("background", 0.97, "background"),
    Aim("colour of shapes", 0.95, "colour", has_colours_of_shapes_only),
    Aim("class (shape, digit, sprite)", 0.85, "class"),
    Aim("count (1-2)", 0.90, "count", lambda clauses: has_one_thing(clauses) or has_two_things(clauses)),
    Aim("direction / motion kind", 0.75, "motion"),
    Aim("camera", 0.80, "camera"),
    Aim("all clauses, one object", 0.70, "all", has_one_thing),
    Aim("all clauses, two objects", 0.30, "all", has_two_things),
    Aim("held-out combinations: all clauses, one object", 0.65, "all", has_one_thing, NEW_COMBINATIONS),
    Aim("paraphrases outside the grammar: all clauses, one object", 0.50, "all", has_one_thing, BY_HAND),
    Aim("sentences of another hand: all clauses, one object", 0.45, "all", has_one_thing, BY_OTHERS),
)


def count_aim(aim: Aim, verdicts: Sequence[Verdict]) -> Proportion:
    """Count the clips in which an aim's clause holds, of those that it applies to."""
    applicable = [(case, holds) for case, holds in verdicts if aim.clause in holds and aim.applies(case.clauses)]
    return count_clips([(case.prompt, holds[aim.clause]) for case, holds in applicable])


def compare_with_floors(verdicts: Verdicts, vae: Mapping[str, float]) -> list[dict[str, object]]:
    """Compare every share with its floor; met is None where no clip has the clause, and for what has no floor."""
    comparisons: list[dict[str, object]] = [
        {"name": name, "least": None, "value": vae[fact], "met": None} for name, fact in VAE_FACTS
    ]
    for aim in AIMS:
        counts = {way: count_aim(aim, of_way) for way, of_way in verdicts[aim.captions].items()}
        share = counts[aim.way].share if counts[aim.way].num else None
        measured = {way: count_as_json(number) for way, number in counts.items()}
        met = None if share is None else share >= aim.least
        comparisons.append({"name": aim.name, "least": aim.least, "value": share, "met": met, "measured": measured})
    return comparisons
