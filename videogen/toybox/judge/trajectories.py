"""Classify which way a thing goes: fit every family of paths to its positions, take the simplest that fits.

positions (t, 2) in the world, trust (t,)  ->  Trajectory: motion, fitted positions (t, 2), error in pixels

A family is a few basis curves in time, found on a grid of its pace and phase, of which a path is a linear combination.
"""

from __future__ import annotations

from math import atan2, pi, sqrt
from typing import NamedTuple

import numpy as np

from videogen.toybox.world.motions import AIRBORNE_FRAMES, GROUNDED_FRAMES

JITTER = 0.35
"""Pixels by which a position is off at best: smaller errors say nothing."""
MAX_REST_ERROR = 1.6
"""Pixels about its middle, at most, that a resting thing may seem to move (root of the mean square)."""
COMPASS = ("right", "down right", "down", "down left", "left", "up left", "up", "up right")


class Trajectory(NamedTuple):
    """A motion and the path of its family that fits a track best."""

    motion: str
    positions: np.ndarray
    error: float
    """Distance of the track from the path, in pixels (root of the mean square)."""
    angular_velocity: float = 0.0
    """Of an orbit, in radians a frame; above zero is clockwise."""


class LinearFit(NamedTuple):
    """The best of many linear fits: its values, summed squared error and weights, and the number of its basis."""

    values: np.ndarray
    squared_error: float
    weights: np.ndarray
    number: int


def fit_bases(bases: np.ndarray, values: np.ndarray, trust: np.ndarray) -> LinearFit:
    """Fit values (n,) by weighted least squares as sums of curves, with the best of some bases (k, n, curves)."""
    scaled = bases * trust[:, None]
    normal = np.einsum("kni,knj->kij", scaled, scaled) + 1e-9 * np.eye(bases.shape[2])
    weights = np.linalg.solve(normal, np.einsum("kni,n->ki", scaled, trust * values)[..., None])[..., 0]
    fitted = np.einsum("kni,ki->kn", bases, weights)
    squared_errors = np.square((fitted - values) * trust).sum(1)
    best = int(squared_errors.argmin())
    return LinearFit(fitted[best], float(squared_errors[best]), weights[best], best)


def bounce_bases(step: np.ndarray) -> np.ndarray:
    """Make triangular waves (k, t, 2), of periods that turn at least once within a clip."""
    steps = max(len(step) - 1, 1)
    period = np.geomspace(min(5.0, steps), 1.45 * steps, 24)[:, None, None]
    phase = np.linspace(0, 1, 24, endpoint=False)[:, None]
    wave = 4 * np.abs((step / period + phase + 0.25) % 1 - 0.5) - 1
    return with_constant(wave.reshape(-1, len(step)))


def jump_bases(step: np.ndarray) -> np.ndarray:
    """Make parabolas with rests between them (k, t, 2)."""
    cycle = AIRBORNE_FRAMES + GROUNDED_FRAMES
    share = np.clip((np.arange(0, cycle, 0.25)[:, None] + step) % cycle / AIRBORNE_FRAMES, 0, 1)
    return with_constant(-4 * share * (1 - share))


def with_constant(curves: np.ndarray) -> np.ndarray:
    """Pair each curve (k, t) with a constant, (k, t, 2)."""
    return np.stack([np.ones_like(curves), curves], axis=-1)


def fit_orbit(positions: np.ndarray, trust: np.ndarray, step: np.ndarray) -> Trajectory:
    """Fit a circle at an even pace, in either direction."""
    slowest = 0.7 * 2 * pi / max(len(step) - 1, 1)
    paces = np.geomspace(slowest, max(0.7, slowest), 40)  # radians a frame
    paces = np.concatenate([paces, -paces])
    cosine, sine = np.cos(paces[:, None] * step), np.sin(paces[:, None] * step)
    one, zero = np.ones_like(cosine), np.zeros_like(cosine)
    x, y = np.stack([one, zero, cosine, -sine], -1), np.stack([zero, one, sine, cosine], -1)
    # x and y share their weights, so they are fitted as one column of 2t values.
    best = fit_bases(np.concatenate([x, y], axis=1), positions.T.ravel(), np.tile(trust, 2))
    error = rms_error(best.squared_error, trust)
    return Trajectory("orbit", best.values.reshape(2, -1).T, error, float(paces[best.number]))


def classify_trajectory(positions: np.ndarray, trust: np.ndarray) -> Trajectory:
    """Classify the positions (t, 2) of a track, of which each frame is trusted so far (t,)."""
    step = np.arange(len(positions), dtype=np.float64)
    x, y = positions.T
    constant, line = np.ones((1, len(step), 1)), with_constant(step[None])
    still_x, still_y = (fit_bases(constant, values, trust) for values in (x, y))
    still = combine("still", still_x, still_y, trust)
    if still.error < MAX_REST_ERROR or len(step) < 3:
        return still
    line_x, line_y = (fit_bases(line, values, trust) for values in (x, y))
    direction = COMPASS[round(atan2(line_y.weights[1], line_x.weights[1]) / (pi / 4)) % 8]
    waves, jump_y = bounce_bases(step), fit_bases(jump_bases(step), y, trust)
    options = [  # (trajectory, number of its free parameters)
        (still, 2),
        (combine(direction, line_x, line_y, trust), 4),
        (combine("bounce side to side", fit_bases(waves, x, trust), still_y, trust), 5),
        (combine("bounce up and down", still_x, fit_bases(waves, y, trust), trust), 5),
        *([(combine("jump", still_x, jump_y, trust), 4)] if jump_y.weights[1] > 0 else []),
        (fit_orbit(positions, trust, step), 5),
    ]
    num = max(float(trust.sum()), 1.0)
    # Schwarz' criterion: a family with more freedom has to fit better for it.
    return min(options, key=lambda option: 2 * num * np.log(option[0].error + JITTER) + option[1] * np.log(2 * num))[0]


def combine(motion: str, x: LinearFit, y: LinearFit, trust: np.ndarray) -> Trajectory:
    """Combine separate fits of x and y into a trajectory."""
    return Trajectory(motion, np.stack([x.values, y.values], -1), rms_error(x.squared_error + y.squared_error, trust))


def rms_error(squared_error: float, trust: np.ndarray) -> float:
    """Convert a summed squared error, weighted by trust, to its root mean square."""
    return sqrt(squared_error / max(float(np.square(trust).sum()), 1e-9))
