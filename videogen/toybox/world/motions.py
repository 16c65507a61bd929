"""How things move: each motion draws a pace that fits the room there is, then follows it exactly.

    Thing, steps (t,)  ->  Pose: x, y, radius, angle, opacity, each (t,)

Positions are continuous pixels, x to the right and y down: pixel i covers [i, i + 1), so its centre is i + 0.5.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import pi, sqrt
from typing import NamedTuple

import numpy as np

MAX_SPEED = 5.0
"""Pixels a frame: faster things would be seen only as flicker at 8 frames a second."""


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One object: what it is, and the numbers from which its motion computes its whole path."""

    kind: str
    colour: str
    """Empty where the kind has colours of its own."""
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
    """How far a path that comes back leads from its middle, or how many frames it takes to turn."""
    phase: float = 0.0
    """Where in its cycle a path that comes back begins, in turns."""


class Pose(NamedTuple):
    """Centre, radius, clockwise angle in radians and opacity, each (t,) for a thing or (t, n) for a scene."""

    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    angle: np.ndarray
    opacity: np.ndarray


class Room(NamedTuple):
    """What a motion may use: pixels the centre can travel each way, the radius, and frames it has."""

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
    return Pose(still + thing.x, still + thing.y, still + thing.radius, still, still + 1)


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


def roll(right: int) -> Motion:
    """Along the floor, turning as a wheel does."""
    line = straight(right, 0)

    def pose(thing: Thing, step: np.ndarray) -> Pose:
        return line.pose(thing, step)._replace(angle=right * thing.speed * step / thing.radius)

    def pace(rng: np.random.Generator, room: Room) -> tuple[float, float, float]:
        return min(line.pace(rng, room)[0], MAX_SPEED / 2), 0.0, 0.0  # the rim goes twice as fast

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


AIRBORNE, GROUNDED = 7, 3
"""Frames of a hop in the air and on the ground."""


def pace_jump(rng: np.random.Generator, room: Room) -> tuple[float, float, float]:
    """Hops about as high as a thing's radius; the first begins within the first two frames."""
    height = min(rng.uniform(0.85, 1.1) * 1.2 * room.radius, MAX_SPEED * AIRBORNE / 3.5, room.y * 0.9)
    return 4 * height / AIRBORNE, height, rng.uniform(-2, 0) / (AIRBORNE + GROUNDED)


def jump(thing: Thing, step: np.ndarray) -> Pose:
    """Hop on the spot, again and again: a parabola, then a rest; reach is the height."""
    in_cycle = (thing.phase * (AIRBORNE + GROUNDED) + step) % (AIRBORNE + GROUNDED)
    share = np.clip(in_cycle / AIRBORNE, 0, 1)
    return resting(thing, step)._replace(y=thing.y - 4 * thing.reach * share * (1 - share))


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
    """At most 16 degrees a frame: a star, which repeats every 72, never seems to turn backwards."""
    # The rim leaves half of the speed to a camera that moves, too.
    return min(rng.uniform(9, 16) * pi / 180 * room.radius, MAX_SPEED / 2) * rng.choice((-1, 1)), 0.0, 0.0


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


def fade(first: float, last: float) -> Motion:
    """Between two opacities, in the first four fifths of the clip."""

    def pose(thing: Thing, step: np.ndarray) -> Pose:
        share = np.clip(np.linspace(0, 1.25, len(step)), 0, 1)
        return resting(thing, step)._replace(opacity=first + share * (last - first))

    return Motion(lambda _rng, _room: (0.0, 0.0, 0.0), pose)


def collide(right: int) -> Motion:
    """Towards another thing, and back from where they touch: x is the place of that, reach the frame."""

    def pose(thing: Thing, step: np.ndarray) -> Pose:
        return resting(thing, step)._replace(x=thing.x - right * thing.speed * np.abs(step - thing.reach))

    return Motion(lambda _rng, room: (0.0, room.steps / 2, 0.0), pose)


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
    "jump": Motion(pace_jump, jump),
    "roll right": roll(1),
    "roll left": roll(-1),
    "spin": Motion(pace_spin, spin),
    "orbit": Motion(pace_orbit, orbit),
    "grow": resize(0.4, 0.6),
    "shrink": resize(-0.55, -0.4),
    "fade in": fade(0, 1),
    "fade out": fade(1, 0),
}
"""What one thing does of its own accord."""

COLLISIONS: dict[str, Motion] = {"collide from the left": collide(1), "collide from the right": collide(-1)}
"""What each of two colliding things does."""

IN_PLACE: tuple[str, ...] = ("still", "spin", "jump", "grow", "shrink", "fade in", "fade out")


def move(thing: Thing, num_frames: int) -> Pose:
    """Where a thing is in every frame, each (t,)."""
    return (MOTIONS | COLLISIONS)[thing.motion].pose(thing, np.arange(num_frames))
