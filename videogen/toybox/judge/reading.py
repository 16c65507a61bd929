"""Read a clip: which background, how the camera moves, which things there are and what they do.

frames (t, h, w, 3) uint8  ->  Found
"""

from __future__ import annotations

from math import sqrt

import numpy as np

from videogen.toybox.judge.behind import look_behind
from videogen.toybox.judge.camera import THING, Camera, look_at_camera
from videogen.toybox.judge.events import find_events
from videogen.toybox.judge.find import LEAST_QUALITY, LEAST_SHARE, Candidate, find
from videogen.toybox.judge.follow import Sighting, follow, seen_part
from videogen.toybox.judge.found import Found, FoundThing
from videogen.toybox.judge.motion import line_through, to_world, watch
from videogen.toybox.judge.refine import Fit, hide, settle
from videogen.toybox.judge.sight import length, see, specks
from videogen.toybox.judge.synthesis import Canvas, Look, energy_of, likeness
from videogen.toybox.motions import Pose
from videogen.toybox.things import SIZES

MIDDLING = sqrt(SIZES["small"][1] * SIZES["large"][0])
"""The radius, as a share of the shorter side, between small and large."""
PRESENT = 0.5
"""A thing is measured where it explains such a share of what it does in its best frame."""
LEAST_PRESENCE = 0.1
"""Share of the frames that a thing must be in: less is a flash."""
LEFT, SURE = 0.1, 0.8
"""Shares of its energy between which a thing, in the last frame, may have faded out and another be taken for it."""
SAME_PLACE = 0.7
"""Share of the larger radius within which two things are one that was seen twice: the world's keep apart from it."""
AMONG_STARS = 0.5
"""How like itself a thing has to be before a night sky, where stars may look a little like anything."""
STAR = 3
"""Half the side, in pixels, of a square that a star lies in and nothing of which shows anything at its border."""
CLOSE = 0.9
"""Looks that explain such a share of what the best explains are asked about in more frames."""
NUM_VOTERS = 5


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
    tracks = distinct([track for track in find_tracks(canvas, camera) if is_present(*track, canvas, least)], canvas)
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


def find_tracks(canvas: Canvas, camera: Camera) -> list[tuple[Look, Fit]]:
    """The things of the first frame, and those of the last that are none of them, followed through all frames."""
    zoom, last = float(camera.view(len(canvas.rest))[2][-1]), len(canvas.rest) - 1
    found = find(frame_of(canvas, 0))
    fits, rest = follow([Sighting(candidates[0], 0) for candidates in found], canvas, zoom)
    if last:
        again, late, rest = look_at_last(found, fits, canvas, rest)
        late_fits, rest = follow([Sighting(candidates[0], last) for candidates in late], rest, zoom)
        if late and again:
            once_more, _ = follow([Sighting(found[i][0], 0) for i in again], rest, zoom)
            fits = [once_more[again.index(i)] if i in again else fit for i, fit in enumerate(fits)]
        found, fits = [*found, *late], [*fits, *late_fits]
    return [vote(candidates, fit, canvas) for candidates, fit in zip(found, fits, strict=True)]


def look_at_last(
    found: list[list[Candidate]], fits: list[Fit], canvas: Canvas, rest: Canvas
) -> tuple[list[int], list[list[Candidate]], Canvas]:
    """Which things may have slipped onto others, what there is in the last frame but the rest of them, and a canvas."""
    alike = [likeness(fit.gain, energy_of(one[0].look, fit.pose, canvas)) for one, fit in zip(found, fits, strict=True)]
    doubtful = [i for i in range(len(fits)) if LEFT < alike[i][-1] < SURE]
    if not doubtful:
        return [], find(frame_of(rest, -1)), rest
    rest = canvas
    for i, fit in enumerate(fits):
        rest = rest if i in doubtful else hide(rest, found[i][0].look, seen_part(found[i][0].look, fit, canvas))
    late = find(frame_of(rest, -1))
    # What looks like something else there must do so clearly, or a blurred thing would be two.
    late = [one for one in late if not any(is_same(one[0], found[i][0], fits[i]) for i in doubtful)]
    return doubtful, late, rest


