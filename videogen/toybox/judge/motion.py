"""Classify what a tracked thing does: fades, grows, turns, rests, or goes along a path.

Fit (t,), Camera, Canvas  ->  MotionEstimate: motion, direction of turning, trajectory, refined Fit
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from videogen.toybox.judge.camera import Camera
from videogen.toybox.judge.pose_fitting import Fit, fit_pose
from videogen.toybox.judge.templates import Appearance, Canvas
from videogen.toybox.judge.tracking import shows_turns
from videogen.toybox.judge.trajectories import Trajectory, classify_trajectory
from videogen.toybox.world.motions import Pose
from videogen.toybox.world.things import ROLLING_KINDS

MAX_DRIFT_OF_GROWTH = 2.5
"""Pixels about its middle (root of the mean square) that a growing thing may seem to move, for its outline is hard to
see; the world's move by at most 0.2, and its things that go anywhere by at least 2.9."""
MIN_GROWTH = 1.2
"""Last over first radius from which a thing grows; the world's things grow by 1.4 to 1.6, and shrink by as much."""
SPINS = np.deg2rad((5, 7, 9, 11, 13, 15, 17))
"""Radians a frame that are tried."""
TURNED_GAIN = 0.0005
"""A thing turns where that explains so much more, as a share, than not turning."""
MAX_DRIFT_OF_SPIN = 0.9
"""Share of its radius by which a thing that only turns may seem to stray."""
STEADY_ERROR, STEADY_SHARE = 0.15, 0.98
"""Pixels, and share of its energy, from which a thing that is upright in every frame needs no second look."""
SPIN_PREFERRED = 0.98
"""A turn that explains such a share of what straying explains is the better reading."""
MIN_TRUST = 0.5
"""A frame counts where a thing explains so much of what it would if nothing hid it."""


class MotionEstimate(NamedTuple):
    """One of the world's motions, the direction of what turns, the trajectory, and the fit that agrees with them."""

    motion: str
    sense: str
    trajectory: Trajectory
    fit: Fit


def to_world(pose: Pose, camera: Camera, width: int, height: int) -> Pose:
    """Convert a pose on the screen to one in the world that the camera moves over."""
    right, down, scale = camera.view(len(pose.x))
    x = width / 2 + right + (pose.x - width / 2) / scale
    y = height / 2 + down + (pose.y - height / 2) / scale
    return pose._replace(x=x, y=y, radius=pose.radius / scale)


def to_screen(pose: Pose, camera: Camera, width: int, height: int) -> Pose:
    """Invert to_world."""
    right, down, scale = camera.view(len(pose.x))
    x = width / 2 + scale * (pose.x - width / 2 - right)
    y = height / 2 + scale * (pose.y - height / 2 - down)
    return pose._replace(x=x, y=y, radius=pose.radius * scale)


def classify_motion(
    appearance: Appearance, fit: Fit, visible: np.ndarray, camera: Camera, canvas: Canvas
) -> MotionEstimate:
    """Classify what a thing does, of whose energy a share (t,) is visible in each frame."""
    height, width = canvas.weight.shape[1:]
    world = to_world(fit.pose, camera, width, height)
    opacity = world.opacity / max(float(world.opacity.max()), 1e-3)  # what is blurred is faint throughout
    trust = np.clip(visible * opacity, 0, 1)
    trust = np.where(trust > MIN_TRUST, trust, 0) if (trust > MIN_TRUST).sum() >= 2 else trust + 1e-3
    trajectory = classify_trajectory(np.stack([world.x, world.y], -1), trust)
    middle = np.array([np.average(part, weights=trust) for part in (world.x, world.y)])
    drift = np.hypot(*(np.stack([world.x, world.y]) - middle[:, None]))
    if fade := classify_fade(opacity, visible):
        return MotionEstimate(fade, "", trajectory, fit)
    growth = classify_growth(world.radius, trust)
    if growth and np.sqrt(np.average(np.square(drift), weights=trust)) < MAX_DRIFT_OF_GROWTH:
        return MotionEstimate(growth, "", trajectory, fit)
    max_drift = drift[trust > MIN_TRUST].max(initial=0)
    upright = not fit.pose.angle.any() and (fit.gain > STEADY_SHARE * fit.energy).all()
    plainly_still = trajectory.motion == "still" and trajectory.error < STEADY_ERROR and upright
    if shows_turns(appearance) and not plainly_still and max_drift < MAX_DRIFT_OF_SPIN * np.median(world.radius):
        resting = classify_spin(appearance, fit, trust, camera, canvas, trajectory)
        spins_as_well = resting.motion == "spin" and resting.fit.gain.sum() > SPIN_PREFERRED * fit.gain.sum()
        # What is lopsided and turns, tracked as if it did not, seems to sway.
        if trajectory.motion == "still" or spins_as_well:
            return resting
    if trajectory.motion in ("right", "left") and appearance.kind in ROLLING_KINDS:
        return classify_roll(appearance, fit, world, canvas, trajectory)
    sense = turning_sense(trajectory.angular_velocity) if trajectory.motion == "orbit" else ""
    return MotionEstimate(trajectory.motion, sense, trajectory, fit)


