"""Measure what no caption states and still makes a clip good or bad: smooth paths, steady light, lasting things.

frames, Found, Clauses  ->  Quality;  clips of one prompt  ->  their diversity

The distance between sets of clips needs a network: it is in features.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import NamedTuple

import numpy as np
from einops import rearrange

from videogen.toybox.judge.caption_parser import Clauses
from videogen.toybox.judge.colour_space import to_ycc
from videogen.toybox.judge.observations import Found, FoundThing
from videogen.toybox.judge.verdict import match_things
from videogen.toybox.world.motions import MAX_SPEED

MIN_LIKENESS = 0.3
"""A thing is visible in a frame where its likeness is at least this share of that in its best frame."""
MAX_HANDOVER = 2
"""The most frames between the end of one thing and the beginning of the next, where the first turns into the second."""


class Quality(NamedTuple):
    """Measures of one clip; None where there is nothing to measure."""

    path_error: float | None
    """Root mean square distance in pixels between things and the nearest paths of their motions."""
    flicker: float | None
    """Grey levels by which the background, under a still camera, differs from the mean of its neighbours in time."""
    identity_switches: int
    """The number of things that turn into others on the way."""
    permanence: float | None
    """Share of the frames in which the least visible thing is seen, of those in which no other hides it; things that
    fade are left out where the caption states that one does."""


QUALITY_MEANINGS: dict[str, str] = {
    "path_error": "distance of things from a smooth path, in pixels",
    "flicker": "change of the background from frame to frame, in grey levels",
    "identity_switches": "things that turn into others, per clip",
    "permanence": "share of the frames in which things are visible",
    "diversity": "spread of the starting places of things for one prompt, as a share of the frame's side",
}


def measure_quality(frames: np.ndarray, found: Found, clauses: Clauses) -> Quality:
    """Measure the quality of one clip, frames (t, h, w, 3), whose caption states these clauses."""
    if found.num_frames < 3:
        return Quality(None, None, 0, None)
    may_fade = any("fade" in stated.motion for stated in clauses.things)
    lasting = [thing for thing in found.things if not (may_fade and "fade" in thing.motion)]
    errors = [thing.trajectory.error for thing in found.things]
    return Quality(
        float(np.mean(errors)) if errors else None,
        background_flicker(frames, found) if found.camera.name == "still" else None,
        count_switches(found.things),
        min((permanence(thing, found.things) for thing in lasting), default=None),
    )


def background_flicker(frames: np.ndarray, found: Found) -> float | None:
    """Compute the mean second difference in time of the pixels that no thing ever covers; None without such pixels."""
    light = to_ycc(frames)[..., 0]
    row, column = np.ogrid[: found.height, : found.width]
    empty = np.ones((found.height, found.width), bool)
    for thing in found.things:
        x, y, radius = (rearrange(part, "t -> t 1 1") for part in thing.pose[:3])
        empty &= (np.hypot(column + 0.5 - x, row + 0.5 - y) > radius + 2).all(0)
    if not empty.any():
        return None
    return float(np.abs(light[1:-1] - (light[:-2] + light[2:]) / 2)[:, empty].mean())


def count_switches(things: Sequence[FoundThing]) -> int:
    """Count the things that turn into others: one ends when and where another begins, and they do not both fade."""
    return sum(turns_into(a, b) for a, b in permutations(things, 2))


def turns_into(a: FoundThing, b: FoundThing) -> bool:
    """True if the first thing ends when and where the second begins."""
    if a.motion.startswith("fade") and b.motion.startswith("fade") and not is_same_place(a, b, frame=0):
        return False
    a_frames, b_frames = (np.flatnonzero(is_visible(thing)) for thing in (a, b))
    if not len(a_frames) or not len(b_frames) or b_frames[0] == 0 or a_frames[-1] == len(a.likeness) - 1:
        return False
    gap = abs(int(b_frames[0] - a_frames[-1]) - 1)
    return gap <= MAX_HANDOVER and is_same_place(a, b, frame=int(b_frames[0]))


def is_same_place(a: FoundThing, b: FoundThing, *, frame: int) -> bool:
    """True if two things are within half a radius and one step at full speed of each other in a frame."""
    distance = np.hypot(a.pose.x[frame] - b.pose.x[frame], a.pose.y[frame] - b.pose.y[frame])
    return bool(distance < max(a.pose.radius[frame], b.pose.radius[frame]) / 2 + MAX_SPEED)


def is_visible(thing: FoundThing) -> np.ndarray:
    """True in the frames that show a thing, (t,)."""
    return thing.likeness > MIN_LIKENESS * thing.likeness.max()


def permanence(thing: FoundThing, things: Sequence[FoundThing]) -> float:
    """Compute the share of frames that show a thing, of those in which no other thing's circle touches it."""
    unhidden = np.ones(len(thing.likeness), bool)
    for other in things:
        if other is not thing:
            distance = np.hypot(thing.pose.x - other.pose.x, thing.pose.y - other.pose.y)
            unhidden &= distance > thing.pose.radius + other.pose.radius
    return float(is_visible(thing)[unhidden].mean()) if unhidden.any() else 1.0


def diversity(clips: Sequence[Found], clauses: Clauses) -> float | None:
    """Compute how far apart the first thing of a prompt starts in its clips, as a share of the frame's side.

    It is the root of the summed unbiased variances of x and y; None for fewer than two clips that show the thing.
    """
    matches = [(found, match_things(found, clauses)[0]) for found in clips]
    poses = [(found, found.things[i].pose) for found, i in matches if i is not None]
    starts = np.array([(pose.x[0] / found.width, pose.y[0] / found.height) for found, pose in poses])
    return float(np.sqrt(starts.var(axis=0, ddof=1).sum())) if len(starts) > 1 else None
