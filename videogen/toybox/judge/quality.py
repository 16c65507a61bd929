"""What no caption says and still makes a clip good or bad: steady paths, steady light, things that stay what they are.

frames, Found, Clauses  ->  Quality;  clips of one prompt  ->  their diversity

A distance between sets of clips needs a network: it is in videogen/toybox/features.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import NamedTuple

import numpy as np
from einops import rearrange

from videogen.toybox.judge.caption_parser import Clauses
from videogen.toybox.judge.colour_space import see
from videogen.toybox.judge.observations import Found, FoundThing
from videogen.toybox.judge.verdict import pair
from videogen.toybox.world.motions import MAX_SPEED

IN_SIGHT = 0.3
"""A thing is seen in a frame in which it is so much like itself, as a share of its best frame."""
HANDOVER = 2
"""Frames within which one thing ends and another begins where a thing has become another."""


class Quality(NamedTuple):
    """Measures of one clip; none where there is nothing to measure."""

    path_error: float | None
    """Smoothness of motion: pixels (root mean square) between things and the nearest paths of their motions."""
    flicker: float | None
    """Grey levels by which the background, before a still camera, differs from the mean of its neighbours in time."""
    identity_switches: int
    """Things that become others on the way."""
    permanence: float | None
    """Share of the frames in which the thing least often seen is in sight, of those in which nothing hides it; things
    that fade are left out where the caption says that one does."""


MEANINGS: dict[str, str] = {
    "path_error": "distance in pixels of things from an even path",
    "flicker": "change of the background from frame to frame, in grey levels",
    "identity_switches": "things that become others, a clip",
    "permanence": "share of the frames in which things are in sight",
    "diversity": "spread of the places where things begin, for one prompt, as a share of the frame's side",
}


def measure_quality(frames: np.ndarray, found: Found, clauses: Clauses) -> Quality:
    """The measures of one clip, of which a caption says this."""
    if found.num_frames < 3:
        return Quality(None, None, 0, None)
    may_fade = any("fade" in said.motion for said in clauses.things)
    lasting = [thing for thing in found.things if not (may_fade and "fade" in thing.motion)]
    errors = [thing.path.error for thing in found.things]
    return Quality(
        float(np.mean(errors)) if errors else None,
        flicker(frames, found) if found.camera.name == "still" else None,
        count_switches(found.things),
        min((permanence(thing, found.things) for thing in lasting), default=None),
    )


def flicker(frames: np.ndarray, found: Found) -> float | None:
    """Mean second difference in time of what no thing ever covers."""
    light = see(frames)[..., 0]
    row, column = np.ogrid[: found.height, : found.width]
    empty = np.ones((found.height, found.width), bool)
    for thing in found.things:
        x, y, radius = (rearrange(part, "t -> t 1 1") for part in thing.pose[:3])
        empty &= (np.hypot(column + 0.5 - x, row + 0.5 - y) > radius + 2).all(0)
    if not empty.any():
        return None
    return float(np.abs(light[1:-1] - (light[:-2] + light[2:]) / 2)[:, empty].mean())


def count_switches(things: Sequence[FoundThing]) -> int:
    """Pairs of which the first ends when and where the second begins, neither of them fading."""
    return sum(becomes(a, b) for a, b in permutations(things, 2))


def becomes(a: FoundThing, b: FoundThing) -> bool:
    """Whether the first thing turns into the second."""
    if a.motion.startswith("fade") and b.motion.startswith("fade") and not meets(a, b, 0):
        return False
    ends, begins = (np.flatnonzero(in_sight(thing)) for thing in (a, b))
    if not len(ends) or not len(begins) or begins[0] == 0 or ends[-1] == len(a.likeness) - 1:
        return False
    return abs(int(begins[0] - ends[-1]) - 1) <= HANDOVER and meets(a, b, int(begins[0]))


def meets(a: FoundThing, b: FoundThing, frame: int) -> bool:
    """Whether two things are in one place in a frame."""
    distance = np.hypot(a.pose.x[frame] - b.pose.x[frame], a.pose.y[frame] - b.pose.y[frame])
    return bool(distance < max(a.pose.radius[frame], b.pose.radius[frame]) / 2 + MAX_SPEED)


def in_sight(thing: FoundThing) -> np.ndarray:
    """The frames in which a thing is seen, (t,)."""
    return thing.likeness > IN_SIGHT * thing.likeness.max()


def permanence(thing: FoundThing, things: Sequence[FoundThing]) -> float:
    """Share of the frames in which a thing is in sight, of those in which no other's circle touches it."""
    free = np.ones(len(thing.likeness), bool)
    for other in things:
        if other is not thing:
            apart = np.hypot(thing.pose.x - other.pose.x, thing.pose.y - other.pose.y)
            free &= apart > thing.pose.radius + other.pose.radius
    return float(in_sight(thing)[free].mean()) if free.any() else 1.0


def diversity(clips: Sequence[Found], clauses: Clauses) -> float | None:
    """How far apart the thing that a prompt names first begins in its clips: the spread of its places, over the side.

    The root of the variance of x and y in all, estimated from so many clips.
    """
    meant = [(found, pair(found, clauses)[0]) for found in clips]
    poses = [(found, found.things[i].pose) for found, i in meant if i is not None]
    starts = np.array([(pose.x[0] / found.width, pose.y[0] / found.height) for found, pose in poses])
    return float(np.sqrt(starts.var(axis=0, ddof=1).sum())) if len(starts) > 1 else None
