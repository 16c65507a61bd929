"""The toybox's world: what its seeds, motions and pictures promise."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from tests.scenes import RED_CIRCLE, SCENE
from videogen.toybox import Scene, Thing, caption, draw_scene, masks, render, track
from videogen.toybox.world.motions import MOTIONS
from videogen.toybox.world.scenes import can, held_out
from videogen.toybox.world.shapes import DISTANCES
from videogen.toybox.world.things import (
    BACKGROUNDS,
    COLOURS,
    DIGITS,
    KINDS,
    ROUND,
    SHAPES,
    SIZES,
    SPRITES,
    TEXTURED,
    contrasts,
    tile,
)


@pytest.fixture(scope="module")
def things(scenes: list[Scene]) -> list[Thing]:
    return [thing for scene in scenes for thing in scene.things]


def centre_of_mass(mask: np.ndarray) -> tuple[float, float]:
    row, column = np.indices(mask.shape) + 0.5
    return float((mask * column).sum() / mask.sum()), float((mask * row).sum() / mask.sum())


def alone(scene: Scene) -> list[Scene]:
    return [replace(scene, things=(thing,)) for thing in scene.things]


def free(scenes: list[Scene]) -> list[Scene]:
    """Scenes of things that go their own way before a camera that stands still."""
    return [scene for scene in scenes if scene.camera == "still" and not scene.event]


def test_a_seed_is_always_the_same_clip() -> None:
    for seed in (0, 7, 2**63):
        assert draw_scene(seed) == draw_scene(seed)
        assert caption(draw_scene(seed), seed) == caption(draw_scene(seed), seed)
        assert np.array_equal(render(draw_scene(seed)), render(draw_scene(seed)))


def test_two_seeds_are_two_clips(scenes: list[Scene]) -> None:
    assert len({replace(scene, seed=0) for scene in scenes}) == len(scenes)


@pytest.mark.parametrize(
    ("attribute", "values", "tolerance"),
    [
        ("kind", SHAPES, 0.2),
        ("kind", DIGITS, 0.4),
        ("kind", SPRITES, 0.65),  # some are missing on several backgrounds
        ("colour", COLOURS, 0.25),  # each is missing on one background or another
        ("size", SIZES, 0.1),
        ("motion", [name for name in MOTIONS if name != "still" and all(can(kind, name) for kind in KINDS)], 0.25),
    ],
)
def test_every_value_of_an_attribute_is_as_common_as_another(
    scenes: list[Scene], attribute: str, values: list[str], tolerance: float
) -> None:
    things = [thing for scene in free(scenes) if len(scene.things) < 3 for thing in scene.things]
    counts = Counter(getattr(thing, attribute) for thing in things)
    mean = sum(counts[value] for value in values) / len(values)
    for value in values:  # one standard deviation is 7 % of the mean for 15 motions
        assert counts[value] == pytest.approx(mean, rel=tolerance), value


def test_sizes_and_lengths_are_spread_as_promised(scenes: list[Scene]) -> None:
    sizes = Counter((scene.width, scene.height) for scene in scenes)
    lengths = Counter(scene.num_frames for scene in scenes)
    assert sizes[64, 64] / len(scenes) == pytest.approx(0.6, abs=0.04)
    assert lengths[17] / len(scenes) == pytest.approx(0.6, abs=0.04)
    assert len(sizes) == 16
    assert set(lengths) == {1, 9, 17, 25, 33}
    assert all(0.5 <= w / h <= 2 and w % 16 == 0 and h % 16 == 0 for w, h in sizes)
    assert sum(len(scene.things) == 1 for scene in scenes) / len(scenes) == pytest.approx(0.55, abs=0.04)
    backgrounds = Counter(scene.background for scene in scenes)
    assert min(backgrounds[name] for name in BACKGROUNDS) > 0.8 * len(scenes) / len(BACKGROUNDS)


def test_a_caller_may_restrict_sizes_and_lengths() -> None:
    for seed in range(50):
        scene = draw_scene(seed, sizes=((64, 64),), lengths=(9,))
        assert (scene.width, scene.height, scene.num_frames) == (64, 64, 9)


def test_things_stay_in_the_frame(scenes: list[Scene]) -> None:
    for scene in scenes:
        pose = track(scene)
        assert (pose.x - pose.radius).min() >= 0.99, scene
        assert (pose.y - pose.radius).min() >= 0.99, scene
        assert (pose.x + pose.radius).max() <= scene.width - 0.99, scene
        assert (pose.y + pose.radius).max() <= scene.height - 0.99, scene


def test_no_point_moves_faster_than_five_and_a_half_pixels_a_frame(scenes: list[Scene]) -> None:
    for scene in scenes:
        pose = track(scene)
        x, y, radius, angle = (np.diff(part, axis=0) for part in pose[:4])
        rim = np.abs(radius) + pose.radius[1:] * np.abs(angle)
        assert (np.hypot(x, y) + rim).max(initial=0) <= 5.5, scene


def test_everything_that_is_said_to_move_visibly_moves(scenes: list[Scene]) -> None:
    for scene in free(scenes)[:500]:
        for one in alone(scene):
            frames = render(one).astype(int)
            changed = (np.abs(frames - frames[0]).max(axis=-1) > 40).sum(axis=(1, 2)).max()
            assert (changed == 0) == (one.things[0].motion == "still"), one
            assert changed == 0 or changed >= 15, one


def test_the_mask_lies_where_the_truth_says(scenes: list[Scene]) -> None:
    for scene in scenes[:400]:
        for one in alone(scene):
            if one.things[0].kind not in SHAPES or one.things[0].motion.startswith("fade"):
                continue
            pose = track(one)
            for t, mask in enumerate(masks(one)[:, 0]):
                x, y = centre_of_mass(mask)
                assert abs(x - pose.x[t, 0]) < 0.5, one  # every shape is drawn about its centre of mass
                assert abs(y - pose.y[t, 0]) < 0.5, one
                row, column = np.nonzero(mask > 0.5)
                farthest = np.hypot(column + 0.5 - x, row + 0.5 - y).max()
                assert farthest == pytest.approx(pose.radius[t, 0], abs=2.5), one  # sharp tips cover little of a pixel


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_reaches_the_circle_around_it_and_no_farther(shape: str) -> None:
    axis = np.linspace(-1.5, 1.5, 601)
    x, y = np.meshgrid(axis, axis)
    inside = DISTANCES[shape](x, y) < 0
    assert np.hypot(x, y)[inside].max() == pytest.approx(1, abs=0.03)
    assert np.abs([x[inside].mean(), y[inside].mean()]).max() < 0.01


def test_a_distance_is_one_in_pixels_near_the_edge() -> None:
    """Otherwise edges would be sharper or softer on some shapes."""
    axis = np.linspace(-1.2, 1.2, 801)
    x, y = np.meshgrid(axis, axis)
    for name, distance in DISTANCES.items():
        values = distance(x, y)
        slope = np.hypot(*np.gradient(values, axis[1] - axis[0]))
        assert np.median(slope[np.abs(values) < 0.05]) == pytest.approx(1, abs=0.02), name


def test_the_coverage_of_a_circle_is_its_area() -> None:
    assert masks(SCENE).sum(axis=(1, 2, 3)) == pytest.approx(np.pi * 13**2, rel=0.005)


WAYS: dict[str, tuple[int, int]] = {
    "right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1),
    "up right": (1, -1), "up left": (-1, -1), "down right": (1, 1), "down left": (-1, 1),
}  # fmt: skip


@pytest.mark.parametrize("motion", WAYS)
def test_a_direction_is_the_one_that_is_seen(scenes: list[Scene], motion: str) -> None:
    found = [one for scene in free(scenes) for one in alone(scene) if one.things[0].motion == motion][:40]
    for one in found:
        seen = masks(one)[:, 0]
        way = np.subtract(centre_of_mass(seen[-1]), centre_of_mass(seen[0]))
        assert np.hypot(*way) > 5, one
        assert (np.where(np.abs(way) < 0.5, 0, np.sign(way)) == WAYS[motion]).all(), one


def test_bouncing_turns_round_and_an_orbit_comes_round(scenes: list[Scene]) -> None:
    for scene in scenes:
        pose = track(scene)
        for i, thing in enumerate(scene.things):
            if thing.motion.startswith("bounce"):
                along = pose.x[:, i] if "side" in thing.motion else pose.y[:, i]
                assert len({*np.sign(np.diff(along).round(3))} - {0}) == 2, thing
            if thing.motion == "orbit":
                turned = abs(thing.speed / thing.reach) * (scene.num_frames - 1)
                assert turned > 1.4 * np.pi, thing


def test_growing_grows_and_shrinking_shrinks(scenes: list[Scene]) -> None:
    for scene in free(scenes):
        for one in alone(scene):
            area = masks(one).sum(axis=(1, 2, 3))
            if one.things[0].motion in {"grow", "shrink"}:
                grows = one.things[0].motion == "grow"
                assert area[-1] > 1.8 * area[0] if grows else area[-1] < area[0] / 2, one


def test_only_shapes_that_show_it_spin(things: list[Thing]) -> None:
    assert not any(thing.motion == "spin" and thing.kind in ROUND for thing in things)


def test_positive_speed_turns_clockwise_on_the_screen() -> None:
    arrow = replace(RED_CIRCLE, kind="heart", motion="spin", x=32, speed=13 * np.pi / 2)
    tip_down, tip_left = masks(replace(SCENE, things=(arrow,), num_frames=2))[:, 0]
    assert tip_down[43, 32] > 0.5
    assert tip_left[32, 20] > 0.5


def test_things_differ_and_start_apart(scenes: list[Scene]) -> None:
    for scene in scenes:
        if len(scene.things) > 1:
            assert len({(thing.kind, thing.colour) for thing in scene.things}) == len(scene.things)
            together, apart = masks(scene)[0].sum(), sum(masks(one)[0].sum() for one in alone(scene))
            assert together == pytest.approx(apart, rel=1e-3)


def test_nothing_is_ever_wholly_hidden(scenes: list[Scene]) -> None:
    for scene in scenes:
        if len(scene.things) > 1 and scene.event != "behind":
            whole = np.stack([masks(one)[:, 0].sum(axis=(1, 2)) for one in alone(scene)], axis=1)
            assert (masks(scene).sum(axis=(2, 3)) / whole.clip(1e-6))[whole > 1].min() > 0.2, scene


def test_later_things_hide_earlier_ones() -> None:
    blue = replace(RED_CIRCLE, colour="blue")
    frames = render(replace(SCENE, things=(RED_CIRCLE, blue)))
    assert tuple(frames[0, 32, 20]) == COLOURS["blue"]


def test_frames_are_painted_in_the_named_colour(scenes: list[Scene]) -> None:
    for scene in scenes[:100]:
        frames = render(scene)
        assert frames.shape == (scene.num_frames, scene.height, scene.width, 3)
        assert frames.dtype == np.uint8
        for thing, mask in zip(scene.things, np.moveaxis(masks(scene), 1, 0), strict=True):
            if thing.kind not in SHAPES:
                continue
            assert (frames[mask > 0.999] == COLOURS[thing.colour]).all()


def test_things_outside_the_frame_are_cut_off_not_an_error() -> None:
    for x in (-500.0, -13.0, 0.0, 64.0, 500.0):
        seen = masks(replace(SCENE, things=(replace(RED_CIRCLE, x=x, speed=0.0),)))
        expected = np.pi * 13**2 / 2 if x in {0.0, 64.0} else 0
        assert seen[0].sum() == pytest.approx(expected, rel=0.01)


def test_every_colour_differs_from_its_background_and_from_every_other() -> None:
    for background in BACKGROUNDS:
        assert sum(contrasts("circle", colour, background) for colour in COLOURS) >= 5, background
        assert sum(contrasts(sprite, "", background) for sprite in SPRITES) >= 5, background
    assert not contrasts("circle", "white", "white")
    values = np.array(list(COLOURS.values()))
    distance = np.linalg.norm(values[:, None] - values[None], axis=-1)
    assert distance[~np.eye(len(values), dtype=bool)].min() > 90


def test_some_combinations_are_kept_from_training(things: list[Thing]) -> None:
    assert not any(map(held_out, things))
    new = [draw_scene(seed, lengths=(17,), new=True) for seed in range(40)]
    assert all(held_out(scene.things[0]) and scene.camera == "still" for scene in new)
    with pytest.raises(ValueError, match="give lengths above 1"):
        draw_scene(0, lengths=(1,), new=True)
    seen = {(thing.kind, thing.motion) for thing in things}
    assert {scene.things[0].kind for scene in new} <= {kind for kind, _ in seen}
    combinations = [replace(RED_CIRCLE, kind=k, colour=c, motion=m) for k in SHAPES for c in COLOURS for m in MOTIONS]
    assert sum(map(held_out, combinations)) / len(combinations) == pytest.approx(0.05, abs=0.01)


def test_a_camera_moves_the_world_the_other_way(scenes: list[Scene]) -> None:
    panning = replace(SCENE, things=(replace(RED_CIRCLE, motion="still"),), camera="pan right", camera_speed=0.5)
    assert track(panning).x[:, 0] == pytest.approx(20 - 0.5 * np.arange(17))
    closer = replace(panning, camera="zoom in", camera_speed=0.02)
    assert track(closer).radius[-1, 0] == pytest.approx(13 * np.exp(0.32))
    assert {scene.background for scene in scenes if scene.camera != "still"} == set(TEXTURED)


def test_events_are_what_they_are_called(scenes: list[Scene]) -> None:
    for scene in scenes:
        pose = track(scene)
        gap = pose.x[:, 0] - pose.x[:, -1]
        if scene.event in {"cross", "behind"}:
            assert gap[0] * gap[-1] < 0, scene
        if scene.event == "collide":
            distance = np.abs(gap)
            assert distance.argmin() not in {0, len(gap) - 1}, scene
            assert distance.min() <= 0.85 * pose.radius[0].sum() + scene.things[0].speed + 0.01 < distance[0], scene


def test_a_picture_fills_its_circle_and_is_cut_off_outside() -> None:
    down, right = np.mgrid[:64, :64] + 0.5 - 32
    for kind in (*DIGITS, *SPRITES):
        cover = tile(kind)[..., 3]
        assert 28 < np.hypot(down, right)[cover > 0.25].max() < 34, kind