def is_same(seen: Candidate, other: Candidate, fit: Fit) -> bool:
    """Whether what is seen in the last frame may be what another thing has become."""
    near = np.hypot(seen.x - fit.pose.x[-1], seen.y - fit.pose.y[-1]) < fit.pose.radius[-1]
    return bool(near) and (seen.look == other.look or seen.gain * SURE < fit.gain[-1])


def frame_of(canvas: Canvas, frame: int) -> Canvas:
    """One frame of a canvas."""
    return Canvas(*(part[frame][None] for part in canvas))


def vote(candidates: list[Candidate], fit: Fit, canvas: Canvas) -> tuple[Look, Fit]:
    """Where another look was nearly as good in the first frame, the frames in which most is seen decide together."""
    best = candidates[0]
    rivals = [one for one in candidates if one.gain > CLOSE * best.gain]
    if len(rivals) == 1:
        return best.look, fit
    clearest = fit.gain.argsort()[::-1][:NUM_VOTERS]
    part = Canvas(*(part[clearest] for part in canvas))
    polls = {
        one.look: float(settle(one.look, shifted(fit.pose, best, one, clearest), part, rounds=4).gain.sum())
        for one in rivals
    }
    chosen = max(rivals, key=lambda one: polls[one.look])
    if chosen is best:
        return best.look, fit
    return chosen.look, settle(chosen.look, shifted(fit.pose, best, chosen, np.arange(len(canvas.rest))), canvas)


def shifted(pose: Pose, seen: Candidate, other: Candidate, frames: np.ndarray) -> Pose:
    """The pose in some frames of a thing that lies about its middle as another look of it did when it was seen."""
    part = Pose(*(values[frames] for values in pose))
    scale = part.radius / seen.radius
    x, y = part.x + (other.x - seen.x) * scale, part.y + (other.y - seen.y) * scale
    return part._replace(x=x, y=y, radius=other.radius * scale)


def is_present(look: Look, fit: Fit, canvas: Canvas, least_likeness: float) -> bool:
    """Whether a thing is there for more than a flash, and more than a speck."""
    clear = likeness(fit.gain, energy_of(look, fit.pose, canvas)) > least_likeness
    least = LEAST_SHARE * min(canvas.weight.shape[1:])
    return bool(clear.sum() >= max(1, LEAST_PRESENCE * len(clear)) and fit.pose.radius[clear].max() > least)


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
            lies_on |= bool((seen[j] & near)[seen[i]].mean() > 0.5)
        if not lies_on:
            kept.append(i)
    return [tracks[i] for i in sorted(kept)]


def describe(number: int, tracks: list[tuple[Look, Fit]], camera: Camera, canvas: Canvas) -> FoundThing:
    """What one of several things is and does, told from the pixels that no other thing covers."""
    look, fit = tracks[number]
    alone = canvas
    for i, (other, hiding) in enumerate(tracks):
        if i != number and touch(fit.pose, hiding.pose):
            alone = hide(alone, other, seen_part(other, hiding, canvas))
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
    alike = likeness(doing.fit.gain, whole)
    return FoundThing(look.kind, look.colour, size, doing.motion, doing.sense, doing.fit.pose, alike, doing.path)


def touch(a: Pose, b: Pose) -> bool:
    """Whether two things come as near as their circles in any frame."""
    return bool((np.hypot(a.x - b.x, a.y - b.y) < a.radius + b.radius + 2).any())


def weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    """The value below which half of the weight lies."""
    order = values.argsort()
    share = weights[order].cumsum()
    return float(values[order[np.searchsorted(share, share[-1] / 2)]])
