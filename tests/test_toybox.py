"""The toybox's world: guarantees on seeds, sampling, motions and rendered pixels."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from tests.scenes import RED_CIRCLE, SCENE
from videogen.toybox import Scene, Thing, caption, draw_scene, masks, render, track
from videogen.toybox.world.motions import MOTIONS
from videogen.toybox.world.scenes import is_held_out, shows_motion
from videogen.toybox.world.shapes import SIGNED_DISTANCES
from videogen.toybox.world.things import (
    BACKGROUNDS,
    COLOURS,
    DIGITS,
    KINDS,
    ROUND_KINDS,
    SHAPES,
    SIZES,
    SPRITES,
    TEXTURED_BACKGROUNDS,
    has_contrast,
    load_tile,
)


@pytest.fixture(scope="module")
def things(scenes: list[Scene]) -> list[Thing]:
    return [thing for scene in scenes for thing in scene.things]


def centre_of_mass(mask: np.ndarray) -> tuple[float, float]:
    row, column = np.indices(mask.shape) + 0.5
    return float((mask * column).sum() / mask.sum()), float((mask * row).sum() / mask.sum())


def solo_scenes(scene: Scene) -> list[Scene]:
    """Make one scene per thing, which shows that thing alone."""
    return [replace(scene, things=(thing,)) for thing in scene.things]


def plain_scenes(scenes: list[Scene]) -> list[Scene]:
    """Select the scenes without an event or a moving camera."""
    return [scene for scene in scenes if scene.camera == "still" and not scene.event]


def test_a_seed_determines_scene_caption_and_frames() -> None:
    for seed in (0, 7, 2**63):
        assert draw_scene(seed) == draw_scene(seed)
        assert caption(draw_scene(seed), seed) == caption(draw_scene(seed), seed)
        assert np.array_equal(render(draw_scene(seed)), render(draw_scene(seed)))


def test_different_seeds_give_different_scenes(scenes: list[Scene]) -> None:
    assert len({replace(scene, seed=0) for scene in scenes}) == len(scenes)


@pytest.mark.parametrize(
    ("attribute", "values", "tolerance"),
    [
        ("kind", SHAPES, 0.2),
        ("kind", DIGITS, 0.4),
        ("kind", SPRITES, 0.65),  # Some lack contrast with several backgrounds.
        ("colour", COLOURS, 0.25),  # Each lacks contrast with some background.
        ("size", SIZES, 0.1),
        ("motion", [name for name in MOTIONS if name != "still" and all(shows_motion(k, name) for k in KINDS)], 0.25),
    ],
)
def test_the_values_of_an_attribute_are_equally_common(
    scenes: list[Scene], attribute: str, values: list[str], tolerance: float
) -> None:
    things = [thing for scene in plain_scenes(scenes) if len(scene.things) < 3 for thing in scene.things]
    counts = Counter(getattr(thing, attribute) for thing in things)
    mean = sum(counts[value] for value in values) / len(values)
    for value in values:  # One standard deviation is 7% of the mean for 15 motions.
        assert counts[value] == pytest.approx(mean, rel=tolerance), value


def test_sizes_lengths_things_and_backgrounds_have_their_documented_frequencies(scenes: list[Scene]) -> None:
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


def test_sizes_and_lengths_can_be_restricted() -> None:
    for seed in range(50):
        scene = draw_scene(seed, sizes=((64, 64),), lengths=(9,))
        assert (scene.width, scene.height, scene.num_frames) == (64, 64, 9)


def test_things_stay_inside_the_frame(scenes: list[Scene]) -> None:
    for scene in scenes:
        pose = track(scene)
        assert (pose.x - pose.radius).min() >= 0.99, scene
        assert (pose.y - pose.radius).min() >= 0.99, scene
        assert (pose.x + pose.radius).max() <= scene.width - 0.99, scene
        assert (pose.y + pose.radius).max() <= scene.height - 0.99, scene


def test_no_point_moves_faster_than_five_and_a_half_pixels_per_frame(scenes: list[Scene]) -> None:
    for scene in scenes:
        pose = track(scene)
        x, y, radius, angle = (np.diff(values, axis=0) for values in pose[:4])
        rim = np.abs(radius) + pose.radius[1:] * np.abs(angle)
        assert (np.hypot(x, y) + rim).max(initial=0) <= 5.5, scene


def test_a_thing_changes_pixels_exactly_if_its_motion_is_not_still(scenes: list[Scene]) -> None:
    for scene in plain_scenes(scenes)[:500]:
        for solo in solo_scenes(scene):
            frames = render(solo).astype(int)
            num_changed = (np.abs(frames - frames[0]).max(axis=-1) > 40).sum(axis=(1, 2)).max()
            assert (num_changed == 0) == (solo.things[0].motion == "still"), solo
            assert num_changed == 0 or num_changed >= 15, solo


def test_a_mask_has_the_centre_and_radius_of_the_tracked_pose(scenes: list[Scene]) -> None:
    for scene in scenes[:400]:
        for solo in solo_scenes(scene):
            if solo.things[0].kind not in SHAPES or solo.things[0].motion.startswith("fade"):
                continue
            pose = track(solo)
            for t, mask in enumerate(masks(solo)[:, 0]):
                x, y = centre_of_mass(mask)
                assert abs(x - pose.x[t, 0]) < 0.5, solo  # Every shape is centred on its centre of mass.
                assert abs(y - pose.y[t, 0]) < 0.5, solo
                row, column = np.nonzero(mask > 0.5)
                farthest = np.hypot(column + 0.5 - x, row + 0.5 - y).max()
                # The tolerance is for sharp tips, which cover little of a pixel.
                assert farthest == pytest.approx(pose.radius[t, 0], abs=2.5), solo


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_touches_its_enclosing_circle_and_is_centred_in_it(shape: str) -> None:
    axis = np.linspace(-1.5, 1.5, 601)
    x, y = np.meshgrid(axis, axis)
    inside = SIGNED_DISTANCES[shape](x, y) < 0
    assert np.hypot(x, y)[inside].max() == pytest.approx(1, abs=0.03)
    assert np.abs([x[inside].mean(), y[inside].mean()]).max() < 0.01


def test_a_signed_distance_has_unit_gradient_near_the_edge() -> None:
    """Otherwise the edges of some shapes would be sharper or softer than others."""
    axis = np.linspace(-1.2, 1.2, 801)
    x, y = np.meshgrid(axis, axis)
    for name, distance in SIGNED_DISTANCES.items():
        values = distance(x, y)
        slope = np.hypot(*np.gradient(values, axis[1] - axis[0]))
        assert np.median(slope[np.abs(values) < 0.05]) == pytest.approx(1, abs=0.02), name


def test_the_coverage_of_a_circle_sums_to_its_area() -> None:
    assert masks(SCENE).sum(axis=(1, 2, 3)) == pytest.approx(np.pi * 13**2, rel=0.005)


UNIT_STEPS: dict[str, tuple[int, int]] = {
    "right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1),
    "up right": (1, -1), "up left": (-1, -1), "down right": (1, 1), "down left": (-1, 1),
}  # fmt: skip


@pytest.mark.parametrize("motion", UNIT_STEPS)
def test_a_straight_motion_goes_in_the_direction_of_its_name(scenes: list[Scene], motion: str) -> None:
    solos = [solo for scene in plain_scenes(scenes) for solo in solo_scenes(scene)]
    for solo in [solo for solo in solos if solo.things[0].motion == motion][:40]:
        coverage = masks(solo)[:, 0]
        path = np.subtract(centre_of_mass(coverage[-1]), centre_of_mass(coverage[0]))
        assert np.hypot(*path) > 5, solo
        assert (np.where(np.abs(path) < 0.5, 0, np.sign(path)) == UNIT_STEPS[motion]).all(), solo


def test_a_bounce_reverses_and_an_orbit_makes_most_of_a_turn(scenes: list[Scene]) -> None:
    for scene in scenes:
        pose = track(scene)
        for i, thing in enumerate(scene.things):
            if thing.motion.startswith("bounce"):
                path = pose.x[:, i] if "side" in thing.motion else pose.y[:, i]
                assert len({*np.sign(np.diff(path).round(3))} - {0}) == 2, thing
            if thing.motion == "orbit":
                angle = abs(thing.speed / thing.reach) * (scene.num_frames - 1)
                assert angle > 1.4 * np.pi, thing


def test_area_nearly_doubles_when_a_thing_grows_and_halves_when_it_shrinks(scenes: list[Scene]) -> None:
    for scene in plain_scenes(scenes):
        for solo in solo_scenes(scene):
            area = masks(solo).sum(axis=(1, 2, 3))
            if solo.things[0].motion in {"grow", "shrink"}:
                grows = solo.things[0].motion == "grow"
                assert area[-1] > 1.8 * area[0] if grows else area[-1] < area[0] / 2, solo


def test_round_things_do_not_spin(things: list[Thing]) -> None:
    assert not any(thing.motion == "spin" and thing.kind in ROUND_KINDS for thing in things)


def test_positive_speed_turns_clockwise_on_the_screen() -> None:
    heart = replace(RED_CIRCLE, kind="heart", motion="spin", x=32, speed=13 * np.pi / 2)
    tip_down, tip_left = masks(replace(SCENE, things=(heart,), num_frames=2))[:, 0]
    assert tip_down[43, 32] > 0.5
    assert tip_left[32, 20] > 0.5


def test_things_differ_in_kind_or_colour_and_start_apart(scenes: list[Scene]) -> None:
    for scene in scenes:
        if len(scene.things) > 1:
            assert len({(thing.kind, thing.colour) for thing in scene.things}) == len(scene.things)
            separate_area = sum(masks(solo)[0].sum() for solo in solo_scenes(scene))
            assert masks(scene)[0].sum() == pytest.approx(separate_area, rel=1e-3)


def test_a_fifth_of_every_thing_is_always_visible_except_behind_another(scenes: list[Scene]) -> None:
    for scene in scenes:
        if len(scene.things) > 1 and scene.event != "behind":
            full_area = np.stack([masks(solo)[:, 0].sum(axis=(1, 2)) for solo in solo_scenes(scene)], axis=1)
            assert (masks(scene).sum(axis=(2, 3)) / full_area.clip(1e-6))[full_area > 1].min() > 0.2, scene


def test_later_things_hide_earlier_ones() -> None:
    blue = replace(RED_CIRCLE, colour="blue")
    frames = render(replace(SCENE, things=(RED_CIRCLE, blue)))
    assert tuple(frames[0, 32, 20]) == COLOURS["blue"]


def test_covered_pixels_have_exactly_the_named_colour(scenes: list[Scene]) -> None:
    for scene in scenes[:100]:
        frames = render(scene)
        assert frames.shape == (scene.num_frames, scene.height, scene.width, 3)
        assert frames.dtype == np.uint8
        for thing, mask in zip(scene.things, np.moveaxis(masks(scene), 1, 0), strict=True):
            if thing.kind not in SHAPES:
                continue
            assert (frames[mask > 0.999] == COLOURS[thing.colour]).all()


def test_things_are_clipped_at_the_edge_of_the_frame() -> None:
    for x in (-500.0, -13.0, 0.0, 64.0, 500.0):
        coverage = masks(replace(SCENE, things=(replace(RED_CIRCLE, x=x, speed=0.0),)))
        expected = np.pi * 13**2 / 2 if x in {0.0, 64.0} else 0
        assert coverage[0].sum() == pytest.approx(expected, rel=0.01)


def test_every_background_allows_five_colours_and_sprites_and_all_colours_differ() -> None:
    for background in BACKGROUNDS:
        assert sum(has_contrast("circle", colour, background) for colour in COLOURS) >= 5, background
        assert sum(has_contrast(sprite, "", background) for sprite in SPRITES) >= 5, background
    assert not has_contrast("circle", "white", "white")
    values = np.array(list(COLOURS.values()))
    distance = np.linalg.norm(values[:, None] - values[None], axis=-1)
    assert distance[~np.eye(len(values), dtype=bool)].min() > 90


def test_held_out_combinations_are_drawn_only_on_request(things: list[Thing]) -> None:
    assert not any(map(is_held_out, things))
    new = [draw_scene(seed, lengths=(17,), new=True) for seed in range(40)]
    assert all(is_held_out(scene.things[0]) and scene.camera == "still" for scene in new)
    with pytest.raises(ValueError, match="give lengths above 1"):
        draw_scene(0, lengths=(1,), new=True)
    assert {scene.things[0].kind for scene in new} <= {thing.kind for thing in things}
    combinations = [replace(RED_CIRCLE, kind=k, colour=c, motion=m) for k in SHAPES for c in COLOURS for m in MOTIONS]
    assert sum(map(is_held_out, combinations)) / len(combinations) == pytest.approx(0.05, abs=0.01)


def test_a_pan_shifts_things_the_other_way_and_a_zoom_scales_them(scenes: list[Scene]) -> None:
    panning = replace(SCENE, things=(replace(RED_CIRCLE, motion="still"),), camera="pan right", camera_speed=0.5)
    assert track(panning).x[:, 0] == pytest.approx(20 - 0.5 * np.arange(17))
    closer = replace(panning, camera="zoom in", camera_speed=0.02)
    assert track(closer).radius[-1, 0] == pytest.approx(13 * np.exp(0.32))
    assert {scene.background for scene in scenes if scene.camera != "still"} == set(TEXTURED_BACKGROUNDS)


def test_crossing_things_swap_sides_and_colliding_things_meet(scenes: list[Scene]) -> None:
    for scene in scenes:
        pose = track(scene)
        gap = pose.x[:, 0] - pose.x[:, -1]
        if scene.event in {"cross", "behind"}:
            assert gap[0] * gap[-1] < 0, scene
        if scene.event == "collide":
            distance = np.abs(gap)
            assert distance.argmin() not in {0, len(gap) - 1}, scene
            assert distance.min() <= 0.85 * pose.radius[0].sum() + scene.things[0].speed + 0.01 < distance[0], scene


def test_every_tile_fills_its_circle_and_is_transparent_outside() -> None:
    down, right = np.mgrid[:64, :64] + 0.5 - 32
    for kind in (*DIGITS, *SPRITES):
        alpha = load_tile(kind)[..., 3]
        assert 28 < np.hypot(down, right)[alpha > 0.25].max() < 34, kind
