"""Detect the things of one frame: match every kind, colour and place at half size, refine the best at full size.

Canvas of one frame  ->  [candidates of a thing: appearance, place, radius, gain, likeness; the best first]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from einops import rearrange

from videogen.toybox.judge.pose_fitting import fit_pose, mask_out
from videogen.toybox.judge.templates import APPEARANCES, Appearance, Canvas, kind_maps, likeness
from videogen.toybox.world.motions import Pose
from videogen.toybox.world.things import KINDS

RADIUS_SHARES = (0.11, 0.14, 0.17, 0.2075, 0.25)
"""Radii that are tried, as shares of the shorter side: the middles of small and large, and what lies about them."""
PADDING = 4
"""Half pixels about a frame, so that a thing may lie partly outside."""
MIN_LIKENESS = 0.3
"""Share of its own energy that a thing has to explain: a cluster of stars is no ghost."""
MIN_CONTRAST = 10.0
"""YCC distance to the background: a thing explains at least that over half of its disc."""
NUM_KINDS, NUM_COLOURS = 7, 3
"""So many kinds, and colours of the likeliest, are refined at full size; the right one is hardly ever farther down."""
MIN_GAIN_SHARE = 0.5
"""An appearance is refined only if it explains such a share of what the best one explains at half size."""
MAX_THINGS = 6
MIN_RADIUS_SHARE = 0.09
"""Of the shorter side: whatever has a smaller radius is a speck."""
REFINED_APART = 0.6
"""The same as APART for candidates refined at full size: what slid onto a detected thing is that thing."""
APART = 0.85
"""Two things are closer than their radii together by no more than this; the half pixels are coarse."""
NEARBY = 2
"""Half pixels within which two places are of one thing."""


class Candidate(NamedTuple):
    """An appearance at a place of one frame, the fall of the squared error that it gains, and its likeness."""

    appearance: Appearance
    x: float
    y: float
    radius: float
    gain: float
    likeness: float

    @property
    def pose(self) -> Pose:
        """The candidate as an upright, opaque pose of one frame."""
        x, y, radius = (np.array([value]) for value in (self.x, self.y, self.radius))
        return Pose(x, y, radius, np.zeros(1), np.ones(1))


class Peak(NamedTuple):
    """A place in the maps: number of the radius, row and column."""

    size: int
    row: int
    column: int


def detect_things(canvas: Canvas) -> list[list[Candidate]]:
    """Detect the things of a frame, each as the candidates that explain it best."""
    side = min(canvas.weight.shape[1:])
    radii = np.array(RADIUS_SHARES) * side / 2
    if (canvas.weight[..., None] * np.square(canvas.residual)).sum() < min_gain(2 * radii[0]):
        return []
    gains, likenesses = match_everywhere(canvas.halved().padded(PADDING), radii)
    things: list[list[Candidate]] = []
    for _ in range(MAX_THINGS):
        peak = best_peak(gains, likenesses, radii)
        if peak is None:
            break
        candidates = [refine(canvas, appearance, place, radii) for appearance, place in rivals_at(gains, peak)]
        candidates.sort(key=lambda candidate: -candidate.gain)
        best = candidates[0]
        is_thing = (
            best.gain > min_gain(best.radius) and best.likeness > MIN_LIKENESS and best.radius > MIN_RADIUS_SHARE * side
        )
        if is_thing and is_apart(best, [thing[0] for thing in things]):
            things.append(candidates)
            canvas = mask_out(canvas, best.appearance, best.pose, all_covered=True)
        suppress_around(gains, radii, peak, max(radii[peak.size], best.radius / 2))
    return things


def is_apart(candidate: Candidate, detected: Sequence[Candidate]) -> bool:
    """True if a candidate does not overlap a thing that was already detected."""
    return all(
        np.hypot(candidate.x - other.x, candidate.y - other.y) > REFINED_APART * (candidate.radius + other.radius)
        for other in detected
    )


def min_gain(radius: float) -> float:
    """Compute the gain that a thing of some radius must reach in a frame."""
    return MIN_CONTRAST**2 * np.pi * radius**2 / 2


def match_everywhere(canvas: Canvas, radii: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute gain and likeness of every appearance in every place, each (appearances, radii, h, w)."""
    spectra = canvas.spectra()
    gains, likenesses = (np.empty((len(APPEARANCES), len(radii), *spectra.size), np.float32) for _ in range(2))
    for i, radius in enumerate(radii):
        first = 0
        for kind in KINDS:
            agreement, energy = kind_maps(kind, float(radius), spectra)
            of_kind = slice(first, first := first + len(agreement))
            gains[of_kind, i] = (2 * agreement - energy)[:, 0]
            likenesses[of_kind, i] = likeness(gains[of_kind, i], energy[:, 0])
    return gains, likenesses


