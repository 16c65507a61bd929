"""Move things: each motion samples a pace that fits the frame, then computes the whole path in closed form.

    Thing, frame numbers (t,)  ->  Pose: x, y, radius, angle, opacity, each (t,)

Positions are continuous pixels, x to the right and y down: pixel i covers [i, i + 1), so its centre is i + 0.5.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import pi, sqrt
from typing import NamedTuple

import numpy as np

MAX_SPEED = 5.0
"""Pixels per frame: anything faster would only flicker at 8 frames a second."""


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One object of a scene: its appearance, and the numbers from which its motion computes the path."""

    kind: str
    colour: str
    """Empty for a sprite, which has colours of its own."""
    size: str
    motion: str
    radius: float
    """Radius of the enclosing circle in the first frame, in pixels."""
    x: float = 0.0
    """Start of the path, or the middle of a periodic one."""
    y: float = 0.0
    speed: float = 0.0
    """Pixels per frame of the centre, or of the rim if the centre rests; negative is counterclockwise or inwards."""
    reach: float = 0.0
    """Amplitude of a periodic path in pixels; for a collision, the frame in which the thing turns back."""
    phase: float = 0.0
    """Phase of a periodic path in the first frame, in turns."""


class Pose(NamedTuple):
    """Centre, radius, clockwise angle in radians and opacity, each (t,) for a thing or (t, n) for a scene."""

    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    angle: np.ndarray
    opacity: np.ndarray


class MotionBounds(NamedTuple):
    """Limits of a motion: pixels that the centre can travel along each axis, the radius, and steps between frames."""

    x: float
    y: float
    radius: float
    steps: int


Pace = tuple[float, float, float]
"""Speed, reach and phase of a Thing."""


@dataclass(frozen=True)
class Motion:
    """A kind of motion: `sample_pace` samples a pace within bounds, `pose` follows it at frame numbers (t,)."""

    sample_pace: Callable[[np.random.Generator, MotionBounds], Pace]
    pose: Callable[[Thing, np.ndarray], Pose]


def rest_pose(thing: Thing, frame: np.ndarray) -> Pose:
    """Compute the pose of a thing at rest; every motion replaces the parts that it changes."""
    zeros = np.zeros(len(frame))
    return Pose(zeros + thing.x, zeros + thing.y, zeros + thing.radius, zeros, zeros + 1)


def straight_motion(right: float, down: float) -> Motion:
    """Make a motion along a line at constant speed; (right, down) is its unit vector."""

    def sample_pace(rng: np.random.Generator, bounds: MotionBounds) -> Pace:
        longest = min(room / abs(part) for room, part in ((bounds.x, right), (bounds.y, down)) if part)
        # The path is well short of the room, so that the start of a thing does not reveal its direction.
        return min(longest * rng.uniform(0.4, 0.8) / bounds.steps, MAX_SPEED), 0.0, 0.0

    def pose(thing: Thing, frame: np.ndarray) -> Pose:
        x, y = thing.x + right * thing.speed * frame, thing.y + down * thing.speed * frame
        return rest_pose(thing, frame)._replace(x=x, y=y)

    return Motion(sample_pace, pose)


def roll_motion(right: int) -> Motion:
    """Make a motion along the floor, turning as a wheel does; right is 1 or -1."""
    line = straight_motion(right, 0)

    def pose(thing: Thing, frame: np.ndarray) -> Pose:
        return line.pose(thing, frame)._replace(angle=right * thing.speed * frame / thing.radius)

    # The limit is half of MAX_SPEED, because the top of the rim moves twice as fast as the centre.
    return Motion(lambda rng, bounds: (min(line.sample_pace(rng, bounds)[0], MAX_SPEED / 2), 0.0, 0.0), pose)


def bounce_motion(right: float, down: float) -> Motion:
    """Make a motion back and forth along one axis that turns round at least once."""

    def sample_pace(rng: np.random.Generator, bounds: MotionBounds) -> Pace:
        speed = rng.uniform(2.5, 4.5)
        swing = min((bounds.x * right + bounds.y * down) * rng.uniform(0.5, 0.9), speed * bounds.steps / 1.4)
        return speed, swing / 2, rng.uniform()

    def pose(thing: Thing, frame: np.ndarray) -> Pose:
        turns = thing.phase + thing.speed * frame / (4 * thing.reach)
        offset = thing.reach * (4 * np.abs((turns + 0.25) % 1 - 0.5) - 1)
        return rest_pose(thing, frame)._replace(x=thing.x + right * offset, y=thing.y + down * offset)

    return Motion(sample_pace, pose)


AIRBORNE_FRAMES, GROUNDED_FRAMES = 7, 3
"""Frames that one hop spends in the air and on the ground."""


def sample_jump_pace(rng: np.random.Generator, bounds: MotionBounds) -> Pace:
    """Sample hops about as high as the radius; the first begins within the first two frames."""
    height = min(rng.uniform(0.85, 1.1) * 1.2 * bounds.radius, MAX_SPEED * AIRBORNE_FRAMES / 3.5, bounds.y * 0.9)
    return 4 * height / AIRBORNE_FRAMES, height, rng.uniform(-2, 0) / (AIRBORNE_FRAMES + GROUNDED_FRAMES)


