"""Read a clip: which background, how the camera moves, which things there are and what they do.

frames (t, h, w, 3) uint8  ->  Found
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import NamedTuple

import numpy as np

from videogen.toybox.judge.background import look_behind
from videogen.toybox.judge.camera import THING, Camera, look_at_camera
from videogen.toybox.judge.colour_space import length, see, soften, specks
from videogen.toybox.judge.detection import LEAST_QUALITY, LEAST_SHARE, Candidate, find
from videogen.toybox.judge.events import find_events
from videogen.toybox.judge.motion import line_through, to_world, watch
from videogen.toybox.judge.observations import Found, FoundThing
from videogen.toybox.judge.pose_fitting import Fit, hide, settle
from videogen.toybox.judge.templates import (
    Canvas,
    Look,
    change_of,
    cut,
    energy_of,
    energy_there,
    gain,
    likeness,
    measure,
    shown_in,
)
from videogen.toybox.judge.tracking import Sighting, follow
from videogen.toybox.world.motions import Pose
from videogen.toybox.world.things import SIZES

MIDDLING = sqrt(SIZES["small"][1] * SIZES["large"][0])
"""The radius, as a share of the shorter side, between small and large."""
PRESENT = 0.5
"""A thing is measured where it explains such a share of what it does in its best frame."""
LEAST_PRESENCE = 0.1
"""Share of the frames that a thing must be in: less is a flash."""
LEFT, SURE = 0.1, 0.8
"""Shares between which a thing, in the last frame, may have faded out and another be taken for it."""
SAME_PLACE = 0.7
"""Share of the larger radius within which two things are one that was seen twice: the world's keep apart from it."""
AMONG_STARS = 0.5
"""How like itself a thing has to be before a night sky, where stars may look a little like anything."""
STAR = 3
"""Half the side, in pixels, of a square that a star lies in and nothing of which shows anything at its border."""
CLOSE = 0.9
"""Looks that explain such a share of what the best explains are asked about in more frames."""
NUM_VOTERS = 5
SOFTEST = 2
"""Times that a look's picture is softened at most, to be as soft as a weak autoencoder's."""


def read(frames: np.ndarray) -> Found:
    """All that can be seen in a clip (t, h, w, 3) uint8."""
    frames = np.asarray(frames)
    assert frames.ndim == 4, f"expected (t, h, w, 3), got {frames.shape}"
    assert frames.shape[-1] == 3, f"expected (t, h, w, 3), got {frames.shape}"
    num_frames, height, width = frames.shape[:3]
    seen = see(frames)
    behind = look_behind(seen)
    camera = look_at_camera(seen, behind)
    rest = seen - behind.plate
    weight = ~stars(rest, camera) if behind.name == "night sky" else np.ones(seen.shape[:3], bool)
    canvas = Canvas(rest, behind.plate, weight.astype(np.float32))
    least = AMONG_STARS if behind.name == "night sky" else LEAST_QUALITY
    tracks = distinct(find_tracks(canvas, camera, least), canvas)
    things = tuple(describe(i, tracks, camera, canvas) for i in range(len(tracks)))
    events = find_events(things, canvas)
    return Found(width, height, num_frames, behind.name, behind.misfit, camera, things, events)


def stars(rest: np.ndarray, camera: Camera) -> np.ndarray:
    """Where a night sky shows its stars, (t, h, w): specks, which grow as the camera zooms in, and are no things."""
    reach = np.rint(STAR * np.maximum(camera.view(len(rest))[2], 1)).astype(int)
    found = np.zeros(rest.shape[:3], bool)
    for one in np.unique(reach):
        found[reach == one] = specks(length(rest[reach == one]) > THING, one)
    return found


class Track(NamedTuple):
    """A thing through a clip: the looks it could have, the likeliest first, the frame they were told in, its poses."""

    looks: list[Candidate]
    frame: int
    fit: Fit

    @property
    def look(self) -> Look:
        """The likeliest."""
        return self.looks[0].look


