"""Free captions: many words and sentences, all true of the scene, and none of those that test sets hold out."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

from tests.scenes import SCENE
from videogen.toybox import Scene
from videogen.toybox.world.events import EVENTS
from videogen.toybox.world.free_captions import MISSPELLING_PROBABILITY, free_caption, free_sentence, misspell
from videogen.toybox.world.motions import MOTIONS
from videogen.toybox.world.phrases import Words, expand, inflect, tables, verb_groups, wordings
from videogen.toybox.world.scenes import CAMERAS
from videogen.toybox.world.things import BACKGROUNDS, COLOURS, KINDS, SIZES

HELD_OUT_FILES = ("paraphrases.jsonl", "sentences.jsonl")
ATTRIBUTES = {
    "kinds": KINDS, "colours": COLOURS, "sizes": SIZES, "place": BACKGROUNDS,
    "camera": [camera for camera in CAMERAS if camera != "still"],
}  # fmt: skip


def plain(text: str) -> str:
    """Lower a text's case and take its punctuation out."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def held_out_sentences() -> set[str]:
    paths = [Path(__file__).with_name(name) for name in HELD_OUT_FILES]
    lines = [line for path in paths if path.is_file() for line in path.read_text(encoding="utf-8").splitlines()]
    return {plain(json.loads(line)["prompt"]) for line in lines}


def sentence(scene: Scene, seed: int) -> str:
    """Caption a scene before its case is changed and a word misspelt."""
    return free_sentence(scene, Words(Random(seed)))


def check_captions(scenes: list[Scene], num_captions: int) -> None:
    """Assert that of so many captions all but one in 200 differ, and that none is or begins like a held-out one."""
    captions = [free_caption(scenes[seed % len(scenes)], seed) for seed in range(num_captions)]
    assert len(set(captions)) >= 0.995 * num_captions
    assert not {plain(text) for text in captions} & held_out_sentences()
    assert not [text for text in captions if plain(text).startswith(("look at", "watch"))]


def test_free_captions_differ_and_are_no_held_out_sentences(scenes: list[Scene]) -> None:
    check_captions(scenes, 2000)


@pytest.mark.slow
def test_20000_free_captions_differ_and_are_no_held_out_sentences(scenes: list[Scene]) -> None:
    check_captions(scenes, 20_000)


def test_the_same_scene_and_seed_give_the_same_caption(scenes: list[Scene]) -> None:
    assert [free_caption(scene, 7) for scene in scenes[:300]] == [free_caption(scene, 7) for scene in scenes[:300]]
    assert len({free_caption(SCENE, seed) for seed in range(1000)}) > 950


def test_every_value_of_the_world_has_wordings() -> None:
    for section, values in ATTRIBUTES.items():
        assert {value for value in values if len(wordings().get((section, value), ())) < 10} == set(), section
    for motion in MOTIONS:
        for kind in KINDS:
            assert sum(len(group.verbs) for group in verb_groups(motion, kind)) >= 10, (motion, kind)
    assert set(EVENTS) <= {name for section, name in wordings() if section == "events"}


def alternatives(section: str, value: str) -> list[str]:
    return [text for entry in wordings()[section, value] for text in entry]


def test_a_free_caption_names_the_kind_of_every_thing(scenes: list[Scene]) -> None:
    assert {thing.kind for scene in scenes for thing in scene.things} == set(KINDS)
    for seed, scene in enumerate(scenes):
        text = f" {sentence(scene, seed)} ".replace(",", " ")
        for thing in scene.things:
            assert any(name in text for name in (thing.kind, *alternatives("kinds", thing.kind))), (thing.kind, text)


@pytest.mark.parametrize("section", ["colours", "sizes", "place", "camera"])
def test_captions_use_the_wordings_of_every_value(section: str, scenes: list[Scene]) -> None:
    texts = {seed: sentence(scene, seed) for seed, scene in enumerate(scenes)}
    for value in ATTRIBUTES[section]:
        if section == "camera":
            where = [seed for seed, scene in enumerate(scenes) if scene.camera == value]
            name = f"tag {value}"
        else:
            key = {"colours": "colour", "sizes": "size"}.get(section, "")
            where = [
                seed for seed, scene in enumerate(scenes)
                if (value == scene.background if not key else any(getattr(x, key) == value for x in scene.things))
            ]  # fmt: skip
            name = value
        used = {words for words in alternatives(section, name) for seed in where if words in texts[seed]}
        assert len(used) > 5, (section, value)


