"""What a followed thing does: fades, grows, turns, rests, or goes along a path.

Fit (t,), Camera, Canvas  ->  Doing: motion, sense of turning, how far it is from doing exactly that
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from videogen.toybox.judge.camera import Camera
from videogen.toybox.judge.pose_fitting import Fit, settle
from videogen.toybox.judge.templates import Canvas, Look
from videogen.toybox.judge.tracking import turns
from videogen.toybox.judge.trajectories import Path, classify
from videogen.toybox.world.motions import Pose
from videogen.toybox.world.things import ROLLING

JUST_GROWS = 2.5
"""Pixels about its middle (root of the mean square) that a growing thing may seem to move, for its outline is hard to
see; the world's move by at most 0.2, and its things that go anywhere by at least 2.9."""
GROWN = 1.2
"""Last over first radius from which a thing grows; the world's things grow by 1.4 to 1.6, and shrink by as much."""
SPINS = np.deg2rad((5, 7, 9, 11, 13, 15, 17))
"""Radians a frame that are tried."""
TURNS_BETTER = 0.0005
"""A thing turns where that explains so much more, as a share, than not turning."""
ABOUT_ITSELF = 0.9
"""Share of its radius by which a thing that only turns may seem to stray."""
STEADY, LIKE_ITSELF = 0.15, 0.98
"""Pixels, and share of its energy, from which a thing that is upright in every frame needs no second look."""
NEARLY = 0.98
"""A turn that explains such a share of what straying explains is the better reading."""
TRUSTED = 0.5
"""A frame counts where a thing explains so much of what it would if nothing hid it."""


class Doing(NamedTuple):
    """A motion of the world's, the sense of what turns, and the path behind it."""

    motion: str
    sense: str
    path: Path
    fit: Fit


def to_world(pose: Pose, camera: Camera, width: int, height: int) -> Pose:
    """A pose on the screen as one in the world that the camera moves over."""
    right, down, scale = camera.view(len(pose.x))
    x = width / 2 + right + (pose.x - width / 2) / scale
    y = height / 2 + down + (pose.y - height / 2) / scale
    return pose._replace(x=x, y=y, radius=pose.radius / scale)


def to_screen(pose: Pose, camera: Camera, width: int, height: int) -> Pose:
    """The inverse of to_world."""
    right, down, scale = camera.view(len(pose.x))
    x = width / 2 + scale * (pose.x - width / 2 - right)
    y = height / 2 + scale * (pose.y - height / 2 - down)
    return pose._replace(x=x, y=y, radius=pose.radius * scale)


def watch(look: Look, fit: Fit, seen_share: np.ndarray, camera: Camera, canvas: Canvas) -> Doing:
    """What a thing does, given what share of its energy could be seen in each frame."""
    height, width = canvas.weight.shape[1:]
    world = to_world(fit.pose, camera, width, height)
    opacity = world.opacity / max(float(world.opacity.max()), 1e-3)  # what is soft is faint throughout
    trust = np.clip(seen_share * opacity, 0, 1)
    trust = np.where(trust > TRUSTED, trust, 0) if (trust > TRUSTED).sum() >= 2 else trust + 1e-3
    path = classify(np.stack([world.x, world.y], -1), trust)
    spread = np.hypot(*(np.stack([world.x, world.y]) - path_middle(world, trust)[:, None]))
    strays = np.sqrt(np.average(np.square(spread), weights=trust))
    for name, found in (("fade", fading(opacity, seen_share)), ("size", sizing(world.radius, trust))):
        if found and (name == "fade" or strays < JUST_GROWS):
            return Doing(found, "", path, fit)
    spread = spread[trust > TRUSTED]
    upright = not fit.pose.angle.any() and (fit.gain > LIKE_ITSELF * fit.energy).all()
    plainly_still = path.name == "still" and path.error < STEADY and upright
    if turns(look) and not plainly_still and spread.max(initial=0) < ABOUT_ITSELF * np.median(world.radius):
        spun = spinning(look, fit, trust, world, camera, canvas, path)
        # What is lopsided and turns, followed as if it did not, seems to sway.
        if path.name == "still" or (spun.motion == "spin" and spun.fit.gain.sum() > NEARLY * fit.gain.sum()):
            return spun
    if path.name in ("right", "left") and look.kind in ROLLING:
        return rolling(look, fit, world, canvas, path)
    sense = "" if path.name != "orbit" else "clockwise" if path.sense > 0 else "counterclockwise"
    return Doing(path.name, sense, path, fit)


