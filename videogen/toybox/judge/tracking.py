"""Track things through a clip: match all places of all frames at half size, take the best smooth path, then fit.

Canvas, candidates and the frame in which each was detected  ->  a Fit (t,) for each

The path of a thing could slip onto another thing. So they are tracked one by one, the one that stays most like itself
first, and each masks what lies under it from those that follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from einops import rearrange

from videogen.toybox.judge.detection import PADDING, Candidate
from videogen.toybox.judge.pose_fitting import Fit, fit_pose, mask_out
from videogen.toybox.judge.templates import Appearance, Canvas, CanvasSpectra, gain, select_frames, template_spectra
from videogen.toybox.world.motions import MAX_SPEED, Pose
from videogen.toybox.world.things import DIGITS, ROUND_KINDS

GROWTH_FACTORS = tuple(float(1.2**power) for power in range(-5, 4))
"""Radii that are tried, as multiples of the first: things shrink to 0.45 of it, grow to 1.6, and are zoomed by 1.7."""
ANGLE_STEP_DEGREES = 15
"""Steps in which angles are tried, a little less than a thing turns in a frame."""
SYMMETRY = {"square": 4, "triangle": 3, "star": 5, "diamond": 2, "cross": 4}
"""How often a thing looks the same in a full turn; kinds not listed, once."""
MAX_TRAVEL = int(MAX_SPEED / 2) + 1
"""Half pixels that a thing may go in a frame."""
STEP_COST = 0.004
"""Cost of a step of one half pixel, where 1 is a frame in which all of a thing is seen: unseen things stay."""
WELL_FITTED = 0.85
"""A frame is fitted well where it explains at least such a share of what the best one does."""
TURNED_BETTER = 0.03
"""A thing turns only if that raises its mean likeness by so much."""
MIN_TURN_DEGREES, MAX_TURN_DEGREES = 2.0, 45.0
"""Degrees from frame to frame that are a turn, not an error."""
MIN_TURNING_SHARE = 0.8
"""Share of the frames in which a turn must be no larger than that."""
MIN_PEAK_COSINE = 0.3
"""The squared cosine where a thing was detected counts as no less than this, however blurred the frames are."""
RIM = 1.0
"""Half pixels about a thing that should be empty: it is not a part of something larger."""
CHANCE_LIKENESS = 0.1
"""Likeness that the background and what is left of other things may have by chance."""


class Sighting(NamedTuple):
    """A thing detected in one frame, and perhaps once more in the last."""

    candidate: Candidate
    frame: int
    last_candidate: Candidate | None = None


def cells_around(candidate: Candidate) -> tuple[slice, ...]:
    """Select the half pixels next to a candidate's centre, in padded maps."""
    centre = round((candidate.y - 1) / 2) + PADDING, round((candidate.x - 1) / 2) + PADDING
    return tuple(slice(max(0, place - 1), place + 2) for place in centre)


def shows_turns(appearance: Appearance) -> bool:
    """True if a turn of this thing could be seen, and be meant: a turned 6 is a 9."""
    return appearance.kind not in ROUND_KINDS and appearance.kind not in DIGITS


