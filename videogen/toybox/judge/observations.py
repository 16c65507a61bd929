"""Hold what is found in a clip as plain values: what reading a clip ends with and judging it begins with."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from videogen.toybox.judge.camera import Camera
from videogen.toybox.judge.trajectories import Trajectory
from videogen.toybox.world.motions import Pose


class FoundThing(NamedTuple):
    """A thing and its track on the screen, each value (t,)."""

    kind: str
    colour: str
    """Empty where the kind has colours of its own."""
    size: str
    motion: str
    sense: str
    """clockwise, counterclockwise, or empty where nothing turns."""
    pose: Pose
    likeness: np.ndarray
    """Share of its own energy that the thing explains in each frame."""
    trajectory: Trajectory
    """Where its motion would have it in the world."""


class Event(NamedTuple):
    """What two things do together, by their numbers; of behind, the first passes behind the second."""

    name: str
    first: int
    second: int


class Found(NamedTuple):
    """Everything that the judge finds in a clip; the background is empty where it is none of the world's."""

    width: int
    height: int
    num_frames: int
    background: str
    background_error: float
    """Mean YCC distance of the frames from the background."""
    camera: Camera
    things: tuple[FoundThing, ...]
    events: tuple[Event, ...]
