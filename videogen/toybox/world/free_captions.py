"""Describe a scene in free English: far more words and sentences than the plain captions have.

    Scene, seed  ->  "could you show a wee crimson hoop drifting off to the left, with nothing but black behind it?"

Half of the captions state everything that a scene shows, the others leave clauses out. The judge cannot read them: they
are for training, beside captions.caption. Never does one begin with "look at" or "watch", which are held out there.
"""

from __future__ import annotations

import re
from random import Random
from typing import NamedTuple

from videogen.toybox.world.free_clauses import (
    Clause,
    Said,
    join_things,
    keywords,
    say_event,
    say_relation,
    things_first,
)
from videogen.toybox.world.phrases import Words, without_article
from videogen.toybox.world.scenes import Scene, spatial_relation

COMPLETE_PROBABILITY = 0.5
MISSPELLING_PROBABILITY = 0.06
CASES = (
    ("lower", 0.46), ("sentence.", 0.78), ("sentence", 0.86), ("lower.", 0.93), ("Title", 0.97), ("UPPER", 1.0),
)  # fmt: skip
"""Cumulative shares of captions in lower case, in sentence case with and without a full stop, and so on."""
SMALL_WORDS = frozenset(
    ("a", "an", "and", "as", "at", "by", "in", "is", "of", "on", "or", "the", "to", "with", "while")
)
"""Words that a title leaves in lower case."""


class Stated(NamedTuple):
    """What a caption states: the things with their attributes, and whether it names background and camera."""

    things: list[Said]
    background: bool
    camera: bool


def free_caption(scene: Scene, seed: int) -> str:
    """Describe a scene in free English, fixed by the scene and the seed; 6% have one misspelt word."""
    words = Words(Random(seed))
    text = change_case(free_sentence(scene, words), words)
    return misspell(text, words) if words.chance(MISSPELLING_PROBABILITY) else text


def free_sentence(scene: Scene, words: Words) -> str:
    """Describe a scene in free English, in lower case but for names, without a last full stop."""
    stated = choose_clauses(scene, words)
    form = choose_form(scene, stated, words)
    fields = setting(scene, stated, words)
    if form == "keywords":
        return keywords(stated.things, fields, words, background=stated.background, camera=stated.camera)
    if form == "sequence":
        inline = bool(stated.background) and words.chance(0.5)
        text = things_first(stated.things, f" {fields['place']}" if inline else "", words)
        return add_setting(text, fields, words, background=stated.background and not inline, camera=stated.camera)
    fronted = form in ("finite", "nominal") and (stated.background or stated.camera) and words.chance(0.18)
    still = scene.num_frames == 1
    name = ("image front" if still else f"front {form}") if fronted else ("image" if still else form)
    outer = words.pick("outer", name)
    clause = say_clause(
        scene, stated, words, form=form, bare=outer == "{}" and words.chance(0.3), sentences=outer == "{}"
    )
    text = getattr(clause, form)
    if not fronted:
        return add_setting(text, fields, words, background=stated.background, camera=stated.camera, outer=outer)
    front = "camera" if stated.camera and (not stated.background or words.chance(0.5)) else "background"
    pattern = words.pick("shot" if front == "camera" else "ground", "front")
    text = pattern.replace("{}", outer.replace("{}", text)).format(**fields)
    return add_setting(
        text, fields, words,
        background=stated.background and front != "background", camera=stated.camera and front != "camera",
    )  # fmt: skip


def choose_clauses(scene: Scene, words: Words) -> Stated:
    """Choose what to state: everything half of the time, else a size, a colour, a motion and the like drop out."""
    complete, moving = words.chance(COMPLETE_PROBABILITY), scene.num_frames > 1
    kinds = [thing.kind for thing in scene.things]
    silent = int(words.random() * len(kinds)) if not complete and words.chance(0.07) else -1
    things = [
        Said(
            thing,
            size=complete or words.chance(0.4),
            colour=bool(thing.colour) and (complete or kinds.count(thing.kind) > 1 or words.chance(0.8)),
            motion=moving and i != silent and not (thing.motion == "still" and not complete and words.chance(0.15)),
            sense=thing.motion in ("spin", "orbit") and (complete or words.chance(0.35)),
        )
        for i, thing in enumerate(scene.things)
    ]
    background = complete or words.chance(0.6)
    camera = scene.camera != "still" and (complete or words.chance(0.75))
    return Stated(things, background, camera)


