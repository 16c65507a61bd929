"""Settle a thing's pose to a fraction of a pixel, in all frames at once.

Look, Pose (t,), Canvas  ->  Fit: Pose, agreement, energy, each (t,)

Levenberg and Marquardt's least squares: each frame has its own step and its own damping.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import NamedTuple

import numpy as np
from einops import rearrange

from videogen.toybox.judge.templates import Canvas, Look, Window, change_of, cut, gain, measure, shown_in
from videogen.toybox.world.motions import Pose

MARGIN = 3.0
"""Pixels that a thing may still move or grow while it settles."""
LONGEST = {"x": 1.5, "y": 1.5, "radius": 1.0, "angle": 0.2}
"""What one round may change at most, in pixels and radians."""
SETTLED = 0.02
"""Pixels; when no step is longer, all is done."""
LEAST_RADIUS = 2.0
HALO = 0.7
"""Pixels by which what hides reaches beyond its edge: in a soft picture something of it is left there."""
MARGIN_OF_HIDING = 3
"""Pixels about a thing's circle, for its soft edge."""


class Fit(NamedTuple):
    """A settled pose, and how it agrees with the frames."""

    pose: Pose
    agreement: np.ndarray
    energy: np.ndarray

    @property
    def gain(self) -> np.ndarray:
        """What of the squared error goes, at the best opacity, (t,)."""
        return gain(self.agreement, self.energy)


def settle(
    look: Look,
    pose: Pose,
    canvas: Canvas,
    *,
    rounds: int = 8,
    turning: bool = False,
    solid: bool = False,
    resting: bool = False,
) -> Fit:
    """The pose nearby that explains most.

    turning fits the angle too; solid does not fit the opacity; resting moves all frames alike, as of a thing at rest.
    """
    window = cut(canvas, pose.x, pose.y, float(pose.radius.max()) + MARGIN)
    free = tuple(LONGEST)[: 4 if turning else 3]
    shown, pose = shown_in(look, pose, window), opaque(pose) if solid else pose
    fit = look_again(pose, change_of(shown, window), window, solid)
    damping = np.full(len(pose.x), 1e-2)
    for _ in range(rounds):
        step = newton_step(fit, shown, window, free, damping, resting=resting)
        if np.abs(step).max() < SETTLED:
            break
        trial = moved(fit.pose, dict(zip(free, step.T, strict=True)))
        showing = shown_in(look, trial, window)
        tried = look_again(trial, change_of(showing, window), window, solid)
        gained = score(tried, solid) - score(fit, solid)
        better = np.full(len(gained), gained.sum() > 0) if resting else gained > 0
        fit = choose(better, tried, fit)
        shown = np.where(rearrange(better, "t -> t 1 1 1"), showing, shown)
        damping = np.where(better, damping / 5, damping * 8)
    return fit


def moved(pose: Pose, step: Mapping[str, np.ndarray]) -> Pose:
    """A pose after a step of some of its parts, none of them too long."""
    parts = {name: getattr(pose, name) + part.clip(-LONGEST[name], LONGEST[name]) for name, part in step.items()}
    return pose._replace(**parts | {"radius": parts["radius"].clip(LEAST_RADIUS)})


def opaque(pose: Pose) -> Pose:
    """The same at full opacity."""
    return pose._replace(opacity=np.ones_like(pose.opacity))


def score(fit: Fit, solid: bool) -> np.ndarray:
    """What is made as large as can be."""
    return 2 * fit.agreement - fit.energy if solid else fit.gain


def look_again(pose: Pose, change: np.ndarray, window: Window, solid: bool) -> Fit:
    """A pose with its agreement and energy, and the opacity that suits it best."""
    agreement, energy = measure(change, window)
    opacity = pose.opacity if solid else np.clip(agreement / np.maximum(energy, 1e-6), 0, 1)
    return Fit(pose._replace(opacity=opacity), agreement, energy)


