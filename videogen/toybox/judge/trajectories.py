"""Which way a thing goes: every family of paths is fitted to its track, the simplest that fits is taken.

places (t, 2) in the world, trust (t,)  ->  Path: name, fitted places (t, 2), error in pixels, sense of turning

A family is a few curves in time, found on a grid of its pace and phase, to which the track is a linear fit.
"""

from __future__ import annotations

from math import atan2, pi, sqrt
from typing import NamedTuple

import numpy as np

from videogen.toybox.world.motions import AIRBORNE, GROUNDED

JITTER = 0.35
"""Pixels by which a place is off at best: smaller errors say nothing."""
REST = 1.6
"""Pixels about its middle, at most, that a resting thing may seem to move (root of the mean square)."""
COMPASS = ("right", "down right", "down", "down left", "left", "up left", "up", "up right")


class Path(NamedTuple):
    """A family of paths and the member that fits a track best."""

    name: str
    places: np.ndarray
    error: float
    sense: float = 0.0
    """Of a circle: above zero is clockwise."""


class Fitted(NamedTuple):
    """The best of many linear fits: what it gives, its summed squared error, and which one it was."""

    places: np.ndarray
    squared: float
    weights: np.ndarray
    which: int


def fit(bases: np.ndarray, values: np.ndarray, trust: np.ndarray) -> Fitted:
    """Values (n,) as sums of the curves of one of several bases (k, n, curves), whichever fits best."""
    scaled = bases * trust[:, None]
    normal = np.einsum("kni,knj->kij", scaled, scaled) + 1e-9 * np.eye(bases.shape[2])
    weights = np.linalg.solve(normal, np.einsum("kni,n->ki", scaled, trust * values)[..., None])[..., 0]
    fitted = np.einsum("kni,ki->kn", bases, weights)
    squared = np.square((fitted - values) * trust).sum(1)
    best = int(squared.argmin())
    return Fitted(fitted[best], float(squared[best]), weights[best], best)


def bounce(step: np.ndarray) -> np.ndarray:
    """Triangular waves (k, t, 2), of periods that turn at least once within a clip."""
    steps = max(len(step) - 1, 1)
    period = np.geomspace(min(5.0, steps), 1.45 * steps, 24)[:, None, None]
    phase = np.linspace(0, 1, 24, endpoint=False)[:, None]
    wave = 4 * np.abs((step / period + phase + 0.25) % 1 - 0.5) - 1
    return with_constant(wave.reshape(-1, len(step)))


def hop(step: np.ndarray) -> np.ndarray:
    """Parabolas with rests between them (k, t, 2)."""
    cycle = AIRBORNE + GROUNDED
    share = np.clip((np.arange(0, cycle, 0.25)[:, None] + step) % cycle / AIRBORNE, 0, 1)
    return with_constant(-4 * share * (1 - share))


def with_constant(curves: np.ndarray) -> np.ndarray:
    """Each curve (k, t) beside a constant, (k, t, 2)."""
    return np.stack([np.ones_like(curves), curves], axis=-1)


def circles(step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Circles as bases of x and y one after the other (k, 2t, 4), and their paces in radians a frame."""
    slowest = 0.7 * 2 * pi / max(len(step) - 1, 1)
    paces = np.geomspace(slowest, max(0.7, slowest), 40)
    paces = np.concatenate([paces, -paces])
    cosine, sine = np.cos(paces[:, None] * step), np.sin(paces[:, None] * step)
    one, zero = np.ones_like(cosine), np.zeros_like(cosine)
    x, y = np.stack([one, zero, cosine, -sine], -1), np.stack([zero, one, sine, cosine], -1)
    return np.concatenate([x, y], axis=1), paces


def classify(places: np.ndarray, trust: np.ndarray) -> Path:
    """The family of a track (t, 2), each frame trusted so far (t,)."""
    step = np.arange(len(places), dtype=np.float64)
    x, y = places.T
    constant, line = np.ones((1, len(step), 1)), with_constant(step[None])
    still = [fit(constant, part, trust) for part in (x, y)]
    options = [(path_of("still", still, trust), 2)]
    if options[0][0].error < REST or len(step) < 3:
        return options[0][0]
    straight = [fit(line, part, trust) for part in (x, y)]
    options.append((path_of(compass(straight[0].weights[1], straight[1].weights[1]), straight, trust), 4))
    waves = bounce(step)
    options.append((path_of("bounce side to side", [fit(waves, x, trust), still[1]], trust), 5))
    options.append((path_of("bounce up and down", [still[0], fit(waves, y, trust)], trust), 5))
    jumping = fit(hop(step), y, trust)
    if jumping.weights[1] > 0:
        options.append((path_of("jump", [still[0], jumping], trust), 4))
    options.append((orbit(places, trust, step), 5))
    num = max(float(trust.sum()), 1.0)
    # Schwarz' criterion: a family with more freedom has to fit better for it.
    return min(options, key=lambda option: 2 * num * np.log(option[0].error + JITTER) + option[1] * np.log(2 * num))[0]


def orbit(places: np.ndarray, trust: np.ndarray, step: np.ndarray) -> Path:
    """The best circle."""
    bases, paces = circles(step)
    both = fit(bases, places.T.ravel(), np.tile(trust, 2))
    return Path("orbit", both.places.reshape(2, -1).T, error_of(both.squared, trust), float(paces[both.which]))


def path_of(name: str, parts: list[Fitted], trust: np.ndarray) -> Path:
    """A path of separate fits of x and y."""
    return Path(name, np.stack([part.places for part in parts], -1), error_of(sum(p.squared for p in parts), trust))


def error_of(squared: float, trust: np.ndarray) -> float:
    """The root of the mean square of the distance."""
    return sqrt(squared / max(float(np.square(trust).sum()), 1e-9))


def compass(right: float, down: float) -> str:
    """The nearest of eight ways."""
    return COMPASS[round(atan2(down, right) / (pi / 4)) % 8]
