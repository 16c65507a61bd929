"""Say in English what a scene shows, in many ways.

    Scene, seed  ->  "a large red circle moves right on a black background"

Of every list of words the first is the usual one, drawn six times in ten, so that the plainest sentence is also
the most common.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from videogen.toybox.scenes import Scene, Thing, pick

USUAL = 0.6
"""How often the first of several words is taken."""
DROPPED = 0.12
"""How often a size, and how often the background, is left unsaid."""

SHAPE_WORDS: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "disc"),
    "square": ("square",),
    "triangle": ("triangle",),
    "star": ("star",),
    "heart": ("heart",),
    "diamond": ("diamond",),
    "cross": ("cross", "plus sign"),
    "ring": ("ring",),
}

COLOUR_WORDS: dict[str, tuple[str, ...]] = {
    "red": ("red",),
    "green": ("green",),
    "blue": ("blue",),
    "yellow": ("yellow",),
    "orange": ("orange",),
    "purple": ("purple", "violet"),
    "white": ("white",),
    "pink": ("pink",),
}

SIZE_WORDS: dict[str, tuple[str, ...]] = {"small": ("small", "little", "tiny"), "large": ("large", "big")}

BACKGROUND_WORDS: dict[str, tuple[str, ...]] = {
    "black": ("a black background", "a plain black background", "a black backdrop"),
    "white": ("a white background", "a plain white background", "a white backdrop"),
    "grey": ("a grey background", "a gray background", "a plain grey backdrop"),
    "dark blue": ("a dark blue background", "a navy background", "a navy blue backdrop"),
    "gradient": ("a teal gradient", "a background that fades from dark to light teal", "a teal gradient background"),
    "checkerboard": ("a grey checkerboard", "a checkered background", "a dark checkerboard pattern"),
    "night sky": ("a starry night sky", "a night sky full of stars", "a dark sky with stars"),
}

PREPOSITIONS = ("on", "against", "in front of", "over")


class Verb(NamedTuple):
    """A verb as in "it moves" and as in "it is moving"."""

    finite: str
    participle: str


WAYS: dict[str, tuple[str, ...]] = {
    "right": ("right", "to the right", "rightwards", "from left to right"),
    "left": ("left", "to the left", "leftwards", "from right to left"),
    "up": ("up", "upwards", "towards the top"),
    "down": ("down", "downwards", "towards the bottom"),
    "up right": ("up and to the right", "diagonally up and right", "towards the upper right"),
    "up left": ("up and to the left", "diagonally up and left", "towards the upper left"),
    "down right": ("down and to the right", "diagonally down and right", "towards the lower right"),
    "down left": ("down and to the left", "diagonally down and left", "towards the lower left"),
    "bounce up and down": ("up and down", "up and down again and again"),
    "bounce side to side": ("side to side", "from side to side", "left and right", "back and forth sideways"),
    "orbit": ("in a circle", "in circles", "along a circular path"),
    "spin": ("", "in place", "on the spot"),
}
"""Where a motion leads; "still", "grow" and "shrink" lead nowhere."""

TURNING = frozenset({"spin", "orbit"})
"""Motions of which a caption may say that they go clockwise or counterclockwise."""

GOING = (
    Verb("moves", "moving"),
    Verb("glides", "gliding"),
    Verb("drifts", "drifting"),
    Verb("slides", "sliding"),
    Verb("travels", "travelling"),
)
BOUNCING = (Verb("bounces", "bouncing"), Verb("goes", "going"), Verb("keeps moving", "that keeps moving"))
VERBS: dict[str, tuple[Verb, ...]] = {
    "still": (
        Verb("stays still", "staying still"),
        Verb("does not move", "not moving"),
        Verb("rests", "resting"),
        Verb("sits still", "sitting still"),
        Verb("stays in place", "staying in place"),
    ),
    **dict.fromkeys(("right", "left", "up", "down", "up right", "up left", "down right", "down left"), GOING),
    **dict.fromkeys(("bounce up and down", "bounce side to side"), BOUNCING),
    "spin": (Verb("spins", "spinning"), Verb("rotates", "rotating"), Verb("turns", "turning")),
    "orbit": (Verb("moves", "moving"), Verb("travels", "travelling"), Verb("goes", "going")),
    "grow": (
        Verb("grows", "growing"),
        Verb("gets bigger", "getting bigger"),
        Verb("expands", "expanding"),
        Verb("becomes larger", "becoming larger"),
    ),
    "shrink": (
        Verb("shrinks", "shrinking"),
        Verb("gets smaller", "getting smaller"),
        Verb("contracts", "contracting"),
        Verb("becomes smaller", "becoming smaller"),
    ),
}

CLIP_PATTERNS = (
    "{finite} {place}",
    "{place}, {finite}",
    "{moving} {place}",
    "{place}, {moving}",
    "a video of {moving} {place}",
    "a short clip of {moving} {place}",
    "{background} with {moving}",
    "{background}, where {finite}",
    "there is {moving} {place}",
)
BARE_CLIP_PATTERNS = ("{finite}", "{moving}", "a video of {moving}", "a short clip of {moving}", "there is {moving}")
IMAGE_PATTERNS = (
    "{things} {place}",
    "{place}, {things}",
    "a picture of {things} {place}",
    "an image of {things} {place}",
    "{background} with {things}",
    "there is {things} {place}",
)
BARE_IMAGE_PATTERNS = ("{things}", "a picture of {things}", "an image of {things}", "there is {things}")
TWO_CLIP_PATTERNS = ("two objects {place}: {finite}", "two shapes {place}: {moving}", "{place}, two objects: {finite}")
BARE_TWO_CLIP_PATTERNS = ("two objects: {finite}", "two shapes: {moving}")
TWO_IMAGE_PATTERNS = ("two objects {place}: {things}", "two shapes {place}: {things}")
BARE_TWO_IMAGE_PATTERNS = ("two objects: {things}", "two shapes: {things}")

PATTERNS: dict[tuple[bool, int, bool], tuple[str, ...]] = {
    (True, 1, True): CLIP_PATTERNS,
    (True, 1, False): BARE_CLIP_PATTERNS,
    (True, 2, True): CLIP_PATTERNS + TWO_CLIP_PATTERNS,
    (True, 2, False): BARE_CLIP_PATTERNS + BARE_TWO_CLIP_PATTERNS,
    (False, 1, True): IMAGE_PATTERNS,
    (False, 1, False): BARE_IMAGE_PATTERNS,
    (False, 2, True): IMAGE_PATTERNS + TWO_IMAGE_PATTERNS,
    (False, 2, False): BARE_IMAGE_PATTERNS + BARE_TWO_IMAGE_PATTERNS,
}
"""By whether there is motion, the number of things, and whether the background is said."""


def caption(scene: Scene, seed: int) -> str:
    """One English sentence about a scene, the same for the same seed."""
    rng = np.random.default_rng([seed, 1])
    things = [scene.things[i] for i in rng.permutation(len(scene.things))]
    background = pick(rng, BACKGROUND_WORDS[scene.background], first=USUAL)
    names = [name(thing, rng) for thing in things]
    verbs = [verb(thing, rng) for thing in things]
    moving, said = scene.num_frames > 1, rng.random() >= DROPPED
    pattern = pick(rng, PATTERNS[moving, len(things), said], first=USUAL)
    return pattern.format(
        finite=join([f"{a} {v.finite}" for a, v in zip(names, verbs, strict=True)], pick(rng, (" while ", " and "))),
        moving=join([f"{a} {v.participle}" for a, v in zip(names, verbs, strict=True)], " and "),
        things=join(names, " and "),
        place=f"{pick(rng, PREPOSITIONS, first=USUAL)} {background}",
        background=background,
    )


def join(parts: Sequence[str], conjunction: str) -> str:
    """Several things said in one breath; more than two are a list."""
    return conjunction.join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]


def name(thing: Thing, rng: np.random.Generator) -> str:
    """What a thing is: "a large red circle"."""
    words = [
        pick(rng, SIZE_WORDS[thing.size], first=USUAL),
        pick(rng, COLOUR_WORDS[thing.colour], first=USUAL),
        pick(rng, SHAPE_WORDS[thing.shape], first=USUAL),
    ]
    if rng.random() < DROPPED:
        words = words[1:]
    return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])


def verb(thing: Thing, rng: np.random.Generator) -> Verb:
    """What a thing does: "moves to the right"."""
    does = pick(rng, VERBS[thing.motion], first=USUAL)
    way = pick(rng, WAYS.get(thing.motion, ("",)), first=USUAL)
    turn = ("clockwise" if thing.speed > 0 else "counterclockwise") if thing.motion in TURNING else ""
    said = (way, turn if rng.random() < 0.5 else "")
    return Verb(*(" ".join(word for word in (form, *said) if word) for form in does))