def turning_sense(angular_velocity: float) -> str:
    """Name the direction of a turn as captions do."""
    return "clockwise" if angular_velocity > 0 else "counterclockwise"


def classify_fade(opacity: np.ndarray, visible: np.ndarray) -> str:
    """Tell "fade in", "fade out" or "" by the course that the opacity (t,) follows best up to a factor."""
    if len(opacity) == 1:
        return ""
    share = np.clip(np.linspace(0, 1.25, len(opacity)), 0, 1)
    courses = {"": np.ones_like(share), "fade in": share, "fade out": 1 - share}

    def error(name: str) -> float:
        course = courses[name]
        factor = (visible * course * opacity).sum() / max(float((visible * course**2).sum()), 1e-9)
        return float((visible * np.square(opacity - factor * course)).sum())

    return min(courses, key=error)


def classify_growth(radius: np.ndarray, trust: np.ndarray) -> str:
    """Tell "grow", "shrink" or "" by a line through the radii (t,)."""
    first, last = fit_line(radius, trust)
    factor = last / max(first, 1e-6)
    return "grow" if factor > MIN_GROWTH else "shrink" if factor < 1 / MIN_GROWTH else ""


def fit_line(values: np.ndarray, trust: np.ndarray) -> tuple[float, float]:
    """Fit a line to values (t,), and return its first and last value."""
    if len(values) == 1 or (trust > 0).sum() < 2:
        return float(values[0]), float(values[-1])
    slope, start = np.polyfit(np.arange(len(values)), values, 1, w=trust)
    return float(start), float(start + slope * (len(values) - 1))


def classify_spin(
    appearance: Appearance, fit: Fit, trust: np.ndarray, camera: Camera, canvas: Canvas, trajectory: Trajectory
) -> MotionEstimate:
    """Tell "spin" or "still" by whether a turn about itself explains a resting thing better."""
    height, width = canvas.weight.shape[1:]
    world = to_world(fit.pose, camera, width, height)
    step, explained = np.arange(len(world.x)), trust * fit.gain / np.maximum(fit.energy, 1.0)
    # Where it is most like itself it is upright, or was turned rightly: elsewhere a lopsided thing seems to sway.
    clearest = explained >= STEADY_SHARE * explained.max()
    x, y, radius = (np.full(len(step), np.median(part[clearest])) for part in world[:3])
    resting = to_screen(Pose(x, y, radius, np.zeros(len(step)), fit.pose.opacity), camera, width, height)
    speeds = (0.0, *SPINS, *-SPINS)
    trials = [
        fit_pose(appearance, resting._replace(angle=speed * step), canvas, rounds=2, at_rest=True) for speed in speeds
    ]
    best = max(range(1, len(speeds)), key=lambda i: float(trials[i].gain.sum()))
    still, spun = (fit_pose(appearance, trials[i].pose, canvas, rounds=4, at_rest=True) for i in (0, best))
    if spun.gain.sum() <= still.gain.sum() * (1 + TURNED_GAIN):
        return MotionEstimate("still", "", trajectory, still)
    if trajectory.motion != "still":
        trajectory = Trajectory("still", np.stack([x, y], -1), trajectory.error)
    return MotionEstimate("spin", turning_sense(speeds[best]), trajectory, spun)


def classify_roll(
    appearance: Appearance, fit: Fit, world: Pose, canvas: Canvas, trajectory: Trajectory
) -> MotionEstimate:
    """Tell "roll right" from "right" by whether turning as a wheel does explains a thing better, and so to the left."""
    flat = fit_pose(appearance, fit.pose._replace(angle=np.zeros(len(world.x))), canvas, rounds=4)
    angle = (trajectory.positions[:, 0] - trajectory.positions[0, 0]) / np.median(world.radius)
    rolled = fit_pose(appearance, fit.pose._replace(angle=angle), canvas, rounds=4)
    if rolled.gain.sum() > flat.gain.sum() * (1 + TURNED_GAIN):
        return MotionEstimate(f"roll {trajectory.motion}", "", trajectory, rolled)
    return MotionEstimate(trajectory.motion, "", trajectory, flat)
