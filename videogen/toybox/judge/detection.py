"""Find the things of one frame: every kind, colour and place is tried at half size, the best are settled at full size.

Canvas of one frame  ->  [candidates of a thing: look, place, radius, gain; the best first]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from einops import rearrange

from videogen.toybox.judge.colour_space import halve
from videogen.toybox.judge.pose_fitting import hide, settle
from videogen.toybox.judge.templates import LOOKS, Canvas, Look, energy_of, likeness, slide_kind, transform
from videogen.toybox.world.motions import Pose
from videogen.toybox.world.things import KINDS

SHARES = (0.11, 0.14, 0.17, 0.2075, 0.25)
"""Radii that are tried, as shares of the shorter side: the middles of small and large, and what lies about them."""
PAD = 4
"""Half pixels about a frame, so that a thing may stand partly outside."""
LEAST_QUALITY = 0.3
"""Share of its own energy that a thing has to explain: a cluster of stars is no ghost."""
LEAST_CONTRAST = 10.0
"""Seen distance to the background: a thing explains at least that over half of its disc."""
NUM_KINDS, NUM_COLOURS = 7, 3
"""So many kinds, and colours of the likeliest, are settled at full size; the right one is hardly ever farther down."""
HOPEFUL = 0.5
"""Share of what the best look explains at half size, below which another is not worth settling."""
MOST_THINGS = 6
LEAST_SHARE = 0.09
"""Of the shorter side: whatever has a smaller radius is a speck."""
STILL_APART = 0.6
"""The same of where they are settled, at full size: what slid onto a thing that is found already is that thing."""
APART = 0.85
"""Two things are closer than their radii together by no more than this; the half pixels are coarse."""
NEAR = 2
"""Half pixels within which two places are of one thing."""


class Candidate(NamedTuple):
    """A look at a place of one frame, and what of the squared error it explains, as a number and as a share."""

    look: Look
    x: float
    y: float
    radius: float
    gain: float
    quality: float


class Peak(NamedTuple):
    """A place in the maps: number of the radius, row and column."""

    size: int
    row: int
    column: int


def pad(canvas: Canvas, border: int) -> Canvas:
    """A canvas with a weightless border."""
    around = ((0, 0), (border, border), (border, border), (0, 0))
    return Canvas(*(np.pad(part, around[: part.ndim]) for part in canvas))


def half(canvas: Canvas) -> Canvas:
    """A canvas at half its size."""
    return Canvas(halve(canvas.rest), halve(canvas.plate), halve(canvas.weight[..., None])[..., 0])


def find(canvas: Canvas) -> list[list[Candidate]]:
    """The things of a frame, each with the looks that explain it best."""
    radii = np.array(SHARES) * min(canvas.weight.shape[1:]) / 2
    if (canvas.weight[..., None] * np.square(canvas.rest)).sum() < least_gain(2 * radii[0]):
        return []
    gains, quality = try_everything(pad(half(canvas), PAD), radii)
    found = []
    for _ in range(MOST_THINGS):
        peak = highest(gains, quality, radii)
        if peak is None:
            break
        settled = [settle_one(canvas, look, place, radii) for look, place in looks_near(gains, peak)]
        settled.sort(key=lambda one: -one.gain)
        others = [one[0] for one in found]
        if is_there(settled[0], min(canvas.weight.shape[1:])) and is_apart(settled[0], others):
            found.append(settled)
            canvas = hide(canvas, settled[0].look, pose_of(settled[0]), wholly=True)
        clear(gains, radii, peak, max(radii[peak.size], settled[0].radius / 2))
    return found


def is_there(one: Candidate, side: int) -> bool:
    """Whether enough is explained, and well, by something that is large enough to be a thing."""
    return one.gain > least_gain(one.radius) and one.quality > LEAST_QUALITY and one.radius > LEAST_SHARE * side


def is_apart(one: Candidate, others: Sequence[Candidate]) -> bool:
    """Whether it is no other thing once more."""
    return all(
        np.hypot(one.x - other.x, one.y - other.y) > STILL_APART * (one.radius + other.radius) for other in others
    )


def least_gain(radius: float) -> float:
    """What a thing has to explain at least, in a frame."""
    return LEAST_CONTRAST**2 * np.pi * radius**2 / 2


def pose_of(one: Candidate) -> Pose:
    """A candidate's place, as a pose of one frame."""
    x, y, radius = (np.array([part]) for part in (one.x, one.y, one.radius))
    return Pose(x, y, radius, np.zeros(1), np.ones(1))


