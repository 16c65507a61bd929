"""Fit a thing's pose to a fraction of a pixel, in all frames at once.

Appearance, Pose (t,), Canvas  ->  Fit: Pose, agreement, energy, each (t,)

Levenberg and Marquardt's least squares: each frame has its own step and its own damping.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import NamedTuple

import numpy as np
from einops import rearrange

from videogen.toybox.judge.templates import Appearance, Canvas, Crop, gain
from videogen.toybox.world.motions import Pose

FIT_MARGIN = 3.0
"""Pixels that a thing may still move or grow while it is fitted."""
MAX_STEPS = {"x": 1.5, "y": 1.5, "radius": 1.0, "angle": 0.2}
"""The largest change in one round, in pixels and radians."""
CONVERGED = 0.02
"""The fit ends when no step is longer than this, in pixels."""
MIN_RADIUS = 2.0
HALO = 0.7
"""Pixels by which a masked thing is widened: in a blurred picture something of it is left beyond its edge."""
MASK_MARGIN = 3
"""Pixels about a masked thing's circle, for its soft edge."""


class Fit(NamedTuple):
    """A fitted pose with its agreement and energy in each frame, (t,)."""

    pose: Pose
    agreement: np.ndarray
    energy: np.ndarray

    @property
    def gain(self) -> np.ndarray:
        """The fall of the squared error at the best opacity, (t,)."""
        return gain(self.agreement, self.energy)

    @property
    def opaque_gain(self) -> np.ndarray:
        """The fall of the squared error at full opacity, (t,)."""
        return 2 * self.agreement - self.energy


def fit_pose(
    appearance: Appearance,
    pose: Pose,
    canvas: Canvas,
    *,
    rounds: int = 8,
    fit_angle: bool = False,
    opaque: bool = False,
    at_rest: bool = False,
) -> Fit:
    """Find the pose near a given one that explains most of a canvas.

    With fit_angle the angle is fitted too; opaque holds the opacity at 1; at_rest moves all frames alike.
    """
    crop = canvas.crop(pose.x, pose.y, float(pose.radius.max()) + FIT_MARGIN)
    parameters = tuple(MAX_STEPS)[: 4 if fit_angle else 3]
    layer = crop.render(appearance, pose)
    fit = evaluate(pose._replace(opacity=np.ones_like(pose.opacity)) if opaque else pose, layer, crop, opaque=opaque)
    damping = np.full(len(pose.x), 1e-2)
    for _ in range(rounds):
        step = damped_step(fit, layer, crop, parameters, damping, at_rest=at_rest)
        if np.abs(step).max() < CONVERGED:
            break
        trial_pose = apply_step(fit.pose, parameters, step)
        trial_layer = crop.render(appearance, trial_pose)
        trial = evaluate(trial_pose, trial_layer, crop, opaque=opaque)
        gained = trial.opaque_gain - fit.opaque_gain if opaque else trial.gain - fit.gain
        better = np.full(len(gained), gained.sum() > 0) if at_rest else gained > 0
        fit = choose(better, trial, fit)
        layer = np.where(rearrange(better, "t -> t 1 1 1"), trial_layer, layer)
        damping = np.where(better, damping / 5, damping * 8)
    return fit


def apply_step(pose: Pose, parameters: Sequence[str], step: np.ndarray) -> Pose:
    """Change some parameters of a pose by a step (t, parameters), clipped to MAX_STEPS."""
    changed = {
        name: getattr(pose, name) + change.clip(-MAX_STEPS[name], MAX_STEPS[name])
        for name, change in zip(parameters, step.T, strict=True)
    }
    return pose._replace(**changed | {"radius": changed["radius"].clip(MIN_RADIUS)})


def evaluate(pose: Pose, layer: np.ndarray, crop: Crop, *, opaque: bool) -> Fit:
    """Measure how a pose's layer agrees with the frames; unless opaque, give the pose its best opacity."""
    agreement, energy = crop.measure(layer)
    opacity = pose.opacity if opaque else np.clip(agreement / np.maximum(energy, 1e-6), 0, 1)
    return Fit(pose._replace(opacity=opacity), agreement, energy)