def path_middle(world: Pose, trust: np.ndarray) -> np.ndarray:
    """Where a thing is on the whole, (2,)."""
    return np.array([np.average(part, weights=trust) for part in (world.x, world.y)])


def fading(opacity: np.ndarray, seen_share: np.ndarray) -> str:
    """ "fade in", "fade out" or "": the course, times a constant, that opacity is nearest to where it can be seen."""
    if len(opacity) == 1:
        return ""
    share = np.clip(np.linspace(0, 1.25, len(opacity)), 0, 1)
    courses = {"": np.ones_like(share), "fade in": share, "fade out": 1 - share}

    def error(name: str) -> float:
        course = courses[name]
        times = (seen_share * course * opacity).sum() / max(float((seen_share * course**2).sum()), 1e-9)
        return float((seen_share * np.square(opacity - times * course)).sum())

    return min(courses, key=error)


def sizing(radius: np.ndarray, trust: np.ndarray) -> str:
    """ "grow", "shrink" or "": by a line through the radii."""
    first, last = line_through(radius, trust)
    times = last / max(first, 1e-6)
    return "grow" if times > GROWN else "shrink" if times < 1 / GROWN else ""


def line_through(values: np.ndarray, trust: np.ndarray) -> tuple[float, float]:
    """The first and the last value of the line that fits best."""
    if len(values) == 1 or (trust > 0).sum() < 2:
        return float(values[0]), float(values[-1])
    slope, start = np.polyfit(np.arange(len(values)), values, 1, w=trust)
    return float(start), float(start + slope * (len(values) - 1))


def spinning(look: Look, fit: Fit, trust: np.ndarray, world: Pose, camera: Camera, canvas: Canvas, path: Path) -> Doing:
    """Whether a resting thing turns about itself, and in which sense."""
    height, width = canvas.weight.shape[1:]
    step, quality = np.arange(len(world.x)), trust * fit.gain / np.maximum(fit.energy, 1.0)
    # Where it is most like itself it is upright, or was turned rightly: elsewhere a lopsided thing seems to sway.
    clearest = quality >= LIKE_ITSELF * quality.max()
    x, y, radius = (np.full(len(step), np.median(part[clearest])) for part in world[:3])
    resting = to_screen(Pose(x, y, radius, np.zeros(len(step)), fit.pose.opacity), camera, width, height)
    speeds = (0.0, *SPINS, *-SPINS)
    tried = [settle(look, resting._replace(angle=speed * step), canvas, rounds=2, resting=True) for speed in speeds]
    fastest = max(range(1, len(speeds)), key=lambda i: float(tried[i].gain.sum()))
    still, spun = (settle(look, tried[i].pose, canvas, rounds=4, resting=True) for i in (0, fastest))
    if spun.gain.sum() <= still.gain.sum() * (1 + TURNS_BETTER):
        return Doing("still", "", path, still)
    return Doing("spin", "clockwise" if speeds[fastest] > 0 else "counterclockwise", at_rest(x, y, path), spun)


def at_rest(x: np.ndarray, y: np.ndarray, path: Path) -> Path:
    """A path that is a place."""
    return path if path.name == "still" else Path("still", np.stack([x, y], -1), path.error)


def rolling(look: Look, fit: Fit, world: Pose, canvas: Canvas, path: Path) -> Doing:
    """Whether a thing that goes sideways turns as a wheel does."""
    flat = settle(look, fit.pose._replace(angle=np.zeros(len(world.x))), canvas, rounds=4)
    angle = (path.places[:, 0] - path.places[0, 0]) / np.median(world.radius)
    rolled = settle(look, fit.pose._replace(angle=angle), canvas, rounds=4)
    if rolled.gain.sum() > flat.gain.sum() * (1 + TURNS_BETTER):
        return Doing(f"roll {path.name}", "", path, rolled)
    return Doing(path.name, "", path, flat)
