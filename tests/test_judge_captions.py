"""The caption parser agrees with every scene that a caption describes, and refuses the paraphrases."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from videogen.toybox import Scene, Thing, caption, draw_scene
from videogen.toybox.judge import Clauses, Said, parse
from videogen.toybox.world.captions import BACKGROUND_WORDS, MOTION_VERBS
from videogen.toybox.world.motions import MOTIONS
from videogen.toybox.world.scenes import CAMERAS, shows_motion, spatial_relation
from videogen.toybox.world.things import BACKGROUNDS, COLOURS, KINDS, SIZES, SPRITES, has_contrast

SETS = {"paraphrases": 100, "sentences": 200}
"""Sentences by people: those of the second set were written by another hand than the wide grammar of captions."""


def sense_of(thing: Thing) -> str:
    if thing.motion not in ("spin", "orbit"):
        return ""
    return "clockwise" if thing.speed > 0 else "counterclockwise"


def stated_motion(scene: Scene, thing: Thing, clauses: Clauses) -> str:
    """Return the motion of a thing that a caption of its scene states."""
    if scene.num_frames == 1 or clauses.relation or scene.event in ("cross", "collide"):
        return ""
    if scene.event == "behind" and thing is scene.things[1]:
        return ""
    return thing.motion if thing.motion in MOTION_VERBS else ""


def agrees(stated: Said, thing: Thing, scene: Scene, clauses: Clauses) -> bool:
    return (
        (stated.kind, stated.colour) == (thing.kind, thing.colour)
        and stated.size in ("", thing.size)
        and stated.motion == stated_motion(scene, thing, clauses)
        and stated.sense in ("", sense_of(thing))
    )


def parse_caption(scene: Scene, seed: int, *, new: bool) -> Clauses:
    """Parse a scene's caption, and assert that it states nothing that is not so, and all that it should."""
    text = caption(scene, seed, new=new)
    clauses = parse(text)
    assert len(clauses.things) == len(scene.things), text
    for stated in clauses.things:
        assert any(agrees(stated, thing, scene, clauses) for thing in scene.things), (text, stated)
    assert clauses.background in ("", scene.background), text
    assert bool(clauses.background) == any(words in text for words in BACKGROUND_WORDS[scene.background]), text
    assert clauses.camera == ("" if scene.camera == "still" else scene.camera), text
    assert clauses.event == scene.event, text
    if clauses.relation or clauses.event == "behind":
        assert [stated.kind for stated in clauses.things] == [thing.kind for thing in scene.things], text
    if clauses.relation:
        assert clauses.relation == spatial_relation(scene), text
    for word, sense in ((" clockwise", "clockwise"), ("counterclockwise", "counterclockwise")):
        assert text.count(word) == sum(stated.sense == sense for stated in clauses.things), text
    return clauses


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a red circle jumps up and down", "cannot tell which motion"),
        ("a red circle bounces", "cannot tell which motion"),
        ("a circle is red and a star is blue", "gives blue to no thing"),
        ("a red blue circle", "gives a colour twice"),
    ],
)
def test_an_ambiguous_caption_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_500_captions_parse_to_their_scenes_and_cover_every_clause() -> None:
    num_stated = Counter[str]()
    for seed in range(500):
        scene = draw_scene(seed)
        for new in (False, True):
            clauses = parse_caption(scene, seed, new=new)
            num_stated.update(name for name in ("background", "camera", "relation", "event") if getattr(clauses, name))
            num_stated.update(name for thing in clauses.things for name in Said._fields if getattr(thing, name))
    assert all(num_stated[name] for name in ("background", "camera", "relation", "event", *Said._fields))


@pytest.mark.slow
def test_20000_captions_parse_to_their_scenes() -> None:
    for seed in range(10**7, 10**7 + 20_000):
        parse_caption(draw_scene(seed), seed, new=bool(seed % 2))


@pytest.mark.parametrize("text", ["a red circle frobnicates", "a scarlet circle", ""])
def test_words_outside_the_grammar_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"cannot read|names no thing"):
        parse(text)


def test_a_sentence_with_a_list_of_things_parses_completely() -> None:
    assert parse("Two objects at sea: a small cat spins clockwise and a tiny red 'number nine' fades in.") == Clauses(
        (Said("cat", "", "small", "spin", "clockwise"), Said("9", "red", "small", "fade in")), "sea"
    )


@pytest.fixture(scope="module", params=SETS)
def by_hand(request: pytest.FixtureRequest) -> tuple[str, list[dict[str, str]]]:
    path = Path(__file__).with_name(f"{request.param}.jsonl")
    return request.param, [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_all_sentences_by_hand_are_distinct(by_hand: tuple[str, list[dict[str, str]]]) -> None:
    name, rows = by_hand
    assert len({row["prompt"] for row in rows}) == len(rows) == SETS[name]


def test_the_sentences_by_hand_are_outside_the_plain_grammar(by_hand: tuple[str, list[dict[str, str]]]) -> None:
    def is_plain(prompt: str) -> bool:
        try:
            return bool(parse(prompt))
        except ValueError:
            return False

    name, rows = by_hand
    # People also write plainly now and then: "white ring moving upwards".
    assert sum(is_plain(row["prompt"]) for row in rows) <= {"paraphrases": 0, "sentences": 5}[name]


def test_every_sentence_by_hand_describes_a_scene_that_the_world_can_render(
    by_hand: tuple[str, list[dict[str, str]]],
) -> None:
    for row in by_hand[1]:
        assert row.keys() <= {"prompt", *Said._fields, "background", "camera"}, row
        assert row["kind"] in KINDS, row
        assert row.get("colour", "red") in COLOURS, row
        assert ("colour" in row) <= (row["kind"] not in SPRITES), row
        assert row.get("size", "small") in SIZES, row
        motion = row.get("motion", "still")
        assert motion in MOTIONS, row
        assert shows_motion(row["kind"], motion), row
        assert row.get("background", "black") in BACKGROUNDS, row
        assert row.get("camera", "still") in CAMERAS, row
        if "background" in row and ("colour" in row or row["kind"] in SPRITES):
            assert has_contrast(row["kind"], row.get("colour", ""), row["background"]), row


def test_the_sentences_by_hand_cover_every_kind_motion_background_camera_and_colour(
    by_hand: tuple[str, list[dict[str, str]]],
) -> None:
    rows = by_hand[1]
    assert {row["kind"] for row in rows} == set(KINDS)
    assert {row["motion"] for row in rows if "motion" in row} == set(MOTIONS)
    assert {row["background"] for row in rows if "background" in row} == set(BACKGROUNDS)
    assert {row.get("camera", "still") for row in rows} == set(CAMERAS)
    assert {row.get("colour", "") for row in rows} == {"", *COLOURS}
