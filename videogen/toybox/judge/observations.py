"""What is found in a clip, as plain values: what reading ends with and judging begins with."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from videogen.toybox.judge.camera import Camera
from videogen.toybox.judge.trajectories import Path
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
    """Share of its own energy that it explains in each frame."""
    path: Path
    """Where its motion would have it in the world."""


class Event(NamedTuple):
    """What two things do together, by their numbers; of behind, the first passes behind the second."""

    name: str
    first: int
    second: int


class Found(NamedTuple):
    """Everything that a judge sees in a clip; background is empty where it is none of the world's."""

    width: int
    height: int
    num_frames: int
    background: str
    misfit: float
    camera: Camera
    things: tuple[FoundThing, ...]
    events: tuple[Event, ...]
