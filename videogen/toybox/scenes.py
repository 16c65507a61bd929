"""Draw a small world from a seed, and say where everything in it is.

    seed  ->  Scene: a background and one or two Things  ->  track: Pose of (t, n) arrays

Positions are continuous pixels, x to the right and y down: pixel i covers [i, i + 1), so its centre is i + 0.5.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from math import pi, sqrt
from typing import NamedTuple, TypeVar

import numpy as np

T = TypeVar("T")
Colour = tuple[int, int, int]
FrameSize = tuple[int, int]

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "ring")
ROUND_SHAPES = frozenset({"circle", "ring"})
"""Shapes that look the same however far they have turned: they never spin."""

COLOURS: dict[str, Colour] = {
    "red": (215, 25, 30),
    "green": (25, 165, 50),
    "blue": (40, 100, 255),
    "yellow": (250, 225, 30),
    "orange": (255, 125, 0),
    "purple": (140, 40, 200),
    "white": (250, 250, 250),
    "pink": (255, 140, 200),
}

BACKGROUNDS: dict[str, tuple[Colour, ...]] = {
    "black": ((0, 0, 0),),
    "white": ((250, 250, 250),),
    "grey": ((120, 120, 120),),
    "dark blue": ((18, 28, 100),),
    "gradient": ((5, 35, 45), (50, 135, 140)),
    "checkerboard": ((35, 35, 38), (88, 88, 92)),
    "night sky": ((6, 7, 24),),
}
"""The colours a background is made of; `render` says how they are laid out."""

SIZES: dict[str, tuple[float, float]] = {"small": (0.116, 0.134), "large": (0.19, 0.216)}
"""Least and greatest radius, as a share of the frame's shorter side."""

FRAME_SIZES: tuple[FrameSize, ...] = (
    (64, 64),
    *((w, h) for w, h in product((48, 64, 80, 96), repeat=2) if (w, h) != (64, 64)),
)
"""(width, height); the first is drawn most often."""

LENGTHS: tuple[int, ...] = (17, 1, 9, 25, 33)
"""Numbers of frames, all 1 + 8k; the first is drawn most often."""

