"""Captions read back: the parser agrees with every scene, and the paraphrases are beyond it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from videogen.toybox import Scene, Thing, caption, draw_scene
from videogen.toybox.judge import Clauses, Said, parse
from videogen.toybox.world.captions import BACKGROUND_WORDS, VERBS
from videogen.toybox.world.motions import MOTIONS
from videogen.toybox.world.scenes import CAMERAS, can, relation
from videogen.toybox.world.things import BACKGROUNDS, COLOURS, KINDS, SIZES, SPRITES, contrasts

PARAPHRASES = Path(__file__).with_name("paraphrases.jsonl")


def sense_of(thing: Thing) -> str:
    if thing.motion not in ("spin", "orbit"):
        return ""
    return "clockwise" if thing.speed > 0 else "counterclockwise"


def motion_said(scene: Scene, thing: Thing, clauses: Clauses) -> str:
    """What a caption says of how a thing moves."""
    if scene.num_frames == 1 or clauses.relation or scene.event in ("cross", "collide"):
        return ""
    if scene.event == "behind" and thing is scene.things[1]:
        return ""
    return thing.motion if thing.motion in VERBS else ""


def agrees(said: Said, thing: Thing, scene: Scene, clauses: Clauses) -> bool:
    return (
        (said.kind, said.colour) == (thing.kind, thing.colour)
        and said.size in ("", thing.size)
        and said.motion == motion_said(scene, thing, clauses)
        and said.sense in ("", sense_of(thing))
    )


def check(scene: Scene, seed: int, *, new: bool) -> Clauses:
    """Read a scene's caption, and refuse whatever it does not say or says wrongly."""
    text = caption(scene, seed, new=new)
    clauses = parse(text)
    assert len(clauses.things) == len(scene.things), text
    for said in clauses.things:
        assert any(agrees(said, thing, scene, clauses) for thing in scene.things), (text, said)
    assert clauses.background in ("", scene.background), text
    assert bool(clauses.background) == any(words in text for words in BACKGROUND_WORDS[scene.background]), text
    assert clauses.camera == ("" if scene.camera == "still" else scene.camera), text
    assert clauses.event == scene.event, text
    if clauses.relation or clauses.event == "behind":
        assert [said.kind for said in clauses.things] == [thing.kind for thing in scene.things], text
    if clauses.relation:
        assert clauses.relation == relation(scene), text
    for word, sense in ((" clockwise", "clockwise"), ("counterclockwise", "counterclockwise")):
        assert text.count(word) == sum(said.sense == sense for said in clauses.things), text
    return clauses


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a red circle jumps up and down", "cannot tell which motion"),
        ("a red circle bounces", "cannot tell which motion"),
        ("a circle is red and a star is blue", "says blue of no thing"),
        ("a red blue circle", "says a colour twice"),
    ],
)
def test_what_is_half_understood_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse(text)


def test_a_caption_is_read_as_its_scene_is() -> None:
    said = Counter[str]()
    for seed in range(500):
        scene = draw_scene(seed)
        for new in (False, True):
            clauses = check(scene, seed, new=new)
            said.update(name for name in ("background", "camera", "relation", "event") if getattr(clauses, name))
            said.update(name for thing in clauses.things for name in Said._fields if getattr(thing, name))
    assert all(said[name] for name in ("background", "camera", "relation", "event", *Said._fields))


@pytest.mark.slow
def test_thousands_of_captions_are_read_as_their_scenes_are() -> None:
    for seed in range(10**7, 10**7 + 20_000):
        check(draw_scene(seed), seed, new=bool(seed % 2))


@pytest.mark.parametrize("text", ["a red circle frobnicates", "a scarlet circle", ""])
def test_what_no_caption_says_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"cannot read|names no thing"):
        parse(text)


def test_a_plain_sentence_is_read_whole() -> None:
    assert parse("Two objects at sea: a small cat spins clockwise and a tiny red 'number nine' fades in.") == Clauses(
        (Said("cat", "", "small", "spin", "clockwise"), Said("9", "red", "small", "fade in")), "sea"
    )


@pytest.fixture(scope="module")
def paraphrases() -> list[dict[str, str]]:
    return [json.loads(line) for line in PARAPHRASES.read_text(encoding="utf-8").splitlines()]


def test_there_are_a_hundred_different_paraphrases(paraphrases: list[dict[str, str]]) -> None:
    assert len({row["prompt"] for row in paraphrases}) == 100


def test_no_paraphrase_is_of_the_grammar(paraphrases: list[dict[str, str]]) -> None:
    for row in paraphrases:
        with pytest.raises(ValueError, match="cannot read"):
            parse(row["prompt"])


def test_every_paraphrase_says_what_the_world_can_show(paraphrases: list[dict[str, str]]) -> None:
    for row in paraphrases:
        assert row.keys() <= {"prompt", *Said._fields, "background", "camera"}, row
        assert row["kind"] in KINDS, row
        assert (row.get("colour", "") in COLOURS) != (row["kind"] in SPRITES), row
        assert row.get("size", "small") in SIZES, row
        assert row["motion"] in MOTIONS, row
        assert can(row["kind"], row["motion"]), row
        assert row["background"] in BACKGROUNDS, row
        assert row.get("camera", "still") in CAMERAS, row
        assert contrasts(row["kind"], row.get("colour", ""), row["background"]), row


def test_the_paraphrases_are_of_all_kinds(paraphrases: list[dict[str, str]]) -> None:
    assert {row["kind"] for row in paraphrases} == set(KINDS)
    assert {row["motion"] for row in paraphrases} == set(MOTIONS)
    assert {row["background"] for row in paraphrases} == set(BACKGROUNDS)
    assert {row.get("camera", "still") for row in paraphrases} == set(CAMERAS)
    assert {row.get("colour", "") for row in paraphrases} == {"", *COLOURS}
