"""Describe in English what a scene shows, in many ways.

    Scene, seed  ->  "a large red circle moves right on a black background"

The first of every list of words is the usual one, sampled six times in ten, so that the plainest sentence is also the
most common. One family of patterns ("look at ...", "watch: ...") is held out of training and used on request only.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from videogen.toybox.world.motions import Thing
from videogen.toybox.world.scenes import Scene, spatial_relation
from videogen.toybox.world.things import COLOURS, DIGITS, SHAPES, SPRITES, sample_choice

USUAL_PROBABILITY = 0.6
"""Probability of the first of several words or patterns."""
OMISSION_PROBABILITY = 0.12
"""Probability that a caption omits a thing's size, and that it omits the background."""

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
KIND_WORDS: dict[str, tuple[str, ...]] = {
    **{shape: (shape,) for shape in SHAPES},
    "circle": ("circle", "disc"),
    "cross": ("cross", "plus sign"),
    **{
        digit: (f"digit {digit}", f"number {digit}", word, f"digit {word}", f"number {word}")
        for digit, word in zip(DIGITS, DIGIT_NAMES, strict=True)
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

COLOUR_WORDS: dict[str, tuple[str, ...]] = {**{colour: (colour,) for colour in COLOURS}, "purple": ("purple", "violet")}

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
"""Adverbial phrases, which may also begin a sentence."""

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
    """A verb or clause in two forms: "moves", and "moving" for use within a noun phrase."""

    finite: str
    participle: str


DIRECTION_WORDS: dict[str, tuple[str, ...]] = {
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
"""Adverbials that complete a verb; "still", "fade in", "fade out", "grow" and "shrink" need none."""

ROTATING_MOTIONS = frozenset({"spin", "orbit"})
"""Motions for which a caption may add "clockwise" or "counterclockwise"."""

MOVING_VERBS = (
    Verb("moves", "moving"), Verb("glides", "gliding"), Verb("drifts", "drifting"),
    Verb("slides", "sliding"), Verb("travels", "travelling"),
)  # fmt: skip
BOUNCING_VERBS = (Verb("bounces", "bouncing"), Verb("goes", "going"), Verb("keeps moving", "that keeps moving"))
MOTION_VERBS: dict[str, tuple[Verb, ...]] = {
    "still": (
        Verb("stays still", "staying still"),
        Verb("does not move", "not moving"),
        Verb("rests", "resting"),
        Verb("sits still", "sitting still"),
        Verb("stays in place", "staying in place"),
    ),
    **dict.fromkeys(("right", "left", "up", "down", "up right", "up left", "down right", "down left"), MOVING_VERBS),
    **dict.fromkeys(("bounce up and down", "bounce side to side"), BOUNCING_VERBS),
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

BEHIND_VERBS = (Verb("passes", "passing"), Verb("moves", "moving"), Verb("goes", "going"))
JOINT_VERBS: dict[str, tuple[Verb, ...]] = {
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
    "{finite} {place}", "{place}, {finite}", "{moving} {place}", "{place}, {moving}",
    "a video of {moving} {place}", "a short clip of {moving} {place}", "there is {moving} {place}",
    "a little film of {moving} {place}", "we see {moving} {place}",
)  # fmt: skip
IMAGE_PATTERNS = (
    "{things} {place}", "{place}, {things}",
    "a picture of {things} {place}", "an image of {things} {place}", "there is {things} {place}",
)  # fmt: skip
CLIP_PATTERNS_OF_MANY = ("{number} objects {place}: {finite}", "{place}, {number} objects: {moving}")
IMAGE_PATTERNS_OF_MANY = ("{number} objects {place}: {things}",)
HELD_OUT_PATTERNS = ("look at {moving} {place}", "watch: {place}, {finite}")
"""Patterns that are held out of training."""

NUMBER_WORDS = {2: "two", 3: "three"}


def caption(scene: Scene, seed: int, *, new: bool = False) -> str:
    """Describe a scene in one English sentence fixed by the seed; new gives a clip a pattern held out of training."""
    rng = np.random.default_rng([seed, 1])
    things = [scene.things[i] for i in rng.permutation(len(scene.things))]
    subjects = {thing: noun_phrase(thing, rng) for thing in things}
    verbs = {thing: verb_phrase(thing, rng) for thing in things}
    moving, many = scene.num_frames > 1, len(things) > 1
    patterns = CLIP_PATTERNS if moving else IMAGE_PATTERNS
    if many:
        patterns += CLIP_PATTERNS_OF_MANY if moving else IMAGE_PATTERNS_OF_MANY
    pattern = sample_choice(rng, HELD_OUT_PATTERNS if new and moving else patterns, first_probability=USUAL_PROBABILITY)
    joint = joint_clause(scene, subjects, rng)
    conjunction = sample_choice(rng, (" while ", " and "))
    clause = joint or Verb(
        join_phrases([f"{subjects[thing]} {verbs[thing].finite}" for thing in things], conjunction),
        join_phrases([f"{subjects[thing]} {verbs[thing].participle}" for thing in things], " and "),
    )
    omits_place = rng.random() < OMISSION_PROBABILITY
    sentence = pattern.format(
        finite=clause.finite,
        moving=clause.participle,
        things=joint.participle if joint else join_phrases(list(subjects.values()), " and "),
        number=NUMBER_WORDS.get(len(things), "one"),
        place="" if omits_place else sample_word(BACKGROUND_WORDS[scene.background], rng),
    )
    # An omitted place leaves stray spaces and punctuation behind.
    sentence = " ".join(sentence.split()).replace(" :", ":").replace("watch: ,", "watch:").removeprefix(",").strip()
    return ", ".join(filter(None, (sentence, sample_word(CAMERA_WORDS[scene.camera], rng))))


def joint_clause(scene: Scene, subjects: dict[Thing, str], rng: np.random.Generator) -> Verb | None:
    """Describe an event or spatial relation of two things in one clause, or return None if there is none to describe.

    A relation is described half of the time, and only between things that stay still.
    """
    if len(scene.things) != 2:
        return None
    first, second = (subjects[thing] for thing in scene.things)
    if scene.event == "behind":
        direction = "from left to right" if scene.things[0].motion == "right" else "from right to left"
        return Verb(*(f"{first} {form} behind {second} {direction}" for form in sample_choice(rng, BEHIND_VERBS)))
    if scene.event:
        pair = f"{first} and {second}" if rng.random() < 0.5 else f"{second} and {first}"
        return Verb(*(f"{pair} {form}" for form in sample_choice(rng, JOINT_VERBS[scene.event])))
    relation = spatial_relation(scene)
    if not relation or any(thing.motion != "still" for thing in scene.things) or rng.random() < 0.5:
        return None
    words = sample_word(RELATION_WORDS[relation], rng)
    return Verb(f"{first} is {words} {second}", f"{first} {words} {second}")


def join_phrases(phrases: Sequence[str], conjunction: str) -> str:
    """Join phrases by commas, and the last by a conjunction."""
    return conjunction.join([", ".join(phrases[:-1]), phrases[-1]]) if len(phrases) > 1 else phrases[0]


def noun_phrase(thing: Thing, rng: np.random.Generator) -> str:
    """Name a thing, such as "a large red circle"."""
    words = [
        sample_word(SIZE_WORDS[thing.size], rng),
        *([sample_word(COLOUR_WORDS[thing.colour], rng)] if thing.colour else []),
        sample_word(KIND_WORDS[thing.kind], rng),
    ]
    if rng.random() < OMISSION_PROBABILITY:
        words = words[1:]
    return " ".join(["an" if words[0][0] in "aeiou" and words[0] != "one" else "a", *words])


def verb_phrase(thing: Thing, rng: np.random.Generator) -> Verb:
    """Describe the motion of a thing, such as "moves to the right"."""
    if thing.motion not in MOTION_VERBS:  # The motion is part of an event, which joint_clause describes as a whole.
        return Verb("", "")
    verb = sample_choice(rng, MOTION_VERBS[thing.motion], first_probability=USUAL_PROBABILITY)
    direction = sample_word(DIRECTION_WORDS.get(thing.motion, ("",)), rng)
    rotation = ("clockwise" if thing.speed > 0 else "counterclockwise") if thing.motion in ROTATING_MOTIONS else ""
    adverbials = (direction, rotation if rng.random() < 0.5 else "")
    return Verb(*(" ".join(filter(None, (form, *adverbials))) for form in verb))


def sample_word(words: Sequence[str], rng: np.random.Generator) -> str:
    """Sample one of several words that mean the same, the usual one first."""
    return sample_choice(rng, words, first_probability=USUAL_PROBABILITY)