MAX_SPEED = 5.0
"""Pixels a frame: faster things would be seen only as flicker at 8 frames a second."""


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One object: what it is, and the numbers from which its motion computes its whole path."""

    shape: str
    colour: str
    size: str
    motion: str
    radius: float
    """Of the circle around it, in the first frame."""
    x: float = 0.0
    """Where it starts, or the middle of a path that comes back."""
    y: float = 0.0
    speed: float = 0.0
    """Pixels a frame, of the centre, or of the rim when the centre rests; below zero is counterclockwise or inwards."""
    reach: float = 0.0
    """How far a path that comes back leads from its middle."""
    phase: float = 0.0
    """Where in its cycle a path that comes back begins, in turns."""


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


class Pose(NamedTuple):
    """Centre, radius and clockwise angle in radians, each (t,) for a thing or (t, n) for a scene."""

    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    angle: np.ndarray


class Room(NamedTuple):
    """What a motion may use: pixels the centre can travel each way, and frames it has."""

    x: float
    y: float
    radius: float
    steps: int


@dataclass(frozen=True)
class Motion:
    """A way to move: `pace` draws speed, reach and phase that fit the room, `pose` follows them."""

    pace: Callable[[np.random.Generator, Room], tuple[float, float, float]]
    pose: Callable[[Thing, np.ndarray], Pose]


def resting(thing: Thing, step: np.ndarray) -> Pose:
    """The pose of a thing that does nothing; motions replace what they change."""
    still = np.zeros(len(step))
    return Pose(still + thing.x, still + thing.y, still + thing.radius, still)


def straight(right: float, down: float) -> Motion:
    """Along a line, at an even pace."""

    def pace(rng: np.random.Generator, room: Room) -> tuple[float, float, float]:
        longest = min(way / abs(part) for way, part in ((room.x, right), (room.y, down)) if part)
        # Well short of the whole way, so that where a thing starts does not give away where it goes.
        return min(longest * rng.uniform(0.4, 0.8) / room.steps, MAX_SPEED), 0.0, 0.0

    def pose(thing: Thing, step: np.ndarray) -> Pose:
        x, y = thing.x + right * thing.speed * step, thing.y + down * thing.speed * step
        return resting(thing, step)._replace(x=x, y=y)

    return Motion(pace, pose)


def bounce(right: float, down: float) -> Motion:
    """There and back along one axis, turning round at least once."""

    def pace(rng: np.random.Generator, room: Room) -> tuple[float, float, float]:
        speed = rng.uniform(2.5, 4.5)
        swing = min((room.x * right + room.y * down) * rng.uniform(0.5, 0.9), speed * room.steps / 1.4)
        return speed, swing / 2, rng.uniform()

    def pose(thing: Thing, step: np.ndarray) -> Pose:
        turns = thing.phase + thing.speed * step / (4 * thing.reach)
        offset = thing.reach * (4 * np.abs((turns + 0.25) % 1 - 0.5) - 1)
        return resting(thing, step)._replace(x=thing.x + right * offset, y=thing.y + down * offset)

    return Motion(pace, pose)


def pace_orbit(rng: np.random.Generator, room: Room) -> tuple[float, float, float]:
    """At least three quarters of a turn, at most 0.6 radians a frame."""
    speed = rng.uniform(2.5, 4.5)
    reach = min(min(room.x, room.y) / 2 * rng.uniform(0.6, 0.95), speed * room.steps / (1.5 * pi))
    return min(speed, 0.6 * reach) * rng.choice((-1, 1)), reach, rng.uniform()


def orbit(thing: Thing, step: np.ndarray) -> Pose:
    """Round a point, without turning."""
    turned = 2 * pi * thing.phase + thing.speed * step / thing.reach
    x, y = thing.x + thing.reach * np.cos(turned), thing.y + thing.reach * np.sin(turned)
    return resting(thing, step)._replace(x=x, y=y)


def pace_spin(rng: np.random.Generator, room: Room) -> tuple[float, float, float]:
    """9 to 16 degrees a frame: a star, which repeats every 72, never seems to turn backwards."""
    return min(rng.uniform(9, 16) * pi / 180 * room.radius, MAX_SPEED) * rng.choice((-1, 1)), 0.0, 0.0


def spin(thing: Thing, step: np.ndarray) -> Pose:
    """On the spot."""
    return resting(thing, step)._replace(angle=thing.speed * step / thing.radius)


def resize(least: float, greatest: float) -> Motion:
    """Change the radius evenly, by a share of it that lies between the two."""

    def pace(rng: np.random.Generator, room: Room) -> tuple[float, float, float]:
        return rng.uniform(least, greatest) * room.radius / room.steps, 0.0, 0.0

    def pose(thing: Thing, step: np.ndarray) -> Pose:
        return resting(thing, step)._replace(radius=thing.radius + thing.speed * step)

    return Motion(pace, pose)


MOTIONS: dict[str, Motion] = {
    "still": Motion(lambda _rng, _room: (0.0, 0.0, 0.0), resting),
    "right": straight(1, 0),
    "left": straight(-1, 0),
    "up": straight(0, -1),
    "down": straight(0, 1),
    "up right": straight(sqrt(0.5), -sqrt(0.5)),
    "up left": straight(-sqrt(0.5), -sqrt(0.5)),
    "down right": straight(sqrt(0.5), sqrt(0.5)),
    "down left": straight(-sqrt(0.5), sqrt(0.5)),
    "bounce up and down": bounce(0, 1),
    "bounce side to side": bounce(1, 0),
    "spin": Motion(pace_spin, spin),
    "orbit": Motion(pace_orbit, orbit),
    "grow": resize(0.4, 0.6),
    "shrink": resize(-0.55, -0.4),
}


def track(scene: Scene) -> Pose:
    """Where every thing is in every frame, each (t, n)."""
    step = np.arange(scene.num_frames)
    poses = [MOTIONS[thing.motion].pose(thing, step) for thing in scene.things]
    return Pose(*(np.stack(part, axis=1) for part in zip(*poses, strict=True)))


def pick(rng: np.random.Generator, options: Sequence[T], *, first: float | None = None) -> T:
    """One of the options, all alike, or the first with a chance of its own."""
    if first is None or len(options) == 1:
        return options[int(rng.integers(len(options)))]
    return options[0] if rng.random() < first else options[1 + int(rng.integers(len(options) - 1))]


def contrasts(colour: str, background: str) -> bool:
    """Whether a colour can be told from all of a background, also after chroma subsampling (BT.601 distance)."""
    # Chroma counts half: it is stored at half the resolution and quantised more coarsely.
    to_ycc = np.array([[0.299, 0.587, 0.114], [-0.084, -0.166, 0.25], [0.25, -0.209, -0.041]])
    differences = np.array(BACKGROUNDS[background]) - np.array(COLOURS[colour])
    return bool(np.linalg.norm(differences @ to_ycc.T, axis=1).min() > 35)


def draw_thing(rng: np.random.Generator, *, side: int, moves: bool, background: str) -> Thing:
    """What a thing is, for a frame whose shorter side is given; where it is and how fast comes later."""
    shape, size = pick(rng, SHAPES), pick(rng, tuple(SIZES))
    motions = [name for name in MOTIONS if not (name == "spin" and shape in ROUND_SHAPES)]
    return Thing(
        shape=shape,
        colour=pick(rng, [name for name in COLOURS if contrasts(name, background)]),
        size=size,
        motion=pick(rng, motions) if moves else "still",
        radius=side * rng.uniform(*SIZES[size]),
    )


def put(rng: np.random.Generator, thing: Thing, *, width: int, height: int, num_frames: int) -> Thing:
    """The same thing at some pace, somewhere its whole path stays inside the frame with a pixel to spare."""
    motion, border = MOTIONS[thing.motion], thing.radius + 1
    room = Room(width - 2 * border, height - 2 * border, thing.radius, num_frames - 1)
    speed, reach, phase = motion.pace(rng, room)
    paced = replace(thing, speed=float(speed), reach=float(reach), phase=float(phase))
    pose = motion.pose(paced, np.arange(num_frames))
    place: list[float] = []
    for path, length in ((pose.x, width), (pose.y, height)):
        low, high = (pose.radius - path).max() + 1, length - (pose.radius + path).max() - 1
        assert low <= high, f"{thing.motion} with {thing.radius = :.1f} does not fit into {width}x{height}"
        place.append(float(rng.uniform(low, high)))
    return replace(paced, x=place[0], y=place[1])


def apart(scene: Scene) -> bool:
    """Whether things do not touch in the first frame, and never hide each other's middle later."""
    pose = track(scene)
    for i, j in combinations(range(len(scene.things)), 2):
        distance = np.hypot(pose.x[:, i] - pose.x[:, j], pose.y[:, i] - pose.y[:, j])
        closeness = distance / (pose.radius[:, i] + pose.radius[:, j])
        if closeness[0] < 1 or closeness.min() < 0.6:
            return False
    return True


def draw_scene(
    seed: int, *, sizes: Sequence[FrameSize] = FRAME_SIZES, lengths: Sequence[int] = LENGTHS, fps: int = 8
) -> Scene:
    """The scene of a seed. Of sizes (width, height) and lengths the first is drawn six times in ten."""
    rng = np.random.default_rng([seed, 0])
    width, height = pick(rng, sizes, first=0.6)
    num_frames = pick(rng, lengths, first=0.6)
    background = pick(rng, tuple(BACKGROUNDS))
    num_things = pick(rng, (1, 2), first=0.6)
    while True:
        things: dict[tuple[str, str], Thing] = {}
        while len(things) < num_things:
            thing = draw_thing(rng, side=min(width, height), moves=num_frames > 1, background=background)
            things.setdefault((thing.shape, thing.colour), thing)
        # Other places and paces come first, other things last (one pair in a hundred): or else large things grow rare.
        for _ in range(100):
            there = tuple(put(rng, one, width=width, height=height, num_frames=num_frames) for one in things.values())
            scene = Scene(
                width=width, height=height, num_frames=num_frames, fps=fps,
                background=background, things=there, seed=seed,
            )
            if apart(scene):
                return scene
