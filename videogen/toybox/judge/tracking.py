"""Follow things through a clip: all places in all frames at half size, the smoothest good way, then settled.

Canvas, candidates and the frame in which each was seen  ->  a Fit (t,) for each

A thing could seem to become another one, so they are followed one by one, the one that stays most like itself first,
and what is followed hides what lies under it from the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from einops import rearrange

from videogen.toybox.judge.detection import PAD, Candidate, half, pad
from videogen.toybox.judge.pose_fitting import Fit, hide, settle
from videogen.toybox.judge.templates import (
    Canvas,
    Look,
    Maps,
    back,
    energy_of,
    gain,
    slide_agreement,
    slide_energy,
    stamp,
    transform,
)
from videogen.toybox.world.motions import MAX_SPEED, Pose
from videogen.toybox.world.things import DIGITS, ROUND

GROWTH = tuple(float(1.2**power) for power in range(-5, 4))
"""Radii that are tried, as multiples of the first: things shrink to 0.45 of it, grow to 1.6, and are zoomed by 1.7."""
TURN_DEGREES = 15
"""Steps in which angles are tried, a little less than a thing turns in a frame."""
SYMMETRY = {"square": 4, "triangle": 3, "star": 5, "diamond": 2, "cross": 4}
"""How often a turned thing looks the same; others once."""
REACH = int(MAX_SPEED / 2) + 1
"""Half pixels that a thing may go in a frame."""
INERTIA = 0.004
"""What a step of one half pixel costs, where 1 is a frame in which all of a thing is seen: unseen things stay."""
WELL = 0.85
"""A frame is settled well where it explains at least such a share of what the best one does."""
CLEARLY = 0.03
"""A thing turns where that makes it so much more like itself."""
LEAST_TURN, LARGEST_TURN = 2.0, 45.0
"""Degrees from frame to frame that are a turn, not an error."""
MOSTLY = 0.8
"""Share of the frames of which that is asked."""
SOFTEST = 0.3
"""A thing's picture is never so soft that it is less like the thing than this, where it was sighted."""
RIM = 1.0
"""Half pixels about a thing that should be empty: it is not a part of something larger."""
FAINT = 0.1
"""Likeness that the background and what is left of other things may have by chance."""


class Sighting(NamedTuple):
    """A thing as it was seen in one frame, and perhaps once more in the last."""

    candidate: Candidate
    frame: int
    again: Candidate | None = None


def about(one: Candidate) -> tuple[slice, ...]:
    """The half pixels next to a place, in padded maps."""
    place = round((one.y - 1) / 2) + PAD, round((one.x - 1) / 2) + PAD
    return tuple(slice(max(0, part - 1), part + 2) for part in place)


def turns(look: Look) -> bool:
    """Whether a turn of this thing could be seen, and be meant: a turned 6 is a 9."""
    return look.kind not in ROUND and look.kind not in DIGITS


class Search:
    """One thing's templates of some sizes and angles, and what they would change in a clip, whatever hides it."""

    def __init__(self, sighting: Sighting, growth: Sequence[float], angles: Iterable[float], maps: Maps) -> None:
        one, angles = sighting.candidate, tuple(angles)
        self.frame, self.maps = sighting.frame, maps
        self.stops = {sighting.frame: about(one)}
        if sighting.again is not None:
            self.stops[-1] = about(sighting.again)
        self.options = np.array([(one.radius / 2 * times, angle) for times in growth for angle in angles])
        self.stamps = [stamp(one.look, float(radius), float(angle), maps.size) for radius, angle in self.options]
        self.energy = np.stack([slide_energy(template, maps) for template in self.stamps]).clip(1)
        rims = [round(one.radius / 2 * times) + RIM for times in growth]
        self.discs = [stamp(Look("circle", "white"), rim, 0.0, maps.size).cover for rim in rims]
        self.size_of = np.repeat(np.arange(len(growth)), len(angles))

    def look(self, maps: Maps) -> tuple[np.ndarray, Pose]:
        """How like itself the thing is in each frame along its best way through what is not hidden, and that way."""
        agreement = np.stack([slide_agreement(template, maps) for template in self.stamps])
        best = gain(agreement, self.energy).argmax(0)
        agreement, energy = (np.take_along_axis(part, best[None], 0)[0] for part in (agreement, self.energy))
        present, weight, area = (
            self.inside(part, maps, best) for part in (maps.rest_squared, maps.weight, self.maps.weight)
        )
        # The cosine between what is there and what the thing would change, squared; where the thing was sighted it is
        # as high as it gets in a soft picture, and half of that comes by chance.
        alike = agreement.clip(0) ** 2 / (energy * (weight / area).clip(1e-3) * present.clip(1))
        best_alike = alike[self.frame][self.stops[self.frame]].max().clip(SOFTEST, 1)
        alike = ((agreement / energy).clip(0, 1) * (2 * (alike / best_alike).clip(0, 1) - 1) - FAINT).clip(0)
        rows, columns = smoothest(alike, self.stops)
        index = np.arange(len(rows))
        radius, angle = self.options[best[index, rows, columns]].T
        pose = Pose(2.0 * (columns - PAD) + 1, 2.0 * (rows - PAD) + 1, 2 * radius, angle, np.ones(len(rows)))
        return alike[index, rows, columns], pose

    def inside(self, part: np.ndarray, maps: Maps, best: np.ndarray) -> np.ndarray:
        """The sum of a spectrum's picture over the disc of the template that is best in each place, (t, h, w)."""
        sums = np.stack([back(disc * part, maps) for disc in self.discs])
        return np.take_along_axis(sums, self.size_of[best][None], 0)[0]


