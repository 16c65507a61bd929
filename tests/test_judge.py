"""The judge: what it reads in frames is what the world put there, and it says so when there is nothing to read."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from videogen.toybox import Scene, Thing, caption, draw_scene, render
from videogen.toybox.judge import CLAUSES, Clauses, Event, Found, FoundThing, Said, judge, parse, read, score, wilson
from videogen.toybox.judge.background import look_behind
from videogen.toybox.judge.camera import Camera, look_at_camera
from videogen.toybox.judge.colour_space import see, specks
from videogen.toybox.judge.detection import Candidate, is_apart
from videogen.toybox.judge.quality import count_switches, diversity, measure_quality
from videogen.toybox.judge.scores import Case, Judged, count_clips, shuffled
from videogen.toybox.judge.templates import Look
from videogen.toybox.judge.trajectories import Path, classify
from videogen.toybox.world.motions import MOTIONS, Pose, Room, move
from videogen.toybox.world.scenes import CAMERAS
from videogen.toybox.world.things import BACKGROUNDS, TEXTURED

SIZE, LENGTH = (64, 64), 17
STAR = Thing(kind="star", colour="yellow", size="small", motion="still", radius=9, x=32, y=32)
SCENE = Scene(width=64, height=64, num_frames=LENGTH, fps=8, background="black", things=(STAR,), seed=0)


def moving(motion: str, seed: int = 0) -> Thing:
    """The star, at some pace that fits a frame of 64 x 64."""
    room = Room(64 - 20, 64 - 20, STAR.radius, LENGTH - 1)
    speed, reach, phase = MOTIONS[motion].pace(np.random.default_rng(seed), room)
    path = move(replace(STAR, motion=motion, speed=speed, reach=reach, phase=phase, x=0, y=0), LENGTH)
    x, y = (32 - (part.min() + part.max()) / 2 for part in path[:2])
    return replace(STAR, motion=motion, speed=float(speed), reach=float(reach), phase=float(phase), x=x, y=y)


MOVES = parse("a yellow star moves right")


def blurred(frames: np.ndarray) -> np.ndarray:
    """Every pixel mixed with its neighbours, as by a weak autoencoder."""
    soft = frames.astype(np.float32)
    for axis in (1, 2):
        soft = (np.roll(soft, 1, axis) + 2 * soft + np.roll(soft, -1, axis)) / 4
    return soft.round().astype(np.uint8)


# --- reading


@pytest.mark.parametrize("motion", MOTIONS)
def test_every_motion_is_told(motion: str) -> None:
    thing = moving(motion)
    found = read(render(replace(SCENE, things=(thing,))))
    assert [(one.kind, one.colour, one.size, one.motion) for one in found.things] == [
        ("star", "yellow", "small", motion)
    ]
    if motion in ("spin", "orbit"):
        assert found.things[0].sense == ("clockwise" if thing.speed > 0 else "counterclockwise")


@pytest.mark.parametrize("last", [0.75, 1.4])
@pytest.mark.parametrize("motion", ["right", "up left", "bounce side to side"])
def test_what_goes_somewhere_goes_there_whatever_becomes_of_its_outline(
    motion: str, last: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    thing = moving(motion)
    plain = MOTIONS[motion]

    def swelling(one: Thing, step: np.ndarray) -> Pose:
        pose = plain.pose(one, step)
        return pose._replace(radius=pose.radius * np.linspace(1, last, len(step)))

    monkeypatch.setitem(MOTIONS, motion, plain.__class__(plain.pace, swelling))
    assert [one.motion for one in read(render(replace(SCENE, things=(thing,)))).things] == [motion]


def test_a_thing_is_not_found_twice() -> None:
    one = Candidate(Look("1", "white"), 25, 50, 11.7, 6e6, 0.9)
    assert not is_apart(one._replace(x=25.8, y=40, radius=7.1), [one])
    assert is_apart(one._replace(x=25.8, y=36, radius=7.1), [one])


@pytest.mark.parametrize("kind", ["balloon", "rocket"])
@pytest.mark.parametrize("sense", ["clockwise", "counterclockwise"])
def test_what_is_lopsided_and_turns_in_a_short_clip_spins(kind: str, sense: str) -> None:
    speed = 2.3 if sense == "clockwise" else -2.3
    thing = Thing(kind=kind, colour="", size="large", motion="spin", radius=13.3, x=48, y=16, speed=speed)
    scene = replace(SCENE, background="grass", num_frames=9, things=(thing,), camera="pan right", camera_speed=1.9)
    found = read(render(scene))
    assert [(one.kind, one.motion, one.sense) for one in found.things] == [(kind, "spin", sense)]


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_every_background_is_told_also_when_blurred(background: str) -> None:
    for seed in range(3):
        frames = render(replace(SCENE, background=background, seed=seed, things=(moving("right"),)))
        assert look_behind(see(frames)).name == background
        assert look_behind(see(blurred(frames))).name == background


@pytest.mark.parametrize("camera", CAMERAS)
def test_every_camera_is_told_before_every_texture(camera: str) -> None:
    speed = 0.025 if "zoom" in camera else 1.0
    for background in TEXTURED:
        scene = replace(SCENE, background=background, camera=camera, camera_speed=speed * (camera != "still"))
        seen = see(render(scene))
        found = look_at_camera(seen, look_behind(seen))
        assert found.name == camera, background
        assert found.speed == pytest.approx(scene.camera_speed, rel=0.2)  # told on a grid of paces


@pytest.mark.parametrize("seed", range(16))
def test_a_clip_of_the_world_fulfils_its_caption(seed: int) -> None:
    scene = draw_scene(seed, sizes=(SIZE,) if seed < 12 else ((48, 96), (96, 48), (80, 64)), lengths=(LENGTH, 9, 1))
    holds = judge(read(render(scene)), parse(caption(scene, seed)))
    assert all(holds.values()), (scene, holds)


@pytest.mark.parametrize("seed", range(4))
def test_a_blurred_clip_fulfils_its_caption_too(seed: int) -> None:
    scene = draw_scene(seed, sizes=(SIZE,), lengths=(LENGTH,))
    holds = judge(read(blurred(render(scene))), parse(caption(scene, seed)))
    assert all(holds.values()), (scene, holds)


def test_places_are_told_to_a_fraction_of_a_pixel() -> None:
    thing = moving("up left")
    pose, truth = read(render(replace(SCENE, things=(thing,)))).things[0].pose, move(thing, LENGTH)
    for part, true in zip(pose[:3], truth[:3], strict=True):
        assert np.abs(part - true).max() < 0.2


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((17, 64, 64, 3), np.uint8),
        np.full((1, 48, 48, 3), 255, np.uint8),
        np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), np.uint8),
        np.random.default_rng(0).integers(0, 256, (2, 49, 51, 3), np.uint8),
        np.full((3, 32, 32, 3), (200, 0, 200), np.uint8),
    ],
    ids=["black", "white image", "noise", "odd noise", "a colour of no background"],
)
def test_where_there_is_nothing_nothing_is_found(frames: np.ndarray) -> None:
    found = read(frames)
    assert found.things == ()
    assert not judge(found, parse("a red circle moves right in the snow"))["all"]


def test_colours_of_no_background_are_no_background() -> None:
    assert read(np.full((3, 32, 32, 3), (200, 0, 200), np.uint8)).background == ""
    assert read(np.zeros((3, 32, 32, 3), np.uint8)).background == "black"


def test_a_speck_is_what_nothing_is_near() -> None:
    mask = np.zeros((1, 40, 40), bool)
    mask[0, 5:8, 5:8] = mask[0, 20:32, 20:23] = True
    alone = specks(mask, 4)
    assert alone[0, 5:8, 5:8].all()
    assert alone.sum() == 9


def test_a_path_that_jitters_keeps_its_name() -> None:
    step, rng = np.arange(17.0), np.random.default_rng(0)
    line = np.stack([10 + 2 * step, 30 - 2 * step], axis=-1)
    assert classify(line + rng.normal(0, 0.7, line.shape), np.ones(17)).name == "up right"
    assert classify(np.full((17, 2), 30.0) + rng.normal(0, 0.5, (17, 2)), np.ones(17)).name == "still"


@pytest.mark.parametrize("kind", ["star", "square", "heart", "diamond"])
def test_a_small_soft_thing_that_spins_keeps_its_kind(kind: str) -> None:
    thing = Thing(kind=kind, colour="blue", size="small", motion="spin", radius=6.5, x=50, y=20, speed=-1.4)
    frames = render(replace(SCENE, width=96, height=48, background="grass", things=(thing,)))
    found = read(blurred(blurred(frames)))
    assert [(one.kind, one.motion) for one in found.things] == [(kind, "spin")]


# --- judging


def found_thing(kind: str = "circle", colour: str = "red", *, x: float = 20, y: float = 30, **more: str) -> FoundThing:
    """A thing at rest."""
    pose = Pose(*(np.full(9, value) for value in (x, y, 8, 0, 1)))
    attributes = {"size": "small", "motion": "still", "sense": "", **more}
    path = Path(attributes["motion"], np.stack([pose.x, pose.y], -1), 0.0)
    return FoundThing(kind, colour, **attributes, pose=pose, likeness=np.ones(9), path=path)


def found_clip(*things: FoundThing, events: tuple[Event, ...] = ()) -> Found:
    return Found(64, 64, 9, "snow", 0.0, Camera(), things, events)


def test_only_what_is_said_is_judged() -> None:
    holds = judge(found_clip(found_thing()), parse("a red circle"))
    assert holds == {"present": True, "count": True, "class": True, "colour": True, "all": True}
    assert set(judge(found_clip(), parse("a red circle"))) <= set(CLAUSES)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("a red square in the snow", {"class"}),
        ("a blue circle in the snow", {"colour"}),
        ("a large red circle in the snow", {"size"}),
        ("a red circle moves right in the snow", {"motion"}),
        ("a red circle at sea", {"background"}),
        ("a red circle in the snow, the camera pans left", {"camera"}),
        ("a red circle and a blue star in the snow", {"present", "count", "class", "colour"}),
        ("a blue star in the snow", {"present", "class", "colour"}),
    ],
)
def test_a_wrong_clause_is_named(text: str, wrong: set[str]) -> None:
    holds = judge(found_clip(found_thing()), parse(text))
    assert {name for name, value in holds.items() if not value} == wrong | {"all"}


def test_things_are_paired_so_that_most_agrees() -> None:
    things = found_thing("star", "blue", motion="left"), found_thing("star", "red", motion="right")
    holds = judge(found_clip(*things), parse("a red star moves right while a blue star moves left"))
    assert all(holds.values())
    holds = judge(found_clip(*things), parse("a red star moves left while a blue star moves right"))
    assert {name for name, value in holds.items() if not value} == {"motion", "all"}


def test_a_relation_is_seen_from_the_second_thing() -> None:
    found = found_clip(found_thing("star", "blue", x=50), found_thing(x=10))
    assert judge(found, parse("a red circle is left of a blue star"))["relation"]
    assert not judge(found, parse("a blue star is left of a red circle"))["relation"]
    assert not judge(found, parse("a red circle above a blue star"))["relation"]


def test_who_passes_behind_whom_matters_and_who_collides_first_does_not() -> None:
    things = found_thing("star", "blue", motion="right"), found_thing()
    found = found_clip(*things, events=(Event("behind", 0, 1), Event("collide", 0, 1)))
    assert judge(found, parse("a blue star passes behind a red circle from left to right"))["event"]
    assert not judge(found, parse("a red circle passes behind a blue star from left to right"))["event"]
    for text in ("a blue star and a red circle collide", "a red circle and a blue star collide"):
        assert judge(found, parse(text))["event"]


def test_the_sense_of_a_turn_counts_where_it_is_said() -> None:
    found = found_clip(found_thing("cat", "", motion="spin", sense="clockwise"))
    assert judge(found, parse("a cat spins"))["motion"]
    assert judge(found, parse("a cat spins clockwise"))["motion"]
    assert not judge(found, parse("a cat spins counterclockwise"))["motion"]


def test_a_sweep_can_score_by_it() -> None:
    frames = torch.from_numpy(render(replace(SCENE, things=(moving("right"),))))
    numbers = score(frames, "a yellow star moves left on a black background")  # type: ignore[arg-type]
    assert next(iter(numbers)) == "clauses"
    assert numbers["clauses"] == pytest.approx(5 / 6)
    assert numbers["motion"] == numbers["all"] == 0
    assert numbers["class"] == 1


def test_wilsons_interval_is_his() -> None:
    # The worked example of Newcombe (1998), table I: 81 of 263.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 10)[0] == 0
    assert wilson(10, 10)[1] == 1
    assert wilson(0, 0) == (0, 1)


def test_clips_of_one_caption_count_by_how_alike_they_are() -> None:
    alone = [(str(i), i < 30) for i in range(100)]
    assert count_clips(alone).interval == pytest.approx(wilson(30, 100))
    twins = count_clips([*alone, *alone])  # two clips a caption that always agree say no more than one
    assert (twins.right, twins.num, twins.effective) == (60, 200, pytest.approx(100))
    assert twins.interval == pytest.approx(wilson(30, 100))
    unlike = [(str(i // 2), bool(i % 2)) for i in range(100)]  # one of each two: less alike than by chance
    assert count_clips(unlike).effective == 100
    assert count_clips([*((str(i), True) for i in range(10))] * 2).interval == wilson(10, 10)
    assert count_clips([("one", i < 3) for i in range(10)]).interval == wilson(3, 10)
    assert count_clips([]).interval == (0, 1)


# --- measures


def test_an_even_path_is_smooth_and_a_still_background_does_not_flicker() -> None:
    frames = render(replace(SCENE, background="grass", things=(moving("right"),)))
    clean = measure_quality(frames, read(frames), MOVES)
    assert clean.path_error is not None
    assert clean.path_error < 0.1
    assert (clean.flicker, clean.identity_switches, clean.permanence) == (0, 0, 1)
    light = np.where(np.arange(17) % 2, 1.0, 0.97)[:, None, None, None]
    dimmed = (frames * light).astype(np.uint8)
    shaky = measure_quality(dimmed, read(dimmed), MOVES)
    assert shaky.flicker is not None
    assert shaky.flicker > 0.5


def test_a_thing_that_vanishes_does_not_last_unless_it_was_to_fade() -> None:
    frames = render(replace(SCENE, things=(moving("right"),)))
    frames[8:] = frames[:, :4, :4].mean()  # the background alone
    found = read(frames)
    lasts = measure_quality(frames, found, MOVES).permanence
    assert lasts is not None
    assert lasts == pytest.approx(8 / 17, abs=0.1)
    assert measure_quality(frames, found, parse("a star fades out")).permanence is None


def test_a_thing_that_becomes_another_is_a_switch() -> None:
    early, late = np.arange(9) < 5, np.arange(9) >= 5
    a = found_thing()._replace(likeness=early.astype(float))
    b = found_thing("star", "blue")._replace(likeness=late.astype(float))
    elsewhere = found_thing("star", "blue", x=60)._replace(likeness=late.astype(float))
    assert count_switches((a, b)) == 1
    assert count_switches((a, elsewhere)) == 0


def test_clips_that_all_begin_alike_are_not_diverse() -> None:
    same = [found_clip(found_thing(x=20, y=20)) for _ in range(4)]
    spread = [found_clip(found_thing(x=x, y=20)) for x in (10, 50)]
    assert diversity(same, MOVES) == 0
    assert diversity(spread, MOVES) == pytest.approx(40 / 64 / np.sqrt(2))  # of two, an unbiased variance
    assert diversity(same[:1], MOVES) is None
    a, b = found_thing("star", "yellow", x=20, y=20), found_thing(x=40, y=40)
    assert diversity([found_clip(a, b), found_clip(b, a)], MOVES) == 0  # whichever was found first


def test_one_caption_has_no_others_to_be_shuffled_with() -> None:
    frames = render(SCENE)
    found, case = read(frames), Case("a star stays still", parse("a star stays still"))
    one = Judged(case, 0, found, judge(found, case.clauses), measure_quality(frames, found, case.clauses))
    assert shuffled([one, one]) == {}


# --- the gate


@pytest.mark.slow
def test_the_judge_is_right_about_the_worlds_own_clips() -> None:
    right, num = Counter[str](), Counter[str]()
    for seed in range(10**6, 10**6 + 1000):
        scene = draw_scene(seed, sizes=(SIZE,), lengths=(LENGTH,))
        for name, holds in judge(read(render(scene)), parse(caption(scene, seed))).items():
            num[name] += 1
            right[name] += holds
    for name in num:
        assert right[name] / num[name] >= 0.99, (name, right[name], num[name])


def test_a_clause_without_words_is_empty() -> None:
    assert parse("a cat") == Clauses((Said("cat"),))
