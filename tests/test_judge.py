"""Test the judge: it finds in frames what the world put there, and nothing where there is nothing to find."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from videogen.toybox import Scene, Thing, caption, draw_scene, render
from videogen.toybox.judge import CLAUSES, Clauses, Event, Found, FoundThing, Said, judge, parse, read, score, wilson
from videogen.toybox.judge.background import estimate_background
from videogen.toybox.judge.camera import Camera, estimate_camera
from videogen.toybox.judge.colour_space import isolated_specks, to_ycc
from videogen.toybox.judge.detection import Candidate, is_apart
from videogen.toybox.judge.quality import count_switches, diversity, measure_quality
from videogen.toybox.judge.scores import Case, JudgedClip, count_clips, shuffled_captions
from videogen.toybox.judge.templates import Appearance
from videogen.toybox.judge.trajectories import Trajectory, classify_trajectory
from videogen.toybox.world.motions import MOTIONS, MotionBounds, Pose, world_pose
from videogen.toybox.world.scenes import CAMERAS
from videogen.toybox.world.things import BACKGROUNDS, TEXTURED_BACKGROUNDS

SIZE, LENGTH = (64, 64), 17
STAR = Thing(kind="star", colour="yellow", size="small", motion="still", radius=9, x=32, y=32)
SCENE = Scene(width=64, height=64, num_frames=LENGTH, fps=8, background="black", things=(STAR,), seed=0)


def moving(motion: str, seed: int = 0) -> Thing:
    """Make the star move, at some pace that fits a frame of 64 x 64."""
    room = MotionBounds(64 - 20, 64 - 20, STAR.radius, LENGTH - 1)
    speed, reach, phase = MOTIONS[motion].sample_pace(np.random.default_rng(seed), room)
    path = world_pose(replace(STAR, motion=motion, speed=speed, reach=reach, phase=phase, x=0, y=0), LENGTH)
    x, y = (32 - (part.min() + part.max()) / 2 for part in path[:2])
    return replace(STAR, motion=motion, speed=float(speed), reach=float(reach), phase=float(phase), x=x, y=y)


MOVES_RIGHT = parse("a yellow star moves right")


def blurred(frames: np.ndarray) -> np.ndarray:
    """Blur frames in space, as a weak autoencoder does."""
    mixed = frames.astype(np.float32)
    for axis in (1, 2):
        mixed = (np.roll(mixed, 1, axis) + 2 * mixed + np.roll(mixed, -1, axis)) / 4
    return mixed.round().astype(np.uint8)


# --- reading


@pytest.mark.parametrize("motion", MOTIONS)
def test_every_motion_is_recognised(motion: str) -> None:
    thing = moving(motion)
    found = read(render(replace(SCENE, things=(thing,)))).things
    assert [(star.kind, star.colour, star.size, star.motion) for star in found] == [("star", "yellow", "small", motion)]
    if motion in ("spin", "orbit"):
        assert found[0].sense == ("clockwise" if thing.speed > 0 else "counterclockwise")


@pytest.mark.parametrize("last_scale", [0.75, 1.4])
@pytest.mark.parametrize("motion", ["right", "up left", "bounce side to side"])
def test_a_moving_thing_that_changes_its_size_keeps_its_motion(
    motion: str, last_scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    thing, original = moving(motion), MOTIONS[motion]

    def resized_pose(thing: Thing, step: np.ndarray) -> Pose:
        pose = original.pose(thing, step)
        return pose._replace(radius=pose.radius * np.linspace(1, last_scale, len(step)))

    monkeypatch.setitem(MOTIONS, motion, original.__class__(original.sample_pace, resized_pose))
    assert [found.motion for found in read(render(replace(SCENE, things=(thing,)))).things] == [motion]


def test_a_candidate_that_overlaps_a_detected_thing_is_not_apart() -> None:
    detected = Candidate(Appearance("1", "white"), 25, 50, 11.7, 6e6, 0.9)
    assert not is_apart(detected._replace(x=25.8, y=40, radius=7.1), [detected])
    assert is_apart(detected._replace(x=25.8, y=36, radius=7.1), [detected])


@pytest.mark.parametrize("kind", ["balloon", "rocket"])
@pytest.mark.parametrize("sense", ["clockwise", "counterclockwise"])
def test_a_lopsided_thing_that_turns_in_a_short_clip_spins(kind: str, sense: str) -> None:
    speed = 2.3 if sense == "clockwise" else -2.3
    thing = Thing(kind=kind, colour="", size="large", motion="spin", radius=13.3, x=48, y=16, speed=speed)
    scene = replace(SCENE, background="grass", num_frames=9, things=(thing,), camera="pan right", camera_speed=1.9)
    things = read(render(scene)).things
    assert [(found.kind, found.motion, found.sense) for found in things] == [(kind, "spin", sense)]


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_every_background_is_recognised_also_when_blurred(background: str) -> None:
    for seed in range(3):
        frames = render(replace(SCENE, background=background, seed=seed, things=(moving("right"),)))
        assert estimate_background(to_ycc(frames)).name == background
        assert estimate_background(to_ycc(blurred(frames))).name == background


@pytest.mark.parametrize("camera", CAMERAS)
def test_every_camera_motion_is_recognised_on_every_texture(camera: str) -> None:
    speed = 0.025 if "zoom" in camera else 1.0
    for background in TEXTURED_BACKGROUNDS:
        scene = replace(SCENE, background=background, camera=camera, camera_speed=speed * (camera != "still"))
        ycc = to_ycc(render(scene))
        estimate = estimate_camera(ycc, estimate_background(ycc))
        assert estimate.name == camera, background
        assert estimate.speed == pytest.approx(scene.camera_speed, rel=0.2)  # found on a grid of paces


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


def test_poses_are_accurate_to_a_fifth_of_a_pixel() -> None:
    thing = moving("up left")
    pose, true_pose = read(render(replace(SCENE, things=(thing,)))).things[0].pose, world_pose(thing, LENGTH)
    for values, true_values in zip(pose[:3], true_pose[:3], strict=True):
        assert np.abs(values - true_values).max() < 0.2


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
def test_no_thing_is_found_in_frames_that_show_none(frames: np.ndarray) -> None:
    found = read(frames)
    assert found.things == ()
    assert not judge(found, parse("a red circle moves right in the snow"))["all"]


def test_a_colour_of_no_background_is_not_recognised() -> None:
    assert read(np.full((3, 32, 32, 3), (200, 0, 200), np.uint8)).background == ""
    assert read(np.zeros((3, 32, 32, 3), np.uint8)).background == "black"


def test_only_a_speck_with_nothing_near_it_is_isolated() -> None:
    mask = np.zeros((1, 40, 40), bool)
    mask[0, 5:8, 5:8] = mask[0, 20:32, 20:23] = True
    specks = isolated_specks(mask, 4)
    assert specks[0, 5:8, 5:8].all()
    assert specks.sum() == 9


def test_a_jittering_trajectory_keeps_its_motion() -> None:
    step, rng = np.arange(17.0), np.random.default_rng(0)
    line = np.stack([10 + 2 * step, 30 - 2 * step], axis=-1)
    assert classify_trajectory(line + rng.normal(0, 0.7, line.shape), np.ones(17)).motion == "up right"
    place = np.full((17, 2), 30.0)
    assert classify_trajectory(place + rng.normal(0, 0.5, place.shape), np.ones(17)).motion == "still"


@pytest.mark.parametrize("kind", ["star", "square", "heart", "diamond"])
def test_a_small_blurred_thing_that_spins_keeps_its_kind(kind: str) -> None:
    thing = Thing(kind=kind, colour="blue", size="small", motion="spin", radius=6.5, x=50, y=20, speed=-1.4)
    frames = render(replace(SCENE, width=96, height=48, background="grass", things=(thing,)))
    assert [(found.kind, found.motion) for found in read(blurred(blurred(frames))).things] == [(kind, "spin")]


# --- judging


def found_thing(kind: str = "circle", colour: str = "red", *, x: float = 20, y: float = 30, **more: str) -> FoundThing:
    """Make a thing at rest in all frames."""
    pose = Pose(*(np.full(9, value) for value in (x, y, 8, 0, 1)))
    attributes = {"size": "small", "motion": "still", "sense": "", **more}
    trajectory = Trajectory(attributes["motion"], np.stack([pose.x, pose.y], -1), 0.0)
    return FoundThing(kind, colour, **attributes, pose=pose, likeness=np.ones(9), trajectory=trajectory)


def found_clip(*things: FoundThing, events: tuple[Event, ...] = ()) -> Found:
    return Found(64, 64, 9, "snow", 0.0, Camera(), things, events)


def test_only_clauses_of_the_caption_are_judged() -> None:
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
def test_a_wrong_clause_is_reported(text: str, wrong: set[str]) -> None:
    holds = judge(found_clip(found_thing()), parse(text))
    assert {name for name, value in holds.items() if not value} == wrong | {"all"}


def test_things_are_paired_so_that_most_clauses_agree() -> None:
    things = found_thing("star", "blue", motion="left"), found_thing("star", "red", motion="right")
    holds = judge(found_clip(*things), parse("a red star moves right while a blue star moves left"))
    assert all(holds.values())
    holds = judge(found_clip(*things), parse("a red star moves left while a blue star moves right"))
    assert {name for name, value in holds.items() if not value} == {"motion", "all"}


def test_a_relation_is_of_the_first_thing_to_the_second() -> None:
    found = found_clip(found_thing("star", "blue", x=50), found_thing(x=10))
    assert judge(found, parse("a red circle is left of a blue star"))["relation"]
    assert not judge(found, parse("a blue star is left of a red circle"))["relation"]
    assert not judge(found, parse("a red circle above a blue star"))["relation"]


def test_the_order_of_things_matters_for_passing_behind_but_not_for_colliding() -> None:
    things = found_thing("star", "blue", motion="right"), found_thing()
    found = found_clip(*things, events=(Event("behind", 0, 1), Event("collide", 0, 1)))
    assert judge(found, parse("a blue star passes behind a red circle from left to right"))["event"]
    assert not judge(found, parse("a red circle passes behind a blue star from left to right"))["event"]
    for text in ("a blue star and a red circle collide", "a red circle and a blue star collide"):
        assert judge(found, parse(text))["event"]


def test_the_direction_of_a_turn_counts_only_if_the_caption_gives_it() -> None:
    found = found_clip(found_thing("cat", "", motion="spin", sense="clockwise"))
    assert judge(found, parse("a cat spins"))["motion"]
    assert judge(found, parse("a cat spins clockwise"))["motion"]
    assert not judge(found, parse("a cat spins counterclockwise"))["motion"]


def test_score_gives_the_share_of_clauses_first_and_then_each_clause() -> None:
    frames = torch.from_numpy(render(replace(SCENE, things=(moving("right"),))))
    numbers = score(frames, "a yellow star moves left on a black background")  # type: ignore[arg-type]
    assert next(iter(numbers)) == "clauses"
    assert numbers["clauses"] == pytest.approx(5 / 6)
    assert numbers["motion"] == numbers["all"] == 0
    assert numbers["class"] == 1


def test_wilson_interval_agrees_with_the_published_example() -> None:
    # The worked example of Newcombe (1998), table I: 81 of 263.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 10)[0] == 0
    assert wilson(10, 10)[1] == 1
    assert wilson(0, 0) == (0, 1)


def test_clips_of_one_caption_that_agree_count_as_fewer_independent_clips() -> None:
    single = [(str(i), i < 30) for i in range(100)]
    assert count_clips(single).interval == pytest.approx(wilson(30, 100))
    twins = count_clips([*single, *single])  # two clips a caption that always agree say no more than one
    assert (twins.right, twins.num, twins.effective) == (60, 200, pytest.approx(100))
    assert twins.interval == pytest.approx(wilson(30, 100))
    opposite = [(str(i // 2), bool(i % 2)) for i in range(100)]  # one of each two is right: less alike than by chance
    assert count_clips(opposite).effective == 100
    assert count_clips([*((str(i), True) for i in range(10))] * 2).interval == wilson(10, 10)
    assert count_clips([("caption", i < 3) for i in range(10)]).interval == wilson(3, 10)
    assert count_clips([]).interval == (0, 1)


# --- measures


def test_an_even_path_has_no_error_and_a_still_background_no_flicker() -> None:
    frames = render(replace(SCENE, background="grass", things=(moving("right"),)))
    clean = measure_quality(frames, read(frames), MOVES_RIGHT)
    assert clean.path_error is not None
    assert clean.path_error < 0.1
    assert (clean.flicker, clean.identity_switches, clean.permanence) == (0, 0, 1)
    brightness = np.where(np.arange(17) % 2, 1.0, 0.97)[:, None, None, None]
    flickering = (frames * brightness).astype(np.uint8)
    quality = measure_quality(flickering, read(flickering), MOVES_RIGHT)
    assert quality.flicker is not None
    assert quality.flicker > 0.5


def test_a_thing_that_vanishes_lowers_permanence_unless_the_caption_says_it_fades() -> None:
    frames = render(replace(SCENE, things=(moving("right"),)))
    frames[8:] = frames[:, :4, :4].mean()  # the background alone
    found = read(frames)
    permanence = measure_quality(frames, found, MOVES_RIGHT).permanence
    assert permanence is not None
    assert permanence == pytest.approx(8 / 17, abs=0.1)
    assert measure_quality(frames, found, parse("a star fades out")).permanence is None


def test_a_thing_that_becomes_another_counts_as_an_identity_switch() -> None:
    early, late = np.arange(9) < 5, np.arange(9) >= 5
    a = found_thing()._replace(likeness=early.astype(float))
    b = found_thing("star", "blue")._replace(likeness=late.astype(float))
    elsewhere = found_thing("star", "blue", x=60)._replace(likeness=late.astype(float))
    assert count_switches((a, b)) == 1
    assert count_switches((a, elsewhere)) == 0


def test_diversity_is_the_spread_of_first_positions() -> None:
    same = [found_clip(found_thing(x=20, y=20)) for _ in range(4)]
    spread = [found_clip(found_thing(x=x, y=20)) for x in (10, 50)]
    assert diversity(same, MOVES_RIGHT) == 0
    assert diversity(spread, MOVES_RIGHT) == pytest.approx(40 / 64 / np.sqrt(2))  # of two, an unbiased variance
    assert diversity(same[:1], MOVES_RIGHT) is None
    a, b = found_thing("star", "yellow", x=20, y=20), found_thing(x=40, y=40)
    assert (
        diversity([found_clip(a, b), found_clip(b, a)], MOVES_RIGHT) == 0
    )  # the order of things in a clip does not matter


def test_a_single_caption_cannot_be_shuffled() -> None:
    frames = render(SCENE)
    found, case = read(frames), Case("a star stays still", parse("a star stays still"))
    judged = JudgedClip(case, 0, found, judge(found, case.clauses), measure_quality(frames, found, case.clauses))
    assert shuffled_captions([judged, judged]) == {}


# --- the gate


@pytest.mark.slow
def test_every_clause_holds_in_99_percent_of_the_worlds_own_clips() -> None:
    num_right, num_clips = Counter[str](), Counter[str]()
    for seed in range(10**6, 10**6 + 1000):
        scene = draw_scene(seed, sizes=(SIZE,), lengths=(LENGTH,))
        for name, holds in judge(read(render(scene)), parse(caption(scene, seed))).items():
            num_clips[name] += 1
            num_right[name] += holds
    for name in num_clips:
        assert num_right[name] / num_clips[name] >= 0.99, (name, num_right[name], num_clips[name])


def test_clauses_that_a_caption_does_not_give_are_empty() -> None:
    assert parse("a cat") == Clauses((Said("cat"),))