@pytest.mark.parametrize("motion", MOTIONS)
def test_nine_in_ten_clips_of_one_thing_state_its_motion_by_one_of_its_verbs(motion: str) -> None:
    thing = replace(SCENE.things[0], kind="star", motion=motion)
    verbs = {
        " ".join(form.split()[:2])
        for group in verb_groups(motion, "star") for entry in group.verbs for verb in entry for form in verb
    }  # fmt: skip
    verbs |= set(alternatives("motion_adjectives", motion)) if ("motion_adjectives", motion) in wordings() else set()
    texts = [sentence(replace(SCENE, things=(thing,)), seed) for seed in range(200)]
    assert sum(any(verb in text for verb in verbs) for text in texts) >= 180


def test_captions_of_images_state_no_motion(scenes: list[Scene]) -> None:
    for seed, scene in enumerate(scenes):
        for motion in {thing.motion for thing in scene.things} & {"spin", "jump", "grow", "shrink", "orbit", "fade in"}:
            forms = {
                form.split()[0]
                for group in verb_groups(motion, "circle") for entry in group.verbs for verb in entry
                for form in (verb.finite, verb.participle)
            } - {"is", "in", "goes", "showing", "shows", "drawing"}  # fmt: skip
            image = replace(scene, num_frames=1, camera="still", event="")
            assert not forms & set(sentence(image, seed).split()), sentence(image, seed)


def test_articles_spaces_and_punctuation_are_right_before_a_misspelling(scenes: list[Scene]) -> None:
    for seed, scene in enumerate(scenes):
        text = sentence(scene, seed)
        assert not re.search(r"  | [,.;:?]|[{}()]{2}|[{}]|,,|\.\.|^[,.]", text), text
        for article, word in pairwise(text.replace(",", "").split()):
            if article in ("a", "an") and word not in ("-", "/"):
                assert (article == "an") == (word[0] in "aeiou8" and not word.startswith("one")), text


def test_two_things_alike_in_kind_keep_their_colours(scenes: list[Scene]) -> None:
    for seed, scene in enumerate(scenes):
        kinds = [thing.kind for thing in scene.things if thing.colour]
        for thing in scene.things:
            if thing.colour and kinds.count(thing.kind) > 1:
                colours = (*alternatives("colours", thing.colour), *alternatives("colour_names", thing.colour))
                assert any(colour in sentence(scene, seed) for colour in colours), sentence(scene, seed)


def test_a_misspelling_changes_one_long_word_and_no_digit() -> None:
    text = "a tiny purple 7 drifts slowly to the right"
    for seed in range(200):
        changed = misspell(text, Words(Random(seed)))
        different = [(old, new) for old, new in zip(text.split(), changed.split(), strict=True) if old != new]
        assert all(len(old) >= 5 and old.isalpha() and abs(len(old) - len(new)) <= 1 for old, new in different)
        assert len(different) == 1
    assert 0.02 < MISSPELLING_PROBABILITY < 0.1


def test_verbs_are_inflected_at_their_first_word_that_is_no_adverb() -> None:
    assert inflect("slowly fade away")[:3] == ("slowly fade away", "slowly fades away", "slowly fading away")
    assert inflect("hop")[:3] == ("hop", "hops", "hopping")
    assert inflect("carry on")[:3] == ("carry on", "carries on", "carrying on")
    assert inflect("be at rest") == ("be at rest", "is at rest", "at rest")
    assert inflect("be at rest").of_several().finite == "are at rest"
    assert inflect("rise and fall").participle == "rising and falling"
    assert inflect("keep moving").participle == "moving"
    assert inflect("hold its position").of_several().finite == "hold their position"
    assert inflect("not move / does not move / not moving").of_several().finite == "do not move"


def test_alternatives_expand_also_within_each_other() -> None:
    assert set(expand("(off |)to the (left|far (left|end))")) == {
        "off to the left", "off to the far left", "off to the far end",
        "to the left", "to the far left", "to the far end",
    }  # fmt: skip
    assert set(expand("a (big|old) one")) == {"a big one", "an old one"}


def test_no_wording_names_two_kinds_or_two_colours() -> None:
    for section, values in (
        ("kinds", KINDS),
        ("colours", tuple(COLOURS)),
        ("senses", ("clockwise", "counterclockwise")),
    ):
        seen: dict[str, str] = {}
        for value in values:
            for text in alternatives(section, value):
                assert seen.setdefault(text, value) == value, text


def test_the_tables_open_no_sentence_as_held_out_patterns_do() -> None:
    openings = [text for names in tables()["outer"].values() for text in names]
    assert not [text for text in openings if "watch" in text or "look at" in text]