class ThingTemplates:
    """One thing's templates of some sizes and angles, and their energy in a clip in which nothing hides it."""

    def __init__(
        self, sighting: Sighting, growth: Sequence[float], angles: Iterable[float], unmasked: CanvasSpectra
    ) -> None:
        candidate, angles = sighting.candidate, tuple(angles)
        self.frame, self.unmasked = sighting.frame, unmasked
        self.stops = {sighting.frame: cells_around(candidate)}
        if sighting.last_candidate is not None:
            self.stops[-1] = cells_around(sighting.last_candidate)
        self.options = np.array([(candidate.radius / 2 * factor, angle) for factor in growth for angle in angles])
        options, appearance, size = self.options.tolist(), candidate.appearance, unmasked.size
        self.templates = [template_spectra(appearance, radius, angle, size) for radius, angle in options]
        self.energy = np.stack([unmasked.energy(template) for template in self.templates]).clip(1)
        rims = [round(candidate.radius / 2 * factor) + RIM for factor in growth]
        self.discs = [template_spectra(Appearance("circle", "white"), rim, 0.0, size).coverage for rim in rims]
        self.disc_of_option = np.repeat(np.arange(len(growth)), len(angles))

    def track(self, spectra: CanvasSpectra) -> tuple[np.ndarray, Pose]:
        """Find the thing's best path through what is not masked: its likeness (t,) along it, and its poses."""
        agreement = np.stack([spectra.agreement(template) for template in self.templates])
        best = gain(agreement, self.energy).argmax(0)
        agreement, energy = (np.take_along_axis(part, best[None], 0)[0] for part in (agreement, self.energy))
        present, weight, area = (
            self.sum_over_disc(part, spectra, best)
            for part in (spectra.residual_squared, spectra.weight, self.unmasked.weight)
        )
        # Where the thing was detected, the squared cosine between the residual and the thing's change is as high as it
        # gets in a blurred picture, and half of that comes by chance.
        squared_cosine = agreement.clip(0) ** 2 / (energy * (weight / area).clip(1e-3) * present.clip(1))
        peak = squared_cosine[self.frame][self.stops[self.frame]].max().clip(MIN_PEAK_COSINE, 1)
        shape_match = 2 * (squared_cosine / peak).clip(0, 1) - 1
        likenesses = ((agreement / energy).clip(0, 1) * shape_match - CHANCE_LIKENESS).clip(0)
        rows, columns = smoothest_path(likenesses, self.stops)
        frame = np.arange(len(rows))
        radius, angle = self.options[best[frame, rows, columns]].T
        x, y = 2.0 * (columns - PADDING) + 1, 2.0 * (rows - PADDING) + 1
        return likenesses[frame, rows, columns], Pose(x, y, 2 * radius, angle, np.ones(len(rows)))

    def sum_over_disc(self, part: np.ndarray, spectra: CanvasSpectra, best: np.ndarray) -> np.ndarray:
        """Sum a spectrum's picture over the disc of each place's best template, (t, h, w)."""
        sums = np.stack([spectra.inverse(disc * part) for disc in self.discs])
        return np.take_along_axis(sums, self.disc_of_option[best][None], 0)[0]


class ThingTracker:
    """Tracks one thing: upright in many sizes first, and turned if that loses it."""

    def __init__(self, sighting: Sighting, unmasked: CanvasSpectra, zoom: float) -> None:
        self.sighting, self.unmasked, self.zoom = sighting, unmasked, zoom
        self.period = 2 * np.pi / SYMMETRY.get(sighting.candidate.appearance.kind, 1)
        self.upright = ThingTemplates(sighting, GROWTH_FACTORS, (0.0,), unmasked)

    @cached_property
    def turned(self) -> ThingTemplates:
        """The thing's templates at all angles; made only for things that are lost upright."""
        growth = (1.0,) if self.zoom == 1 else tuple(self.zoom ** (step / 3) for step in range(4))
        angles = np.arange(0, self.period - 1e-6, np.deg2rad(ANGLE_STEP_DEGREES))
        return ThingTemplates(self.sighting, growth, angles, self.unmasked)

    def track(self, spectra: CanvasSpectra) -> tuple[np.ndarray, Pose]:
        """Find the thing's likeness (t,) along its best path, and its poses."""
        likenesses, pose = self.upright.track(spectra)
        appearance, frame = self.sighting.candidate.appearance, self.sighting.frame
        if not shows_turns(appearance) or (likenesses > WELL_FITTED * likenesses[frame]).all():
            return likenesses, pose
        turned_likenesses, turned_pose = self.turned.track(spectra)
        better = turned_likenesses.mean() > likenesses.mean() + TURNED_BETTER
        turns = better and turns_steadily(turned_pose.angle, self.period)
        return (turned_likenesses, turned_pose) if turns else (likenesses, pose)


def turns_steadily(angle: np.ndarray, period: float) -> bool:
    """True if angles (t,), known up to a period, turn one way in all but a few frames.

    A balloon that in some frames looks better upside down has not turned.
    """
    turns = (np.diff(angle) + period / 2) % period - period / 2
    small = np.abs(turns) < np.deg2rad(MAX_TURN_DEGREES)
    if not len(turns):
        return False
    return bool(small.mean() >= MIN_TURNING_SHARE and abs(turns[small].mean()) > np.deg2rad(MIN_TURN_DEGREES))


