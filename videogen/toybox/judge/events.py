"""Detect what two things do together: pass each other, collide, or one passes behind the other.

things, Canvas  ->  [Event]
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, permutations

import numpy as np

from videogen.toybox.judge.observations import Event, FoundThing
from videogen.toybox.judge.templates import Appearance, Canvas, select_frames
from videogen.toybox.world.motions import Pose

SIDEWAYS = ("right", "left")
TOUCHING = 1.25
"""Things touch at so many times the sum of their radii: the world's collide at 0.85 of it."""
MAX_TURN_DELAY = 4.0
"""Frames between the collision of two things and the turn of either."""
EQUAL_ERROR = 1.02
"""Ratio of two errors that are the same but for noise."""
NUM_ORDER_FRAMES = 3
"""Frames, those in which two things overlap most, that tell which of them is in front."""


def find_events(things: Sequence[FoundThing], canvas: Canvas) -> tuple[Event, ...]:
    """Detect every event of every pair of things."""
    pairs = list(combinations(enumerate(things), 2))
    crossings = [Event("cross", i, j) for (i, a), (j, b) in pairs if crosses(a, b)]
    collisions = [Event("collide", i, j) for (i, a), (j, b) in pairs if collides(a, b)]
    # Two white things show no order: as far as can be seen, either is in front.
    occlusions = [
        Event("behind", i, j)
        for (i, a), (j, b) in permutations(enumerate(things), 2)
        if passes(a, b) and composite_error(a, b, canvas) <= EQUAL_ERROR * composite_error(b, a, canvas)
    ]
    return (*crossings, *collisions, *occlusions)


def crosses(a: FoundThing, b: FoundThing) -> bool:
    """True if one thing goes right, the other left, past each other."""
    gap = a.trajectory.positions[:, 0] - b.trajectory.positions[:, 0]
    return {a.motion, b.motion} == set(SIDEWAYS) and bool(gap[0] * gap[-1] < 0)


def collides(a: FoundThing, b: FoundThing) -> bool:
    """True if both things come, touch and go back, neither passing the other."""
    if {a.motion, b.motion} != {"bounce side to side"}:
        return False
    x, other = a.trajectory.positions[:, 0], b.trajectory.positions[:, 0]
    gap = np.abs(x - other)
    nearest = int(gap.argmin())
    touch = gap[nearest] < TOUCHING * float(a.pose.radius[nearest] + b.pose.radius[nearest])
    nearest_within = min(gap[0], gap[-1]) > gap[nearest] and 0 < nearest < len(gap) - 1
    turn_delays = [abs(int(np.abs(path - path[0]).argmax()) - nearest) for path in (x, other)]
    keep_sides = (np.sign(x - other) == np.sign(x - other)[0]).all()
    return bool(touch and nearest_within and max(turn_delays) <= MAX_TURN_DELAY and keep_sides)


def passes(mover: FoundThing, rester: FoundThing) -> bool:
    """True if a thing goes sideways from one side of a resting one to the other, over it or under it."""
    if mover.motion not in SIDEWAYS or rester.motion not in ("still", "spin"):
        return False
    gap = mover.trajectory.positions - rester.trajectory.positions
    nearest = np.hypot(*gap.T).min()
    return bool(gap[0, 0] * gap[-1, 0] < 0 and nearest < np.median(mover.pose.radius + rester.pose.radius))


def composite_error(lower: FoundThing, upper: FoundThing, canvas: Canvas) -> float:
    """Measure the squared error of one thing under another, in the frames in which they are nearest."""
    below, above = pose_on_trajectory(lower), pose_on_trajectory(upper)
    nearest = np.hypot(below.x - above.x, below.y - above.y).argsort()[:NUM_ORDER_FRAMES]
    below, above = select_frames(below, nearest), select_frames(above, nearest)
    # The crop lies about both, so that either order is measured on the same pixels.
    x, y, radius = (below.x + above.x) / 2, (below.y + above.y) / 2, float((below.radius + above.radius).max())
    crop = select_frames(canvas, nearest).crop(x, y, radius)
    picture = crop.plate
    for thing, pose in ((lower, below), (upper, above)):
        layer = crop.render(Appearance(thing.kind, thing.colour), pose)
        picture = picture * (1 - layer[..., 3:]) + layer[..., :3]
    return float((np.square(picture - crop.residual - crop.plate).sum(-1) * crop.weight).sum())


def pose_on_trajectory(thing: FoundThing) -> Pose:
    """Move a thing to its trajectory, before a still camera: so it has a place in the frames in which it is hidden."""
    x, y = thing.trajectory.positions.T
    return thing.pose._replace(x=x, y=y, radius=np.full(len(x), np.median(thing.pose.radius)))