def try_everything(canvas: Canvas, radii: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gain and likeness of every look in every place: each (looks, radii, h, w)."""
    maps = transform(canvas)
    gains, quality = (np.empty((len(LOOKS), len(radii), *maps.size), np.float32) for _ in range(2))
    for i, radius in enumerate(radii):
        first = 0
        for kind in KINDS:
            agreement, energy = slide_kind(kind, float(radius), maps)
            these = slice(first, first := first + len(agreement))
            gains[these, i] = (2 * agreement - energy)[:, 0]
            quality[these, i] = likeness(gains[these, i], energy[:, 0])
    return gains, quality


def highest(gains: np.ndarray, quality: np.ndarray, radii: np.ndarray) -> Peak | None:
    """Where most is explained by one thing that is well explained itself; none if that is too little."""
    # By gain alone, something large that half covers two things would come before either of them.
    look, *place = np.unravel_index(int((gains * quality).argmax()), gains.shape)
    if gains[(look, *place)] < least_gain(radii[place[0]]) or quality[(look, *place)] < LEAST_QUALITY / 2:
        return None
    return Peak(*map(int, place))


def looks_near(gains: np.ndarray, peak: Peak) -> list[tuple[Look, Peak]]:
    """The best looks about a place, each where it is best itself and of the radius that it is best in."""
    top, left = max(0, peak.row - NEAR), max(0, peak.column - NEAR)
    around = gains[:, :, top : peak.row + NEAR + 1, left : peak.column + NEAR + 1]
    flat = rearrange(around, "looks radii h w -> looks (radii h w)")
    best = flat.max(1)
    ranked = [i for i in best.argsort()[::-1] if best[i] > HOPEFUL * best.max()]
    of_kind: dict[str, list[int]] = {}
    for i in ranked:
        of_kind.setdefault(LOOKS[i].kind, []).append(int(i))
    # Kinds are hard to tell at half size and colours are not, but for those of the likeliest kind.
    first, *others = list(of_kind.values())[:NUM_KINDS]
    found = []
    for i in (*first[:NUM_COLOURS], *(looks[0] for looks in others)):
        size, row, column = np.unravel_index(int(flat[i].argmax()), around.shape[1:])
        found.append((LOOKS[i], Peak(int(size), int(row) + top, int(column) + left)))
    return found


def clear(gains: np.ndarray, radii: np.ndarray, place: Peak, radius: float) -> None:
    """Take out every place where another thing would overlap one of a radius that is found."""
    row, column = np.ogrid[: gains.shape[2], : gains.shape[3]]
    distance = np.hypot(row - place.row, column - place.column)
    for i, other in enumerate(radii):
        gains[:, i, distance < APART * (other + radius)] = 0


def settle_one(canvas: Canvas, look: Look, peak: Peak, radii: np.ndarray) -> Candidate:
    """A look, settled at full size."""
    x, y = (2.0 * (place - PAD) + 1 for place in (peak.column, peak.row))
    pose = pose_of(Candidate(look, x, y, 2 * float(radii[peak.size]), 0, 0))
    fit = settle(look, pose, canvas, solid=True)
    explained = float((2 * fit.agreement - fit.energy)[0])
    x, y, radius = (float(part[0]) for part in fit.pose[:3])
    quality = float(likeness(np.array([explained]), energy_of(look, fit.pose, canvas))[0])
    return Candidate(look, x, y, radius, explained, quality)
