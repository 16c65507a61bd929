"""Say in English what a scene shows, in many ways.

    Scene, seed  ->  "a large red circle moves right on a black background"

One family of sentences, those that ask the reader to look, is never drawn unless asked for.

Of every list of words the first is the usual one, drawn six times in ten, so that the plainest sentence is also
the most common.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from videogen.toybox.world.motions import Thing
from videogen.toybox.world.scenes import Scene, relation
from videogen.toybox.world.things import DIGITS, SPRITES, pick

USUAL = 0.6
"""How often the first of several words is taken."""
DROPPED = 0.12
"""How often a size, and how often the background, is left unsaid."""

KIND_WORDS: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "disc"),
    "square": ("square",),
    "triangle": ("triangle",),
    "star": ("star",),
    "heart": ("heart",),
    "diamond": ("diamond",),
    "cross": ("cross", "plus sign"),
    "ring": ("ring",),
    **{
        digit: (f"digit {digit}", f"number {digit}", word, f"digit {word}", f"number {word}")
        for digit, word in zip(
            DIGITS, ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"), strict=True
        )
    },
    **{sprite: (sprite,) for sprite in SPRITES},
    "cat": ("cat", "kitten", "cat face"),
    "dog": ("dog", "puppy", "dog face"),
    "bird": ("bird", "little bird"),
    "car": ("car", "automobile"),
    "rocket": ("rocket", "spaceship"),
    "boat": ("boat", "sailboat", "sailing boat"),
    "moon": ("moon", "crescent moon"),
    "football": ("football", "soccer ball"),
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
    "black": ("on a black background", "against a plain black background", "in front of a black backdrop"),
    "white": ("on a white background", "against a plain white background", "in front of a white backdrop"),
    "grey": ("on a grey background", "on a gray background", "against a plain grey backdrop"),
    "dark blue": ("on a dark blue background", "on a navy background", "against a navy blue backdrop"),
    "teal gradient": (
        "on a teal gradient",
        "against a background that fades from dark to light teal",
        "on a teal gradient background",
    ),
    "sunset": ("against a sunset sky", "in front of a sunset", "against a purple and orange sunset"),
    "checkerboard": ("on a grey checkerboard", "on a checkered background", "over a dark checkerboard pattern"),
    "night sky": ("in a starry night sky", "in a night sky full of stars", "against a dark sky with stars"),
    "sea": ("at sea", "over the sea", "by the ocean", "above blue waves"),
    "grass": ("on the grass", "in a green meadow", "over a grassy field", "above green grass"),
    "desert": ("in the desert", "over desert sand", "above sand dunes"),
    "snow": ("in the snow", "on a snowy field", "over white snow"),
}
"""Where it all is; alone at the head of a sentence, too."""

CAMERA_WORDS: dict[str, tuple[str, ...]] = {
    "still": ("",),
    "pan right": ("the camera pans right", "the camera moves to the right", "camera panning right"),
    "pan left": ("the camera pans left", "the camera moves to the left", "camera panning left"),
    "pan up": ("the camera pans up", "the camera moves upwards", "camera panning up"),
    "pan down": ("the camera pans down", "the camera moves downwards", "camera panning down"),
    "zoom in": ("the camera zooms in", "the camera moves closer", "camera zooming in"),
    "zoom out": ("the camera zooms out", "the camera moves away", "camera zooming out"),
}

RELATION_WORDS: dict[str, tuple[str, ...]] = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under", "beneath"),
}


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
    "jump": ("", "up and down on the spot", "again and again"),
    "roll right": ("right", "to the right", "rightwards", "from left to right"),
    "roll left": ("left", "to the left", "leftwards", "from right to left"),
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
    "jump": (Verb("jumps", "jumping"), Verb("hops", "hopping")),
    **dict.fromkeys(("roll right", "roll left"), (Verb("rolls", "rolling"),)),
    "fade in": (
        Verb("fades in", "fading in"),
        Verb("slowly appears", "slowly appearing"),
        Verb("becomes visible", "becoming visible"),
    ),
    "fade out": (
        Verb("fades out", "fading out"),
        Verb("slowly disappears", "slowly disappearing"),
        Verb("vanishes", "vanishing"),
    ),
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

BEHIND = (Verb("passes", "passing"), Verb("moves", "moving"), Verb("goes", "going"))
TOGETHER: dict[str, tuple[Verb, ...]] = {
    "cross": (
        Verb("pass each other", "passing each other"),
        Verb("cross paths", "crossing paths"),
        Verb("move past each other", "moving past each other"),
    ),
    "collide": (
        Verb("collide", "colliding"),
        Verb("bump into each other", "bumping into each other"),
        Verb("crash into each other and bounce back", "crashing into each other and bouncing back"),
    ),
}

CLIP_PATTERNS = (
    "{finite} {place}",
    "{place}, {finite}",
    "{moving} {place}",
    "{place}, {moving}",
    "a video of {moving} {place}",
    "a short clip of {moving} {place}",
    "there is {moving} {place}",
    "a little film of {moving} {place}",
    "we see {moving} {place}",
)
IMAGE_PATTERNS = (
    "{things} {place}",
    "{place}, {things}",
    "a picture of {things} {place}",
    "an image of {things} {place}",
    "there is {things} {place}",
)
CLIP_PATTERNS_OF_MANY = ("{number} objects {place}: {finite}", "{place}, {number} objects: {moving}")
IMAGE_PATTERNS_OF_MANY = ("{number} objects {place}: {things}",)
NEW_PATTERNS = ("look at {moving} {place}", "watch: {place}, {finite}")
"""The family that training never reads."""

NUMBERS = {2: "two", 3: "three"}


def caption(scene: Scene, seed: int, *, new: bool = False) -> str:
    """One English sentence about a scene, the same for the same seed; new asks for the family held out of training."""
    rng = np.random.default_rng([seed, 1])
    things = [scene.things[i] for i in rng.permutation(len(scene.things))]
    names = {thing: name(thing, rng) for thing in things}
    said = {thing: verb(thing, rng) for thing in things}
    moving, many = scene.num_frames > 1, len(things) > 1
    patterns = CLIP_PATTERNS if moving else IMAGE_PATTERNS
    if many:
        patterns += CLIP_PATTERNS_OF_MANY if moving else IMAGE_PATTERNS_OF_MANY
    pattern = pick(rng, NEW_PATTERNS if new and moving else patterns, first=USUAL)
    together = tell(scene, names, rng)
    conjunction = pick(rng, (" while ", " and "))
    sentence = pattern.format(
        finite=together.finite
        if together
        else join([f"{names[thing]} {said[thing].finite}" for thing in things], conjunction),
        moving=together.participle
        if together
        else join([f"{names[thing]} {said[thing].participle}" for thing in things], " and "),
        things=together.participle if together else join(list(names.values()), " and "),
        number=NUMBERS.get(len(things), "one"),
        place="" if rng.random() < DROPPED else pick(rng, BACKGROUND_WORDS[scene.background], first=USUAL),
    )
    camera = pick(rng, CAMERA_WORDS[scene.camera], first=USUAL)
    return ", ".join(part for part in (tidy(sentence), camera) if part)


def tidy(sentence: str) -> str:
    """A sentence without what an unsaid place leaves behind."""
    return " ".join(sentence.split()).replace(" :", ":").replace("watch: ,", "watch:").removeprefix(",").strip()


def tell(scene: Scene, names: dict[Thing, str], rng: np.random.Generator) -> Verb | None:
    """What two things do together, or where they stay to each other, if there is such a thing to say."""
    if len(scene.things) != 2:
        return None
    first, second = (names[thing] for thing in scene.things)
    if scene.event == "behind":
        way = "from left to right" if scene.things[0].motion == "right" else "from right to left"
        return Verb(*(f"{first} {form} behind {second} {way}" for form in pick(rng, BEHIND)))
    if scene.event:
        both = f"{first} and {second}" if rng.random() < 0.5 else f"{second} and {first}"
        return Verb(*(f"{both} {form}" for form in pick(rng, TOGETHER[scene.event])))
    place = relation(scene)
    if not place or any(thing.motion != "still" for thing in scene.things) or rng.random() < 0.5:
        return None
    words = pick(rng, RELATION_WORDS[place], first=USUAL)
    return Verb(f"{first} is {words} {second}", f"{first} {words} {second}")


def join(parts: Sequence[str], conjunction: str) -> str:
    """Several things said in one breath; more than two are a list."""
    return conjunction.join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]


def name(thing: Thing, rng: np.random.Generator) -> str:
    """What a thing is: "a large red circle"."""
    words = [
        pick(rng, SIZE_WORDS[thing.size], first=USUAL),
        *([pick(rng, COLOUR_WORDS[thing.colour], first=USUAL)] if thing.colour else []),
        pick(rng, KIND_WORDS[thing.kind], first=USUAL),
    ]
    if rng.random() < DROPPED:
        words = words[1:]
    return " ".join(["an" if words[0][0] in "aeiou" and words[0] != "one" else "a", *words])


def verb(thing: Thing, rng: np.random.Generator) -> Verb:
    """What a thing does: "moves to the right"."""
    if thing.motion not in VERBS:  # part of an event, which is told as a whole
        return Verb("", "")
    does = pick(rng, VERBS[thing.motion], first=USUAL)
    way = pick(rng, WAYS.get(thing.motion, ("",)), first=USUAL)
    turn = ("clockwise" if thing.speed > 0 else "counterclockwise") if thing.motion in TURNING else ""
    said = (way, turn if rng.random() < 0.5 else "")
    return Verb(*(" ".join(word for word in (form, *said) if word) for form in does))
