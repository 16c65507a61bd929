"""What two things do together: pass each other, collide, or one passes behind the other.

things, Canvas  ->  [Event]
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, permutations

import numpy as np

from videogen.toybox.judge.observations import Event, FoundThing
from videogen.toybox.judge.templates import Canvas, Look, cut, shown_in
from videogen.toybox.world.motions import Pose

Shown = tuple[Look, Pose]
SIDEWAYS = ("right", "left")
TOUCHING = 1.25
"""Things touch at so many times the sum of their radii: the world's collide at 0.85 of it."""
MOST_TOGETHER = 4.0
"""Frames between the turns of two things that collide."""
EQUAL = 1.02
"""Ratio of two errors that are the same but for noise."""
NUM_LOOKS = 3
"""Frames, those in which two things overlap most, that tell which of them is in front."""


def find_events(things: Sequence[FoundThing], canvas: Canvas) -> tuple[Event, ...]:
    """Every event of every pair."""
    found = [Event("cross", i, j) for i, j in combinations(range(len(things)), 2) if crosses(things[i], things[j])]
    found += [Event("collide", i, j) for i, j in combinations(range(len(things)), 2) if collides(things[i], things[j])]
    found += [
        Event("behind", i, j)
        for i, j in permutations(range(len(things)), 2)
        if passes(things[i], things[j]) and is_behind(things[i], things[j], canvas)
    ]
    return tuple(found)


def crosses(a: FoundThing, b: FoundThing) -> bool:
    """Whether one goes right, the other left, past each other."""
    if {a.motion, b.motion} != set(SIDEWAYS):
        return False
    gap = a.path.places[:, 0] - b.path.places[:, 0]
    return bool(gap[0] * gap[-1] < 0)


def collides(a: FoundThing, b: FoundThing) -> bool:
    """Whether both come, touch and go back, neither passing the other."""
    if {a.motion, b.motion} != {"bounce side to side"}:
        return False
    x, other = a.path.places[:, 0], b.path.places[:, 0]
    gap = np.abs(x - other)
    nearest = int(gap.argmin())
    turns = [abs(int(np.abs(part - part[0]).argmax()) - nearest) for part in (x, other)]
    together = gap[nearest] < TOUCHING * float(a.pose.radius[nearest] + b.pose.radius[nearest])
    apart = min(gap[0], gap[-1]) > gap[nearest] and 0 < nearest < len(gap) - 1
    return bool(
        together and apart and max(turns) <= MOST_TOGETHER and (np.sign(x - other) == np.sign(x - other)[0]).all()
    )


def passes(mover: FoundThing, rester: FoundThing) -> bool:
    """Whether one goes sideways from one side of a resting one to the other, over it or under it."""
    if mover.motion not in SIDEWAYS or rester.motion not in ("still", "spin"):
        return False
    gap = mover.path.places - rester.path.places
    nearest = np.hypot(*gap.T).min()
    return bool(gap[0, 0] * gap[-1, 0] < 0 and nearest < np.median(mover.pose.radius + rester.pose.radius))


def is_behind(mover: FoundThing, rester: FoundThing, canvas: Canvas) -> bool:
    """Whether the frames are no worse explained with the first behind the second than before it."""
    mover_shown, rester_shown = ((Look(thing.kind, thing.colour), on_path(thing)) for thing in (mover, rester))
    # Two white things show no order: as far as can be seen, either is in front.
    return layers_error(mover_shown, rester_shown, canvas) <= EQUAL * layers_error(rester_shown, mover_shown, canvas)


def layers_error(lower: Shown, upper: Shown, canvas: Canvas) -> float:
    """Squared error of one thing under another, in the frames in which they are nearest."""
    poses = lower[1], upper[1]
    nearest = np.hypot(poses[0].x - poses[1].x, poses[0].y - poses[1].y).argsort()[:NUM_LOOKS]
    part = Canvas(*(part[nearest] for part in canvas))
    below, above = (Pose(*(values[nearest] for values in pose)) for pose in poses)
    # About both, so that either order is asked of the same pixels.
    middle, reach = (below.x + above.x) / 2, float((below.radius + above.radius).max())
    window = cut(part, middle, (below.y + above.y) / 2, reach)
    picture = window.plate
    for look, pose in ((lower[0], below), (upper[0], above)):
        shown = shown_in(look, pose, window)
        picture = picture * (1 - shown[..., 3:]) + shown[..., :3]
    return float((np.square(picture - window.rest - window.plate).sum(-1) * window.weight).sum())


def on_path(thing: FoundThing) -> Pose:
    """A thing's pose where its motion would have it, before a still camera: what is hidden has a place, too."""
    x, y = thing.path.places.T
    return thing.pose._replace(x=x, y=y, radius=np.full(len(x), np.median(thing.pose.radius)))