def newton_step(
    fit: Fit, shown: np.ndarray, window: Window, free: Sequence[str], damping: np.ndarray, *, resting: bool
) -> np.ndarray:
    """How x, y, radius and perhaps the angle should change, (t, free)."""
    weight, opacity = (rearrange(part, "t ... -> t ... 1") for part in (window.weight, fit.pose.opacity[:, None, None]))
    slopes = np.stack([change_of(part, window) for part in slopes_of(shown, fit.pose, window)[: len(free)]])
    slopes = rearrange(weight * opacity.astype(np.float32) * slopes, "i t h w c -> t i (h w c)")
    rest = window.rest - opacity.astype(np.float32) * change_of(shown, window)
    curvature = slopes @ rearrange(slopes, "t i n -> t n i")
    pull = np.einsum("tin,tn->ti", slopes, rearrange(weight * rest, "t h w c -> t (h w c)"))
    # At rest before a camera that zooms, places and radii change in proportion.
    scale = rearrange(fit.pose.radius / fit.pose.radius[0], "t -> t 1")
    if resting:
        curvature = np.einsum("tij,t->ij", curvature, scale[:, 0] ** 2)[None]
        pull, damping = (pull * scale).sum(0, keepdims=True), damping[:1]
    diagonal = np.einsum("tii->ti", curvature)
    ridge = damping[:, None] * diagonal + 1e-3 * diagonal.max(1, keepdims=True) + 1e-3
    step = np.linalg.solve(curvature + ridge[:, :, None] * np.eye(len(free)), pull[..., None])[..., 0]
    return step * scale if resting else step


def slopes_of(shown: np.ndarray, pose: Pose, window: Window) -> list[np.ndarray]:
    """How what is shown (t, s, s, 4) changes with x, y, radius and angle: it moves, and its slopes in space say how."""
    down, right = np.gradient(shown, axis=(1, 2))
    x, y, radius = (rearrange(part.astype(np.float32), "t -> t 1 1 1") for part in pose[:3])
    across = rearrange(window.columns, "t s -> t 1 s 1") + np.float32(0.5) - x
    along = rearrange(window.rows, "t s -> t s 1 1") + np.float32(0.5) - y
    return [-right, -down, -(across * right + along * down) / radius, along * right - across * down]


def choose(which: np.ndarray, a: Fit, b: Fit) -> Fit:
    """Frame by frame, a where it is said and else b."""
    pose = Pose(*(np.where(which, one, other) for one, other in zip(a.pose, b.pose, strict=True)))
    return Fit(pose, np.where(which, a.agreement, b.agreement), np.where(which, a.energy, b.energy))


def hide(canvas: Canvas, look: Look, pose: Pose, *, wholly: bool = False) -> Canvas:
    """A canvas in which what shows a thing no longer counts: where it explains a pixel, or wholly, where it covers one.

    What another thing hides of it is not hidden by it: nobody has to say which of them is in front.
    """
    border = ceil(float(pose.radius.max())) + MARGIN_OF_HIDING
    around = Canvas(
        *(np.pad(part, ((0, 0), (border, border), (border, border), (0, 0))[: part.ndim]) for part in canvas)
    )
    height, width = around.weight.shape[1:]
    wider = pose._replace(x=pose.x + border, y=pose.y + border, radius=pose.radius + HALO)
    window = cut(around, wider.x, wider.y, border - 1)
    opacity = rearrange(pose.opacity.astype(np.float32), "t -> t 1 1")
    shown = shown_in(look, wider, window)
    left = window.rest - opacity[..., None] * change_of(shown, window)
    explained = wholly | (np.square(left).sum(-1) < np.square(window.rest).sum(-1))
    # A window whose thing lies wholly outside waits in the border, where nothing counts.
    rows, columns = window.rows.clip(0, height - 1), window.columns.clip(0, width - 1)
    frame = rearrange(np.arange(len(rows)), "t -> t 1 1")
    weight = around.weight.copy()
    weight[frame, rearrange(rows, "t s -> t s 1"), rearrange(columns, "t s -> t 1 s")] *= (
        1 - opacity * shown[..., 3] * explained
    )
    return canvas._replace(weight=weight[:, border:-border, border:-border])