def jump_pose(thing: Thing, frame: np.ndarray) -> Pose:
    """Hop on the spot again and again: a parabola of height reach, then a rest."""
    in_cycle = (thing.phase * (AIRBORNE_FRAMES + GROUNDED_FRAMES) + frame) % (AIRBORNE_FRAMES + GROUNDED_FRAMES)
    progress = np.clip(in_cycle / AIRBORNE_FRAMES, 0, 1)
    return rest_pose(thing, frame)._replace(y=thing.y - 4 * thing.reach * progress * (1 - progress))


def sample_orbit_pace(rng: np.random.Generator, bounds: MotionBounds) -> Pace:
    """Sample at least three quarters of a turn, at no more than 0.6 radians per frame."""
    speed = rng.uniform(2.5, 4.5)
    reach = min(min(bounds.x, bounds.y) / 2 * rng.uniform(0.6, 0.95), speed * bounds.steps / (1.5 * pi))
    return min(speed, 0.6 * reach) * rng.choice((-1, 1)), reach, rng.uniform()


def orbit_pose(thing: Thing, frame: np.ndarray) -> Pose:
    """Circle round a point without turning."""
    angle = 2 * pi * thing.phase + thing.speed * frame / thing.reach
    x, y = thing.x + thing.reach * np.cos(angle), thing.y + thing.reach * np.sin(angle)
    return rest_pose(thing, frame)._replace(x=x, y=y)


def sample_spin_pace(rng: np.random.Generator, bounds: MotionBounds) -> Pace:
    """Sample at most 16 degrees per frame: a star, which repeats every 72, never seems to turn backwards."""
    # The rim may use half of MAX_SPEED; the other half is left for a moving camera.
    return min(rng.uniform(9, 16) * pi / 180 * bounds.radius, MAX_SPEED / 2) * rng.choice((-1, 1)), 0.0, 0.0


def spin_pose(thing: Thing, frame: np.ndarray) -> Pose:
    """Turn on the spot."""
    return rest_pose(thing, frame)._replace(angle=thing.speed * frame / thing.radius)


def resize_motion(low: float, high: float) -> Motion:
    """Make a motion that changes the radius linearly, in all by a share of it between low and high."""

    def pose(thing: Thing, frame: np.ndarray) -> Pose:
        return rest_pose(thing, frame)._replace(radius=thing.radius + thing.speed * frame)

    return Motion(lambda rng, bounds: (rng.uniform(low, high) * bounds.radius / bounds.steps, 0.0, 0.0), pose)


def fade_motion(first: float, last: float) -> Motion:
    """Make a motion that changes the opacity linearly, within the first four fifths of the clip."""

    def pose(thing: Thing, frame: np.ndarray) -> Pose:
        progress = np.clip(np.linspace(0, 1.25, len(frame)), 0, 1)
        return rest_pose(thing, frame)._replace(opacity=first + progress * (last - first))

    return Motion(lambda _rng, _bounds: (0.0, 0.0, 0.0), pose)


def collision_motion(right: int) -> Motion:
    """Make a motion towards another thing and back; x is the place of contact, reach its frame."""

    def pose(thing: Thing, frame: np.ndarray) -> Pose:
        return rest_pose(thing, frame)._replace(x=thing.x - right * thing.speed * np.abs(frame - thing.reach))

    return Motion(lambda _rng, bounds: (0.0, bounds.steps / 2, 0.0), pose)


MOTIONS: dict[str, Motion] = {
    "still": Motion(lambda _rng, _bounds: (0.0, 0.0, 0.0), rest_pose),
    "right": straight_motion(1, 0),
    "left": straight_motion(-1, 0),
    "up": straight_motion(0, -1),
    "down": straight_motion(0, 1),
    "up right": straight_motion(sqrt(0.5), -sqrt(0.5)),
    "up left": straight_motion(-sqrt(0.5), -sqrt(0.5)),
    "down right": straight_motion(sqrt(0.5), sqrt(0.5)),
    "down left": straight_motion(-sqrt(0.5), sqrt(0.5)),
    "bounce up and down": bounce_motion(0, 1),
    "bounce side to side": bounce_motion(1, 0),
    "jump": Motion(sample_jump_pace, jump_pose),
    "roll right": roll_motion(1),
    "roll left": roll_motion(-1),
    "spin": Motion(sample_spin_pace, spin_pose),
    "orbit": Motion(sample_orbit_pace, orbit_pose),
    "grow": resize_motion(0.4, 0.6),
    "shrink": resize_motion(-0.55, -0.4),
    "fade in": fade_motion(0, 1),
    "fade out": fade_motion(1, 0),
}
"""Motions of a single thing."""

COLLISION_MOTIONS: dict[str, Motion] = {
    "collide from the left": collision_motion(1),
    "collide from the right": collision_motion(-1),
}

IN_PLACE_MOTIONS: tuple[str, ...] = ("still", "spin", "jump", "grow", "shrink", "fade in", "fade out")


def world_pose(thing: Thing, num_frames: int) -> Pose:
    """Compute the pose of a thing in every frame, each (t,), in world coordinates."""
    return (MOTIONS | COLLISION_MOTIONS)[thing.motion].pose(thing, np.arange(num_frames))