def damped_step(
    fit: Fit, layer: np.ndarray, crop: Crop, parameters: Sequence[str], damping: np.ndarray, *, at_rest: bool
) -> np.ndarray:
    """Compute the Levenberg-Marquardt step of x, y, radius and perhaps the angle, (t, parameters)."""
    weight, opacity = (rearrange(part, "t ... -> t ... 1") for part in (crop.weight, fit.pose.opacity[:, None, None]))
    jacobian = np.stack([crop.change(part) for part in derivatives(layer, fit.pose, crop)[: len(parameters)]])
    jacobian = rearrange(weight * opacity.astype(np.float32) * jacobian, "i t h w c -> t i (h w c)")
    residual = crop.residual - opacity.astype(np.float32) * crop.change(layer)
    curvature = jacobian @ rearrange(jacobian, "t i n -> t n i")
    gradient = np.einsum("tin,tn->ti", jacobian, rearrange(weight * residual, "t h w c -> t (h w c)"))
    # At rest before a camera that zooms, places and radii change in proportion.
    scale = rearrange(fit.pose.radius / fit.pose.radius[0], "t -> t 1")
    if at_rest:
        curvature = np.einsum("tij,t->ij", curvature, scale[:, 0] ** 2)[None]
        gradient, damping = (gradient * scale).sum(0, keepdims=True), damping[:1]
    diagonal = np.einsum("tii->ti", curvature)
    ridge = damping[:, None] * diagonal + 1e-3 * diagonal.max(1, keepdims=True) + 1e-3
    step = np.linalg.solve(curvature + ridge[:, :, None] * np.eye(len(parameters)), gradient[..., None])[..., 0]
    return step * scale if at_rest else step


def derivatives(layer: np.ndarray, pose: Pose, crop: Crop) -> list[np.ndarray]:
    """Differentiate a layer (t, s, s, 4) by x, y, radius and angle, each a motion along its gradient in space."""
    down_slope, right_slope = np.gradient(layer, axis=(1, 2))
    x, y, radius = (rearrange(part.astype(np.float32), "t -> t 1 1") for part in pose[:3])
    right, down = (rearrange(offset, "t h w -> t h w 1") for offset in crop.offsets(x, y))
    by_radius = -(right * right_slope + down * down_slope) / rearrange(radius, "t h w -> t h w 1")
    return [-right_slope, -down_slope, by_radius, down * right_slope - right * down_slope]


def choose(where: np.ndarray, a: Fit, b: Fit) -> Fit:
    """Take each frame's fit from a where a mask (t,) is set, else from b."""
    pose = Pose(*(np.where(where, *parts) for parts in zip(a.pose, b.pose, strict=True)))
    return Fit(pose, np.where(where, a.agreement, b.agreement), np.where(where, a.energy, b.energy))


def mask_out(canvas: Canvas, appearance: Appearance, pose: Pose, *, all_covered: bool = False) -> Canvas:
    """Take the weight from the pixels that a thing explains or, with all_covered, from all that it covers.

    Pixels in which another thing hides it keep their weight, so that nobody has to say which of them is in front.
    """
    border = ceil(float(pose.radius.max())) + MASK_MARGIN
    padded = canvas.padded(border)
    height, width = padded.weight.shape[1:]
    wider = pose._replace(x=pose.x + border, y=pose.y + border, radius=pose.radius + HALO)
    crop = padded.crop(wider.x, wider.y, border - 1)
    opacity = rearrange(pose.opacity.astype(np.float32), "t -> t 1 1")
    layer = crop.render(appearance, wider)
    residual = crop.residual - opacity[..., None] * crop.change(layer)
    explained = all_covered | (np.square(residual).sum(-1) < np.square(crop.residual).sum(-1))
    # The crop of a thing that lies wholly outside is moved into the border, where no pixel counts.
    rows, columns = crop.rows.clip(0, height - 1), crop.columns.clip(0, width - 1)
    frame = rearrange(np.arange(len(rows)), "t -> t 1 1")
    weight = padded.weight.copy()
    weight[frame, rearrange(rows, "t s -> t s 1"), rearrange(columns, "t s -> t 1 s")] *= (
        1 - opacity * layer[..., 3] * explained
    )
    return canvas._replace(weight=weight[:, border:-border, border:-border])
