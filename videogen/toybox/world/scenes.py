"""Draw a small world from a seed, and track everything in it.

    seed  ->  Scene: background, camera, one to three Things  ->  track: Pose of (t, n) arrays on the screen

Things move in world coordinates, which the camera pans over or zooms into; a still camera shows them unchanged. Some
combinations of kind, colour and motion are drawn on request only: they test how a model generalises to new ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from math import log
from zlib import crc32

import numpy as np
from einops import rearrange

from videogen.toybox.world.events import EVENTS
from videogen.toybox.world.motions import IN_PLACE_MOTIONS, MAX_SPEED, MOTIONS, MotionBounds, Pose, Thing, world_pose
from videogen.toybox.world.things import (
    BACKGROUNDS,
    COLOURS,
    DIGITS,
    ROLLING_KINDS,
    SHAPES,
    SIZES,
    SPINNING_KINDS,
    SPRITES,
    TEXTURED_BACKGROUNDS,
    has_contrast,
    sample_choice,
)

FrameSize = tuple[int, int]

FRAME_SIZES: tuple[FrameSize, ...] = (
    (64, 64),
    *((w, h) for w, h in product((48, 64, 80, 96), repeat=2) if (w, h) != (64, 64)),
)
"""(width, height); the first is drawn most often."""

LENGTHS: tuple[int, ...] = (17, 1, 9, 25, 33)
"""Numbers of frames, all 1 + 8k; the first is drawn most often."""

CAMERAS: dict[str, tuple[int, int, int]] = {
    "still": (0, 0, 0),
    "pan right": (1, 0, 0),
    "pan left": (-1, 0, 0),
    "pan up": (0, -1, 0),
    "pan down": (0, 1, 0),
    "zoom in": (0, 0, 1),
    "zoom out": (0, 0, -1),
}
"""Direction of the camera: right, down, closer. On the screen the world moves the other way."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Everything that determines the frames of a clip; later things hide earlier ones."""

    width: int
    height: int
    num_frames: int
    fps: int
    background: str
    things: tuple[Thing, ...]
    seed: int
    camera: str = "still"
    camera_speed: float = 0.0
    """Pixels per frame of a pan; for a zoom, the growth per frame of the logarithm of the scale."""
    event: str = ""
    """Joint event of two things: cross, collide or behind; empty if each moves on its own."""