def track_things(sightings: Sequence[Sighting], canvas: Canvas, zoom: float = 1.0) -> list[Fit]:
    """Fit each thing's poses in all frames, while the camera zooms by a factor in all."""
    # What a thing is worth is measured where the background goes on beyond the frame and nothing is masked.
    border = ((0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0))
    half = canvas.halved()
    residual, plate = np.pad(half.residual, border), np.pad(half.plate, border, mode="edge")
    unmasked = Canvas(residual, plate, np.ones(plate.shape[:3], np.float32)).spectra()
    trackers = {i: ThingTracker(sighting, unmasked, zoom) for i, sighting in enumerate(sightings)}
    fits: dict[int, Fit] = {}
    while trackers:
        spectra = canvas.halved().padded(PADDING).spectra()
        tracks = {i: tracker.track(spectra) for i, tracker in trackers.items()}
        surest = max(tracks, key=lambda i: float(tracks[i][0].mean()))
        candidate, pose = trackers.pop(surest).sighting.candidate, tracks[surest][1]
        fits[surest] = fit_track(candidate, pose, canvas)
        canvas = mask_out(canvas, candidate.appearance, fits[surest].pose)
    return [fits[i] for i in range(len(sightings))]


def fit_track(candidate: Candidate, pose: Pose, canvas: Canvas) -> Fit:
    """Fit a tracked pose, and refit bad frames: from the track at the candidate's radius, then from good frames."""
    appearance, fit_angle = candidate.appearance, bool(pose.angle.any())
    fit = fit_pose(appearance, pose, canvas, fit_angle=fit_angle)
    whole = canvas.full_energy(appearance, fit.pose)
    for attempt in range(3):
        explained = fit.gain / whole
        is_good = explained >= WELL_FITTED * explained.max()
        bad, good = np.flatnonzero(~is_good), np.flatnonzero(is_good)
        if not len(bad):
            break
        if attempt:
            start = Pose(*(np.interp(bad, good, part[good]) for part in fit.pose))
        else:
            start = select_frames(pose, bad)._replace(radius=np.full(len(bad), candidate.radius))
        refit = fit_pose(appearance, start, select_frames(canvas, bad), fit_angle=fit_angle)
        fit = replace_frames(fit, bad, refit)
    return fit


def replace_frames(fit: Fit, frames: np.ndarray, refit: Fit) -> Fit:
    """Replace those of some frames in which a second fit explains more."""
    parts = [np.array(part) for part in (*fit.pose, fit.agreement, fit.energy)]
    better = refit.gain > fit.gain[frames]
    for part, new in zip(parts, (*refit.pose, refit.agreement, refit.energy), strict=True):
        part[frames[better]] = new[better]
    return Fit(Pose(*parts[:5]), parts[5], parts[6])


def smoothest_path(maps: np.ndarray, stops: Mapping[int, tuple[slice, ...]]) -> tuple[np.ndarray, np.ndarray]:
    """Find the path through maps (t, h, w) that collects most, less the cost of its steps: rows and columns, each (t,).

    The path, by dynamic programming (Viterbi 1967), goes through the cells of each stop, which are given by frame.
    """
    maps = maps.copy()
    for frame, cells in stops.items():
        maps[frame][cells] += len(maps)  # more than all other frames together
    span = np.arange(-MAX_TRAVEL, MAX_TRAVEL + 1)
    cost = STEP_COST * (rearrange(span, "i -> i 1") ** 2 + span**2).ravel()
    total, steps = maps[0], []
    for scores in maps[1:]:
        padded = np.pad(total, MAX_TRAVEL, constant_values=-np.inf)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * MAX_TRAVEL + 1,) * 2)
        options = rearrange(windows, "h w i j -> h w (i j)") - cost
        steps.append(options.argmax(-1))
        total = scores + np.take_along_axis(options, steps[-1][..., None], -1)[..., 0]
    place = np.unravel_index(int(total.argmax()), total.shape)
    path = [place]
    for step in reversed(steps):
        down, right = divmod(int(step[place]), len(span))
        place = place[0] + down - MAX_TRAVEL, place[1] + right - MAX_TRAVEL
        path.append(place)
    rows, columns = np.array(path[::-1]).T
    return rows, columns