def find_tracks(canvas: Canvas, camera: Camera, least: float) -> list[tuple[Look, Fit]]:
    """The things of the first frame, and those of the last that are none of them, followed through all frames."""
    zoom, last = float(camera.view(len(canvas.rest))[2][-1]), len(canvas.rest) - 1
    tracks = pursue(find(frame_of(canvas, 0)), 0, canvas, zoom)
    if last:
        # What fades out may slip onto what fades in: that is found in the last frame, if it is left there to be seen.
        loose = [track for track in tracks if is_doubtful(track, canvas)]
        firm = [track for track in tracks if not any(track is one for one in loose)]
        rest = without(firm, canvas)
        late = [looks for looks in find(frame_of(rest, last)) if not any(is_same(looks[0], one) for one in loose)]
        # No two things of a clip look the same: what looks like one of the first frame is that one.
        back = {looks[0].look: looks[0] for looks in late if any(looks[0].look == one.look for one in loose)}
        new = pursue([looks for looks in late if looks[0].look not in back], last, rest, zoom)
        if late and loose:
            loose = pursue([track.looks for track in loose], 0, without(new, rest), zoom, back)
        tracks = [*firm, *loose, *new]
    return [vote(track, canvas) for track in tracks if is_present(track, canvas, least)]


def pursue(
    found: list[list[Candidate]], frame: int, canvas: Canvas, zoom: float, back: Mapping[Look, Candidate] | None = None
) -> list[Track]:
    """The tracks of things that were found in a frame, and some of them again in the last."""
    again = [(back or {}).get(looks[0].look) for looks in found]
    fits = follow([Sighting(looks[0], frame, late) for looks, late in zip(found, again, strict=True)], canvas, zoom)
    return [Track(looks, frame, fit) for looks, fit in zip(found, fits, strict=True)]


def without(tracks: list[Track], canvas: Canvas) -> Canvas:
    """A canvas on which what some things cover does not count."""
    for track in tracks:
        canvas = hide(canvas, track.look, track.fit.pose)
    return canvas


def alike(track: Track, canvas: Canvas) -> np.ndarray:
    """How like itself a thing is in each frame, (t,)."""
    return likeness(track.fit.gain, energy_of(track.look, track.fit.pose, canvas))


def is_doubtful(track: Track, canvas: Canvas) -> bool:
    """Whether what is followed, if it is seen in the last frame, is not quite itself there, or half of something."""
    itself, there = alike(track, canvas)[-1], energy_there(track.fit.pose, canvas)[-1]
    return bool(itself > LEFT and (itself < SURE or track.fit.gain[-1] < SURE * there))


def is_same(seen: Candidate, track: Track) -> bool:
    """Whether what is seen in the last frame may be what a thing has become: it is not clearly more like another."""
    pose = track.fit.pose
    near = np.hypot(seen.x - pose.x[-1], seen.y - pose.y[-1]) < pose.radius[-1]
    return bool(near) and (seen.look == track.look or seen.gain * SURE < track.fit.gain[-1])


def frame_of(canvas: Canvas, frame: int) -> Canvas:
    """One frame of a canvas."""
    return Canvas(*(part[frame][None] for part in canvas))


def vote(track: Track, canvas: Canvas) -> tuple[Look, Fit]:
    """Where another look was nearly as good in the first frame, the frames in which most is seen decide together."""
    best, fit = track.looks[0], track.fit
    rivals = [one for one in track.looks if one.gain > CLOSE * best.gain]
    if len(rivals) == 1:
        return best.look, fit
    clearest = fit.gain.argsort()[::-1][:NUM_VOTERS]
    part = Canvas(*(part[clearest] for part in canvas))
    polls = {one.look: poll(one.look, shifted(fit.pose, best, one, clearest), part) for one in rivals}
    chosen = max(rivals, key=lambda one: polls[one.look])
    if chosen is best:
        return best.look, fit
    return chosen.look, settle(chosen.look, shifted(fit.pose, best, chosen, np.arange(len(canvas.rest))), canvas)