class Hunt:
    """All that is tried to follow one thing: upright in many sizes first, and turned if that loses it."""

    def __init__(self, sighting: Sighting, maps: Maps, zoom: float) -> None:
        self.sighting, self.everywhere, self.zoom = sighting, maps, zoom
        self.upright = Search(sighting, GROWTH, (0.0,), maps)
        self.turned: Search | None = None

    def look(self, maps: Maps) -> tuple[np.ndarray, Pose]:
        """How like itself the thing stays, (t,), and its way."""
        alike, pose = self.upright.look(maps)
        look, frame = self.sighting.candidate.look, self.sighting.frame
        if not turns(look) or (alike > WELL * alike[frame]).all():
            return alike, pose
        whole = 2 * np.pi / SYMMETRY.get(look.kind, 1)
        if self.turned is None:
            growth = (1.0,) if self.zoom == 1 else tuple(self.zoom ** (step / 3) for step in range(4))
            self.turned = Search(
                self.sighting, growth, np.arange(0, whole - 1e-6, np.deg2rad(TURN_DEGREES)), self.everywhere
            )
        again, turned_pose = self.turned.look(maps)
        better = again.mean() > alike.mean() + CLEARLY and goes_round(turned_pose.angle, whole)
        return (again, turned_pose) if better else (alike, pose)


def goes_round(angle: np.ndarray, whole: float) -> bool:
    """Whether angles go on one way, but for a few frames; after whole a thing looks the same.

    A balloon that in some frames looks better upside down has not turned.
    """
    steps = (np.diff(angle) + whole / 2) % whole - whole / 2
    small = np.abs(steps) < np.deg2rad(LARGEST_TURN)
    return bool(small.mean() >= MOSTLY and abs(steps[small].mean()) > np.deg2rad(LEAST_TURN)) if len(steps) else False


def follow(sightings: Sequence[Sighting], canvas: Canvas, zoom: float = 1.0) -> list[Fit]:
    """Where each thing goes while the camera zooms so far."""
    everywhere = transform(endless(half(canvas)))
    left = {i: Hunt(sighting, everywhere, zoom) for i, sighting in enumerate(sightings)}
    found: dict[int, Fit] = {}
    while left:
        maps = transform(pad(half(canvas), PAD))
        looked = {i: hunt.look(maps) for i, hunt in left.items()}
        surest = max(looked, key=lambda i: float(looked[i][0].mean()))
        one, way = left.pop(surest).sighting.candidate, looked[surest][1]
        turning = bool(way.angle.any())
        fit = settle(one.look, way, canvas, turning=turning)
        found[surest] = mend(one.look, fit, way, one.radius, canvas)
        canvas = hide(canvas, one.look, found[surest].pose)
    return [found[i] for i in range(len(sightings))]


def mend(look: Look, fit: Fit, way: Pose, radius: float, canvas: Canvas) -> Fit:
    """Frames that settled badly, tried again: where they were looked for, of the first size; then between others."""
    whole, turning = energy_of(look, fit.pose, canvas), bool(way.angle.any())
    for attempt in range(3):
        quality = fit.gain / whole
        is_good = quality >= WELL * quality.max()
        bad, good = np.flatnonzero(~is_good), np.flatnonzero(is_good)
        if not len(bad):
            break
        if attempt:
            start = Pose(*(np.interp(bad, good, part[good]) for part in fit.pose))
        else:
            start = Pose(*(part[bad] for part in way))._replace(radius=np.full(len(bad), radius))
        again = settle(look, start, Canvas(*(part[bad] for part in canvas)), turning=turning)
        fit = replace_frames(fit, bad, again)
    return fit


def replace_frames(fit: Fit, frames: np.ndarray, again: Fit) -> Fit:
    """Some frames' poses, where they explain more now."""
    parts = [np.array(part) for part in (*fit.pose, fit.agreement, fit.energy)]
    better = again.gain > fit.gain[frames]
    for part, new in zip(parts, (*again.pose, again.agreement, again.energy), strict=True):
        part[frames[better]] = new[better]
    return Fit(Pose(*parts[:5]), parts[5], parts[6])


def endless(canvas: Canvas) -> Canvas:
    """A canvas whose background goes on beyond the frame, nothing of it hidden: to know what a thing is worth."""
    border = ((0, 0), (PAD, PAD), (PAD, PAD), (0, 0))
    rest, plate = np.pad(canvas.rest, border), np.pad(canvas.plate, border, mode="edge")
    return Canvas(rest, plate, np.ones(plate.shape[:3], np.float32))


def smoothest(maps: np.ndarray, stops: Mapping[int, tuple[slice, ...]]) -> tuple[np.ndarray, np.ndarray]:
    """The way (t,), (t,) through maps (t, h, w) that collects most, less what its steps cost, by way of some stops."""
    maps = maps.copy()
    for frame, near in stops.items():
        maps[frame][near] += len(maps)  # more than all other frames together
    span = np.arange(-REACH, REACH + 1)
    cost = INERTIA * (rearrange(span, "i -> i 1") ** 2 + span**2).ravel()
    total, steps = maps[0], []
    for now in maps[1:]:
        padded = np.pad(total, REACH, constant_values=-np.inf)
        around = np.lib.stride_tricks.sliding_window_view(padded, (2 * REACH + 1,) * 2)
        options = rearrange(around, "h w i j -> h w (i j)") - cost
        steps.append(options.argmax(-1))
        total = now + np.take_along_axis(options, steps[-1][..., None], -1)[..., 0]
    place = np.unravel_index(int(total.argmax()), total.shape)
    way = [place]
    for step in reversed(steps):
        down, right = divmod(int(step[place]), len(span))
        place = place[0] + down - REACH, place[1] + right - REACH
        way.append(place)
    rows, columns = np.array(way[::-1]).T
    return rows, columns
