"""Draw a small world from a seed, and say where everything in it is.

    seed  ->  Scene: background, camera, one to three Things  ->  track: Pose of (t, n) arrays on the screen

Things move in the world, which the camera then pans over or zooms into; with a still camera the two are one. Some
combinations of kind, colour and motion are never drawn unless asked for: they show what a model makes of new ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from math import log
from zlib import crc32

import numpy as np
from einops import rearrange

from videogen.toybox.world.events import EVENTS
from videogen.toybox.world.motions import IN_PLACE, MAX_SPEED, MOTIONS, Pose, Room, Thing, move
from videogen.toybox.world.things import (
    BACKGROUNDS,
    COLOURS,
    DIGITS,
    ROLLING,
    SHAPES,
    SIZES,
    SPINNING,
    SPRITES,
    TEXTURED,
    contrasts,
    pick,
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
"""Where the camera goes: right, down, closer. What is in the world goes the other way on the screen."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """All there is to know about a clip; later things hide earlier ones."""

    width: int
    height: int
    num_frames: int
    fps: int
    background: str
    things: tuple[Thing, ...]
    seed: int
    camera: str = "still"
    camera_speed: float = 0.0
    """Pixels a frame of a pan; of a zoom, the growth of the logarithm of the scale."""
    event: str = ""
    """What two things do together: cross, collide or behind; empty where each goes its own way."""


def view(scene: Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The camera in every frame: x and y of its shift, and its scale about the middle, each (t,)."""
    step = np.arange(scene.num_frames) * scene.camera_speed
    right, down, closer = CAMERAS[scene.camera]
    return right * step, down * step, np.exp(closer * step)


def track(scene: Scene) -> Pose:
    """Where every thing is on the screen in every frame, each (t, n)."""
    world = Pose(*(np.stack(part, axis=1) for part in zip(*(move(t, scene.num_frames) for t in scene.things))))  # noqa: B905
    x, y, scale = (rearrange(part, "t -> t 1") for part in view(scene))
    return world._replace(
        x=scene.width / 2 + scale * (world.x - scene.width / 2 - x),
        y=scene.height / 2 + scale * (world.y - scene.height / 2 - y),
        radius=scale * world.radius,
    )


def held_out(thing: Thing) -> bool:
    """Whether a moving thing is one of the 5% of combinations that training never shows."""
    return thing.motion in MOTIONS and thing.motion != "still" and (
        crc32(f"{thing.kind} {thing.colour or thing.size} {thing.motion}".encode()) % 20 == 0
    )  # fmt: skip


def relation(scene: Scene) -> str:
    """Where the first of two things is, seen from the second, if it stays there: left, right, above, below or ""."""
    if len(scene.things) != 2 or any(thing.motion not in IN_PLACE for thing in scene.things):
        return ""
    dx, dy = (float(place[0, 0] - place[0, 1]) for place in track(scene)[:2])
    if abs(dx) > 1.5 * abs(dy):
        return "right" if dx > 0 else "left"
    return ("below" if dy > 0 else "above") if abs(dy) > 1.5 * abs(dx) else ""


def draw_kind(rng: np.random.Generator, background: str) -> tuple[str, str]:
    """A kind and a colour that can be told from a background: half of the time a shape, else a digit or a sprite."""
    while True:
        kind = pick(rng, (SHAPES, DIGITS, SPRITES)[rng.choice(3, p=(0.5, 0.2, 0.3))])
        colour = "" if kind in SPRITES else pick(rng, tuple(COLOURS))
        if contrasts(kind, colour, background):
            return kind, colour


def can(kind: str, motion: str) -> bool:
    """Whether a motion of a kind of thing can be seen."""
    return kind in SPINNING if motion == "spin" else kind in ROLLING if motion.startswith("roll") else True


def draw_thing(
    rng: np.random.Generator, *, side: int, motions: Sequence[str], background: str, sizes: Sequence[str]
) -> Thing:
    """What a thing is, for a frame whose shorter side is given; where it is and how fast comes later."""
    kind, colour = draw_kind(rng, background)
    size = pick(rng, sizes)
    motion = pick(rng, [name for name in motions if can(kind, name)])
    return Thing(kind=kind, colour=colour, size=size, motion=motion, radius=side * rng.uniform(*SIZES[size]))


def put(rng: np.random.Generator, thing: Thing, scene: Scene) -> Thing:
    """The same thing at some pace, somewhere its whole path stays on the screen with a pixel to spare."""
    border = thing.radius + 1
    room = Room(scene.width - 2 * border, scene.height - 2 * border, thing.radius, scene.num_frames - 1)
    speed, reach, phase = MOTIONS[thing.motion].pace(rng, room)
    paced = replace(thing, speed=float(speed), reach=float(reach), phase=float(phase), x=0.0, y=0.0)
    pose = move(paced, scene.num_frames)
    *shifts, scale = view(scene)
    place: list[float] = []
    for path, shift, length in zip(pose[:2], shifts, (scene.width, scene.height), strict=True):
        half, margin = length / 2, pose.radius + 1 / scale
        low = (half + shift - half / scale + margin - path).max()
        high = (half + shift + half / scale - margin - path).min()
        assert low <= high, f"{thing.motion} with {thing.radius = :.1f} does not fit into {length} pixels"
        place.append(float(rng.uniform(low, high)))
    return replace(paced, x=place[0], y=place[1])