def best_peak(gains: np.ndarray, likenesses: np.ndarray, radii: np.ndarray) -> Peak | None:
    """Find where a thing explains most and is itself well explained; None if that is too little."""
    # By gain alone, something large that half covers two things would come before either of them.
    appearance, *place = np.unravel_index(int((gains * likenesses).argmax()), gains.shape)
    at_peak = (appearance, *place)
    if gains[at_peak] < min_gain(radii[place[0]]) or likenesses[at_peak] < MIN_LIKENESS / 2:
        return None
    return Peak(*map(int, place))


def rivals_at(gains: np.ndarray, peak: Peak) -> list[tuple[Appearance, Peak]]:
    """Find the best appearances about a peak, each with the place and radius that suit it best."""
    top, left = max(0, peak.row - NEARBY), max(0, peak.column - NEARBY)
    near = gains[:, :, top : peak.row + NEARBY + 1, left : peak.column + NEARBY + 1]
    flat = rearrange(near, "appearances radii h w -> appearances (radii h w)")
    best = flat.max(1)
    by_kind: dict[str, list[int]] = {}
    for i in best.argsort()[::-1]:
        if best[i] > MIN_GAIN_SHARE * best.max():
            by_kind.setdefault(APPEARANCES[i].kind, []).append(int(i))
    # Kinds are hard to tell at half size and colours are not, but for those of the likeliest kind.
    likeliest, *others = list(by_kind.values())[:NUM_KINDS]
    rivals = []
    for i in (*likeliest[:NUM_COLOURS], *(of_kind[0] for of_kind in others)):
        size, row, column = np.unravel_index(int(flat[i].argmax()), near.shape[1:])
        rivals.append((APPEARANCES[i], Peak(int(size), int(row) + top, int(column) + left)))
    return rivals


def suppress_around(gains: np.ndarray, radii: np.ndarray, peak: Peak, radius: float) -> None:
    """Set the gains to zero wherever another thing would overlap one of a radius at a peak."""
    row, column = np.ogrid[: gains.shape[2], : gains.shape[3]]
    distance = np.hypot(row - peak.row, column - peak.column)
    for i, other in enumerate(radii):
        gains[:, i, distance < APART * (other + radius)] = 0


def refine(canvas: Canvas, appearance: Appearance, peak: Peak, radii: np.ndarray) -> Candidate:
    """Fit an appearance at full size, starting from its peak at half size."""
    x, y = (2.0 * (place - PADDING) + 1 for place in (peak.column, peak.row))
    start = Candidate(appearance, x, y, 2 * float(radii[peak.size]), 0, 0)
    fit = fit_pose(appearance, start.pose, canvas, opaque=True)
    explained = float(fit.opaque_gain[0])
    x, y, radius = (float(part[0]) for part in fit.pose[:3])
    rating = float(likeness(np.array([explained]), canvas.full_energy(appearance, fit.pose))[0])
    return Candidate(appearance, x, y, radius, explained, rating)