def camera_transform(scene: Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute the camera's shift in x and y and its scale about the centre in every frame, each (t,)."""
    step = np.arange(scene.num_frames) * scene.camera_speed
    right, down, closer = CAMERAS[scene.camera]
    return right * step, down * step, np.exp(closer * step)


def track(scene: Scene) -> Pose:
    """Compute the pose of every thing on the screen in every frame, each (t, n)."""
    poses = [world_pose(thing, scene.num_frames) for thing in scene.things]
    world = Pose(*(np.stack(values, axis=1) for values in zip(*poses, strict=True)))
    x, y, scale = (rearrange(values, "t -> t 1") for values in camera_transform(scene))
    return world._replace(
        x=scene.width / 2 + scale * (world.x - scene.width / 2 - x),
        y=scene.height / 2 + scale * (world.y - scene.height / 2 - y),
        radius=scale * world.radius,
    )


def is_held_out(thing: Thing) -> bool:
    """True if a moving thing is one of the 5% of combinations that are held out of training."""
    return thing.motion in MOTIONS and thing.motion != "still" and (
        crc32(f"{thing.kind} {thing.colour or thing.size} {thing.motion}".encode()) % 20 == 0
    )  # fmt: skip


def spatial_relation(scene: Scene) -> str:
    """Classify where the first of two things in place is, seen from the second: left, right, above, below or ""."""
    if len(scene.things) != 2 or any(thing.motion not in IN_PLACE_MOTIONS for thing in scene.things):
        return ""
    dx, dy = (float(centre[0, 0] - centre[0, 1]) for centre in track(scene)[:2])
    if abs(dx) > 1.5 * abs(dy):
        return "right" if dx > 0 else "left"
    return ("below" if dy > 0 else "above") if abs(dy) > 1.5 * abs(dx) else ""


def shows_motion(kind: str, motion: str) -> bool:
    """True if a thing of this kind visibly moves when it has this motion."""
    return kind in SPINNING_KINDS if motion == "spin" else kind in ROLLING_KINDS or not motion.startswith("roll")


def sample_things(
    rng: np.random.Generator, num_things: int, scene: Scene, motions: Sequence[str], sizes: Sequence[str]
) -> list[Thing]:
    """Sample things without pace or place, visible on the scene's background, no two alike in kind and colour.

    Half of the candidates are shapes, 20% digits and 30% sprites.
    """
    things = dict[tuple[str, str], Thing]()
    while len(things) < num_things:
        kind = sample_choice(rng, (SHAPES, DIGITS, SPRITES)[rng.choice(3, p=(0.5, 0.2, 0.3))])
        colour = "" if kind in SPRITES else sample_choice(rng, tuple(COLOURS))
        if not has_contrast(kind, colour, scene.background):
            continue
        size = sample_choice(rng, sizes)
        motion = sample_choice(rng, [name for name in motions if shows_motion(kind, name)])
        radius = min(scene.width, scene.height) * rng.uniform(*SIZES[size])
        things.setdefault((kind, colour), Thing(kind=kind, colour=colour, size=size, motion=motion, radius=radius))
    return list(things.values())


def sample_path(rng: np.random.Generator, thing: Thing, scene: Scene) -> Thing:
    """Sample the pace and place of a thing so that its whole path stays on the screen, a pixel from the edge."""
    border = thing.radius + 1
    bounds = MotionBounds(scene.width - 2 * border, scene.height - 2 * border, thing.radius, scene.num_frames - 1)
    speed, reach, phase = MOTIONS[thing.motion].sample_pace(rng, bounds)
    paced = replace(thing, speed=float(speed), reach=float(reach), phase=float(phase), x=0.0, y=0.0)
    pose = world_pose(paced, scene.num_frames)
    *shifts, scale = camera_transform(scene)
    place: list[float] = []
    for path, shift, length in zip(pose[:2], shifts, (scene.width, scene.height), strict=True):
        half, margin = length / 2, pose.radius + 1 / scale
        low = (half + shift - half / scale + margin - path).max()
        high = (half + shift + half / scale - margin - path).min()
        assert low <= high, f"{thing.motion} with {thing.radius = :.1f} does not fit into {length} pixels"
        place.append(float(rng.uniform(low, high)))
    return replace(paced, x=place[0], y=place[1])


def are_apart(scene: Scene) -> bool:
    """True if no things touch in the first frame, two never hide each other's centre, and three never touch at all."""
    pose, soft_edge = track(scene), 1  # pixels between two circles that keep their soft edges from overlapping
    for i, j in combinations(range(len(scene.things)), 2):
        distance = np.hypot(pose.x[:, i] - pose.x[:, j], pose.y[:, i] - pose.y[:, j])
        relative = distance / (pose.radius[:, i] + pose.radius[:, j] + soft_edge)
        if relative[0] < 1 or relative.min() < (0.6 if len(scene.things) == 2 else 1):
            return False
    return True


def sample_camera(rng: np.random.Generator, scene: Scene) -> Scene:
    """Sample a camera: one clip in three on a textured background pans or zooms, an image never does.

    A pan covers 15 to 40% of the frame, a zoom a factor of 1.35 to 1.7.
    """
    if scene.background not in TEXTURED_BACKGROUNDS or scene.num_frames == 1 or rng.random() > 1 / 3:
        return scene
    camera, steps = sample_choice(rng, tuple(CAMERAS)[1:]), scene.num_frames - 1
    length = scene.width if CAMERAS[camera][0] else scene.height
    distance = log(rng.uniform(1.35, 1.7)) if CAMERAS[camera][2] else length * rng.uniform(0.15, 0.4)
    return replace(scene, camera=camera, camera_speed=min(distance / steps, MAX_SPEED / 2))


def sample_event(rng: np.random.Generator, scene: Scene) -> Scene:
    """Sample two small things that cross, collide, or pass one behind the other."""
    event = sample_choice(rng, tuple(EVENTS))
    while True:
        first, second = sample_things(rng, 2, scene, ("still",), ("small",))
        pair = EVENTS[event](rng, (first, second), scene.width, scene.height, scene.num_frames - 1)
        if not any(map(is_held_out, pair)):
            return replace(scene, things=pair, event=event)


def sample_extent(
    rng: np.random.Generator, sizes: Sequence[FrameSize], lengths: Sequence[int]
) -> tuple[FrameSize, int]:
    """Sample frame size and number of frames; a scene samples them first, so they can be known without the rest."""
    return sample_choice(rng, sizes, first_probability=0.6), sample_choice(rng, lengths, first_probability=0.6)


def scene_extent(
    seed: int, *, sizes: Sequence[FrameSize] = FRAME_SIZES, lengths: Sequence[int] = LENGTHS
) -> tuple[FrameSize, int]:
    """Predict (width, height) and number of frames of draw_scene(seed), a hundred times as fast as drawing it."""
    return sample_extent(np.random.default_rng([seed, 0]), sizes, lengths)


def draw_scene(
    seed: int,
    *,
    sizes: Sequence[FrameSize] = FRAME_SIZES,
    lengths: Sequence[int] = LENGTHS,
    fps: int = 8,
    new: bool = False,
) -> Scene:
    """Draw the scene of a seed; the first of sizes (width, height) and of lengths is drawn six times in ten.

    new draws one moving thing, before a still camera, whose combination of attributes is held out of training. Raises
    ValueError if new is set and no length is above 1.
    """
    if new and max(lengths) == 1:
        raise ValueError("an image shows no motion, so it cannot show a held-out one; give lengths above 1")
    rng = np.random.default_rng([seed, 0])
    (width, height), num_frames = sample_extent(rng, sizes, [length for length in lengths if length > 1 or not new])
    background = sample_choice(rng, tuple(BACKGROUNDS))
    empty = Scene(
        width=width, height=height, num_frames=num_frames, fps=fps, background=background, things=(), seed=seed
    )
    if not new:
        empty = sample_camera(rng, empty)
    num_things = 1 if new else int(rng.choice((1, 2, 3), p=(0.55, 0.35, 0.1)))
    if num_things == 2 and num_frames >= 17 and empty.camera == "still" and rng.random() < 0.3:
        return sample_event(rng, empty)
    thing_sizes = tuple(SIZES) if num_things < 3 else ("small",)
    motions = ("still",) if num_frames == 1 else tuple(MOTIONS) if empty.camera == "still" else ("still", "spin")
    while True:
        things = sample_things(rng, num_things, empty, motions, thing_sizes)
        if any(is_held_out(thing) != new for thing in things):
            continue
        # New paths are tried before new things (which one pair in a hundred needs), or large things would grow rare.
        for _ in range(100):
            scene = replace(empty, things=tuple(sample_path(rng, thing, empty) for thing in things))
            if are_apart(scene):
                return scene