def apart(scene: Scene) -> bool:
    """Whether two things never hide each other's middle and do not touch at first, and three never touch at all."""
    pose, soft = track(scene), 1  # pixels between two circles, or else their soft edges overlap
    for i, j in combinations(range(len(scene.things)), 2):
        distance = np.hypot(pose.x[:, i] - pose.x[:, j], pose.y[:, i] - pose.y[:, j])
        closeness = distance / (pose.radius[:, i] + pose.radius[:, j] + soft)
        if closeness[0] < 1 or closeness.min() < (0.6 if len(scene.things) == 2 else 1):
            return False
    return True


def draw_camera(rng: np.random.Generator, scene: Scene) -> Scene:
    """Where a camera's motion is seen, one in three clips has one: over 15 to 40% of the frame, or by 1.35 to 1.7."""
    if scene.background not in TEXTURED or scene.num_frames == 1 or rng.random() > 1 / 3:
        return scene
    camera, steps = pick(rng, tuple(CAMERAS)[1:]), scene.num_frames - 1
    length = scene.width if CAMERAS[camera][0] else scene.height
    way = log(rng.uniform(1.35, 1.7)) if CAMERAS[camera][2] else length * rng.uniform(0.15, 0.4)
    return replace(scene, camera=camera, camera_speed=min(way / steps, MAX_SPEED / 2))


def draw_extent(rng: np.random.Generator, sizes: Sequence[FrameSize], lengths: Sequence[int]) -> tuple[FrameSize, int]:
    """The size and the number of frames of a scene: the first that is drawn of it, so that it can be known alone."""
    return pick(rng, sizes, first=0.6), pick(rng, lengths, first=0.6)


def extent(
    seed: int, *, sizes: Sequence[FrameSize] = FRAME_SIZES, lengths: Sequence[int] = LENGTHS
) -> tuple[FrameSize, int]:
    """(width, height) and the number of frames that draw_scene will give a seed, a hundred times as fast."""
    return draw_extent(np.random.default_rng([seed, 0]), sizes, lengths)


def draw_scene(
    seed: int,
    *,
    sizes: Sequence[FrameSize] = FRAME_SIZES,
    lengths: Sequence[int] = LENGTHS,
    fps: int = 8,
    new: bool = False,
) -> Scene:
    """The scene of a seed. Of sizes (width, height) and lengths the first is drawn six times in ten.

    new asks for one thing whose combination of attributes is held out of training: it moves, before a still camera.
    """
    if new and max(lengths) == 1:
        raise ValueError("an image shows no motion, so no combination of it is new; give lengths above 1")
    rng = np.random.default_rng([seed, 0])
    (width, height), num_frames = draw_extent(rng, sizes, [length for length in lengths if length > 1 or not new])
    background = pick(rng, tuple(BACKGROUNDS))
    empty = Scene(
        width=width, height=height, num_frames=num_frames, fps=fps, background=background, things=(), seed=seed
    )
    if not new:
        empty = draw_camera(rng, empty)
    num_things = 1 if new else int(rng.choice((1, 2, 3), p=(0.55, 0.35, 0.1)))
    if num_things == 2 and num_frames >= 17 and empty.camera == "still" and rng.random() < 0.3:
        return draw_event(rng, empty)
    sizes_of_things = tuple(SIZES) if num_things < 3 else ("small",)
    motions = ("still",) if num_frames == 1 else tuple(MOTIONS) if empty.camera == "still" else ("still", "spin")
    while True:
        things = draw_things(rng, num_things, empty, motions, sizes_of_things)
        if any(held_out(thing) != new for thing in things):
            continue
        # Other places and paces come first, other things last (one pair in a hundred): or else large things grow rare.
        for _ in range(100):
            scene = replace(empty, things=tuple(put(rng, thing, empty) for thing in things))
            if apart(scene):
                return scene


def draw_things(
    rng: np.random.Generator, num: int, scene: Scene, motions: Sequence[str], sizes: Sequence[str]
) -> list[Thing]:
    """Some things, no two of one kind and colour."""
    side, found = min(scene.width, scene.height), dict[tuple[str, str], Thing]()
    while len(found) < num:
        thing = draw_thing(rng, side=side, motions=motions, background=scene.background, sizes=sizes)
        found.setdefault((thing.kind, thing.colour), thing)
    return list(found.values())


def draw_event(rng: np.random.Generator, scene: Scene) -> Scene:
    """Two small things that pass each other, collide, or of which one passes behind the other."""
    event = pick(rng, tuple(EVENTS))
    while True:
        a, b = draw_things(rng, 2, scene, ("still",), ("small",))
        pair = EVENTS[event](rng, (a, b), scene.width, scene.height, scene.num_frames - 1)
        if not any(map(held_out, pair)):
            return replace(scene, things=pair, event=event)