def choose_form(scene: Scene, stated: Stated, words: Words) -> str:
    """Choose the form of a sentence among those that can express the scene."""
    number = words.random()
    if scene.num_frames == 1:
        return "keywords" if number < 0.14 else "nominal"
    if scene.event:
        return "finite" if number < 0.45 else "nominal" if number < 0.8 else "base" if number < 0.92 else "to"
    if not all(said.motion for said in stated.things):
        return "keywords" if number < 0.14 else "nominal"
    limits = (("keywords", 0.12), ("sequence", 0.28), ("finite", 0.53), ("nominal", 0.84), ("base", 0.93), ("to", 1.0))
    return next(form for form, limit in limits if number < limit)


def say_clause(scene: Scene, stated: Stated, words: Words, *, form: str, bare: bool, sentences: bool) -> Clause:
    """Say what the things do, together where they share an event or, at rest, half of the time by their relation."""
    if scene.event:
        return say_event(scene, stated.things, words, bare=bare)
    relation = spatial_relation(scene)
    at_rest = all(said.thing.motion == "still" for said in stated.things)
    if relation and at_rest and form in ("finite", "nominal") and words.chance(0.5):
        return say_relation(stated.things, relation, words, bare=bare and form == "nominal")
    return join_things(stated.things, words, form=form, bare=bare, sentences=sentences)


OVERLAPPING = ("over", "above", "under", "before", "in front", "by ", "behind", "among", "amid")
"""Beginnings of places that could be read as a relation of two things."""


def setting(scene: Scene, stated: Stated, words: Words) -> dict[str, str]:
    """Word the background and the camera in every form that a pattern may ask for."""
    pronoun, it_is = ("it", "it is") if len(stated.things) == 1 else ("them", "they are")
    place = words.pick("place", scene.background)
    while len(stated.things) > 1 and place.startswith(OVERLAPPING):
        place = words.pick("place", scene.background)
    spot = place
    while spot.startswith(("with ", "surrounded")):
        spot = words.pick("place", scene.background)
    bare = noun = words.pick("noun", scene.background)
    while "background" in noun or "backdrop" in noun:  # "with a black backdrop in the background" says it twice.
        noun = words.pick("noun", scene.background)
    fields = {
        "it": pronoun,
        "it_is": it_is,
        "place": place.replace("{it}", pronoun),
        "spot": spot.replace("{it}", pronoun),
        "noun": noun,
        "bare": without_article(bare),
        "what": words.pick("what", scene.background),
    }
    if stated.camera:
        subject, verb = words.pick("camera", "subjects"), words.verb("camera", scene.camera)
        fields["camera"] = f"{subject} {verb.of_several().finite if subject == 'we' else verb.finite}"
        fields["going"] = f"{'the camera' if subject == 'we' else subject} {verb.participle}"
        fields["tag"] = words.pick("camera", f"tag {scene.camera}")
    return fields


def add_setting(
    text: str, fields: dict[str, str], words: Words, *, background: bool, camera: bool, outer: str = "{}"
) -> str:
    """Add background and camera to a text, within its sentence or as sentences of their own, and wrap it in outer."""
    tails = []
    for section, is_stated in (("ground", background), ("shot", camera)):
        if not is_stated:
            continue
        if tails or words.chance(0.16):
            tails.append(words.pick(section, "sentence").format(**fields))
        else:
            text += words.pick(section, "suffix").format(**fields)
    text = outer.replace("{}", text)
    for tail in tails:
        text += f"{'' if text.endswith('?') else '.'} {tail}"
    return text


def change_case(text: str, words: Words) -> str:
    """Write a text in lower case, as a sentence, as a title or in capitals, and end it with or without a full stop."""
    number = words.random()
    style = next((style for style, limit in CASES if number < limit), "lower")
    stop = "." if style.endswith(".") and not text.endswith("?") else ""
    if style.startswith("lower"):
        return text.lower() + stop
    if style == "UPPER":
        return text.upper()
    if style == "Title":
        return re.sub(
            r"(^|[.:?!/|-] )?(?<![\w'-])([a-z])([\w'-]*)",
            lambda match: match[0] if not match[1] and match[2] + match[3] in SMALL_WORDS and match.start()
            else (match[1] or "") + match[2].upper() + match[3],
            text,
        )  # fmt: skip
    return re.sub(r"(^|[.?!] )([a-z])", lambda match: match[1] + match[2].upper(), text) + stop


def misspell(text: str, words: Words) -> str:
    """Swap two letters of one longer word, or drop or double one of its letters."""
    spans = [match.span() for match in re.finditer(r"[A-Za-z]{5,}", text)]
    if not spans:
        return text
    start, end = words.choose(spans)
    at = start + 1 + int(words.random() * (end - start - 2))
    kind = words.choose(("swap", "drop", "double"))
    if kind == "swap" and text[at] != text[at + 1]:
        return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    return text[:at] + (text[at + 1 :] if kind == "drop" else text[at] + text[at:])