def poll(look: Look, pose: Pose, canvas: Canvas) -> float:
    """What a look explains in some frames, as soft as suits it best: a blurred star is no square, its corners are."""
    pose = settle(look, pose, canvas, rounds=4).pose
    window = cut(canvas, pose.x, pose.y, float(pose.radius.max()) + SOFTEST)
    shown, explained = shown_in(look, pose, window), list[float]()
    for _ in range(SOFTEST + 1):
        explained.append(float(gain(*measure(change_of(shown, window), window)).sum()))
        shown = soften(shown)
    return max(explained)


def shifted(pose: Pose, seen: Candidate, other: Candidate, frames: np.ndarray) -> Pose:
    """The pose in some frames of a thing that lies about its middle as another look of it did when it was seen."""
    part = Pose(*(values[frames] for values in pose))
    scale = part.radius / seen.radius
    x, y = part.x + (other.x - seen.x) * scale, part.y + (other.y - seen.y) * scale
    return part._replace(x=x, y=y, radius=other.radius * scale)


def is_present(track: Track, canvas: Canvas, least_likeness: float) -> bool:
    """Whether a thing is there for more than a flash, and more than a speck."""
    clear = alike(track, canvas) > least_likeness
    least = LEAST_SHARE * min(canvas.weight.shape[1:])
    return bool(clear.sum() >= max(1, LEAST_PRESENCE * len(clear)) and track.fit.pose.radius[clear].max() > least)


def distinct(tracks: list[tuple[Look, Fit]], canvas: Canvas) -> list[tuple[Look, Fit]]:
    """Tracks without those that, while they are seen, mostly lie on one of which more is seen at that time."""
    seen = [likeness(fit.gain, energy_of(look, fit.pose, canvas)) > LEAST_QUALITY for look, fit in tracks]
    order = sorted(range(len(tracks)), key=lambda i: -float(tracks[i][1].gain.sum()))
    kept: list[int] = []
    for i in order:
        pose, lies_on = tracks[i][1].pose, False
        for j in kept:
            other = tracks[j][1].pose
            near = np.hypot(pose.x - other.x, pose.y - other.y) < SAME_PLACE * np.maximum(pose.radius, other.radius)
            lies_on |= bool(2 * (seen[i] & seen[j] & near).sum() > seen[i].sum())
        if not lies_on:
            kept.append(i)
    return [tracks[i] for i in sorted(kept)]


def describe(number: int, tracks: list[tuple[Look, Fit]], camera: Camera, canvas: Canvas) -> FoundThing:
    """What one of several things is and does, told from the pixels that no other thing covers."""
    look, fit = tracks[number]
    alone = canvas
    for i, (other, hiding) in enumerate(tracks):
        if i != number and touch(fit.pose, hiding.pose):
            alone = hide(alone, other, hiding.pose)
    if alone is not canvas:
        fit = settle(look, fit.pose, alone, rounds=3, turning=bool(fit.pose.angle.any()))
    height, width = canvas.weight.shape[1:]
    whole = energy_of(look, fit.pose, canvas)
    doing = watch(look, fit, np.clip(fit.energy / whole, 0, 1), camera, alone)
    world = to_world(doing.fit.pose, camera, width, height)
    trust = np.where(doing.fit.gain / whole > PRESENT * (doing.fit.gain / whole).max(), 1.0, 1e-3)
    radius = (
        line_through(world.radius, trust)[0]
        if doing.motion in ("grow", "shrink")
        else weighted_median(world.radius, trust)
    )
    size = "small" if radius < MIDDLING * min(width, height) else "large"
    itself = likeness(doing.fit.gain, whole)
    return FoundThing(look.kind, look.colour, size, doing.motion, doing.sense, doing.fit.pose, itself, doing.path)


def touch(a: Pose, b: Pose) -> bool:
    """Whether two things come as near as their circles in any frame."""
    return bool((np.hypot(a.x - b.x, a.y - b.y) < a.radius + b.radius + 2).any())


def weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    """The value below which half of the weight lies."""
    order = values.argsort()
    share = weights[order].cumsum()
    return float(values[order[np.searchsorted(share, share[-1] / 2)]])
