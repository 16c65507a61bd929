"""Read a clip: which background, how the camera moves, which things there are and what they do.

frames (t, h, w, 3) uint8  ->  Found
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import NamedTuple

import numpy as np

from videogen.toybox.judge.background import estimate_background
from videogen.toybox.judge.camera import FOREGROUND_DISTANCE, Camera, estimate_camera
from videogen.toybox.judge.colour_space import blur, isolated_specks, norm, to_ycc
from videogen.toybox.judge.detection import MIN_LIKENESS, MIN_RADIUS_SHARE, Candidate, detect_things
from videogen.toybox.judge.events import find_events
from videogen.toybox.judge.motion import classify_motion, fit_line, to_world
from videogen.toybox.judge.observations import Found, FoundThing
from videogen.toybox.judge.pose_fitting import Fit, fit_pose, mask_out
from videogen.toybox.judge.templates import Appearance, Canvas, gain, likeness, select_frames
from videogen.toybox.judge.tracking import Sighting, track_things
from videogen.toybox.world.motions import Pose
from videogen.toybox.world.things import SIZES

SIZE_LIMIT = sqrt(SIZES["small"][1] * SIZES["large"][0])
"""The radius, as a share of the shorter side, between small and large."""
PRESENT = 0.5
"""A thing is measured where it explains such a share of what it does in its best frame."""
MIN_PRESENCE = 0.1
"""Share of the frames that a thing must be in: less is a flash."""
GONE, CERTAIN = 0.1, 0.8
"""Shares between which a thing, in the last frame, may have faded out and another be taken for it."""
SAME_PLACE = 0.7
"""Share of the larger radius within which two things are one that was tracked twice: the world's keep apart from it."""
MIN_LIKENESS_AMONG_STARS = 0.5
"""How like itself a thing has to be before a night sky, where stars may look a little like anything."""
STAR_REACH = 3
"""Half the side, in pixels, of a square that a star lies in and nothing of which shows anything at its border."""
RIVAL_GAIN = 0.9
"""Appearances that explain such a share of what the best explains are compared in more frames."""
NUM_VOTING_FRAMES = 5
MAX_BLURS = 2
"""Times that an appearance is blurred at most, to be as soft as a weak autoencoder's."""


def read(frames: np.ndarray) -> Found:
    """Find all that can be seen in a clip (t, h, w, 3) uint8."""
    frames = np.asarray(frames)
    assert frames.shape[3:] == (3,), f"expected (t, h, w, 3), got {frames.shape}"
    num_frames, height, width = frames.shape[:3]
    ycc = to_ycc(frames)
    background = estimate_background(ycc)
    camera = estimate_camera(ycc, background)
    residual = ycc - background.plate
    at_night = background.name == "night sky"
    weight = ~star_mask(residual, camera) if at_night else np.ones(ycc.shape[:3], bool)
    canvas = Canvas(residual, background.plate, weight.astype(np.float32))
    tracks = find_tracks(canvas, camera, MIN_LIKENESS_AMONG_STARS if at_night else MIN_LIKENESS)
    tracks = without_duplicates(tracks, canvas)
    things = tuple(describe_thing(track, tracks, camera, canvas) for track in tracks)
    events = find_events(things, canvas)
    return Found(width, height, num_frames, background.name, background.error, camera, things, events)


def star_mask(residual: np.ndarray, camera: Camera) -> np.ndarray:
    """Mask the stars of a night sky, (t, h, w): specks, which grow as the camera zooms in, and are no things."""
    reaches = np.rint(STAR_REACH * np.maximum(camera.view(len(residual))[2], 1)).astype(int)
    mask = np.zeros(residual.shape[:3], bool)
    for reach in np.unique(reaches):
        mask[reaches == reach] = isolated_specks(norm(residual[reaches == reach]) > FOREGROUND_DISTANCE, reach)
    return mask


class Track(NamedTuple):
    """A thing through a clip: the candidates for it in one frame, the likeliest first, and its poses in all frames."""

    candidates: list[Candidate]
    fit: Fit

    @property
    def appearance(self) -> Appearance:
        """The likeliest appearance."""
        return self.candidates[0].appearance

    def likeness(self, canvas: Canvas) -> np.ndarray:
        """Compute how like itself the thing is in each frame, (t,)."""
        return likeness(self.fit.gain, canvas.full_energy(self.appearance, self.fit.pose))


def find_tracks(canvas: Canvas, camera: Camera, min_likeness: float) -> list[Track]:
    """Track the things of the first frame, and those of the last that are none of them, through all frames."""
    zoom, last = float(camera.view(len(canvas.residual))[2][-1]), len(canvas.residual) - 1
    tracks = track_candidates(detect_things(select_frames(canvas, np.array([0]))), 0, canvas, zoom, {})
    if last:
        # What fades out may slip onto what fades in: that is found in the last frame, if it is left there to be seen.
        doubtful = [track for track in tracks if is_doubtful(track, canvas)]
        firm = [track for track in tracks if not any(track is other for other in doubtful)]
        unexplained = mask_out_all(firm, canvas)
        detected = detect_things(select_frames(unexplained, np.array([last])))
        late = [thing for thing in detected if not any(may_be_same(thing[0], track) for track in doubtful)]
        # No two things of a clip look the same: what looks like one of the first frame is that one.
        known = {track.appearance for track in doubtful}
        again = {thing[0].appearance: thing[0] for thing in late if thing[0].appearance in known}
        unknown = [thing for thing in late if thing[0].appearance not in known]
        new = track_candidates(unknown, last, unexplained, zoom, {})
        if late and doubtful:
            things = [track.candidates for track in doubtful]
            doubtful = track_candidates(things, 0, mask_out_all(new, unexplained), zoom, again)
        tracks = [*firm, *doubtful, *new]
    return [choose_appearance(track, canvas) for track in tracks if is_present(track, canvas, min_likeness)]


def track_candidates(
    things: list[list[Candidate]], frame: int, canvas: Canvas, zoom: float, again: Mapping[Appearance, Candidate]
) -> list[Track]:
    """Track things that were detected in a frame, and some of them again in the last."""
    sightings = [Sighting(thing[0], frame, again.get(thing[0].appearance)) for thing in things]
    return [Track(thing, fit) for thing, fit in zip(things, track_things(sightings, canvas, zoom), strict=True)]


def mask_out_all(tracks: Sequence[Track], canvas: Canvas) -> Canvas:
    """Take the weight from all pixels that some tracks explain."""
    for track in tracks:
        canvas = mask_out(canvas, track.appearance, track.fit.pose)
    return canvas


def is_doubtful(track: Track, canvas: Canvas) -> bool:
    """True if what is tracked is seen in the last frame, but is not quite itself there, or half of something."""
    like_itself, present = track.likeness(canvas)[-1], canvas.residual_energy(track.fit.pose)[-1]
    return bool(like_itself > GONE and (like_itself < CERTAIN or track.fit.gain[-1] < CERTAIN * present))


def may_be_same(candidate: Candidate, track: Track) -> bool:
    """True if a candidate of the last frame lies on a tracked thing and is not clearly more like another."""
    pose = track.fit.pose
    near = np.hypot(candidate.x - pose.x[-1], candidate.y - pose.y[-1]) < pose.radius[-1]
    same_appearance = candidate.appearance == track.appearance
    return bool(near) and (same_appearance or candidate.gain * CERTAIN < track.fit.gain[-1])


def choose_appearance(track: Track, canvas: Canvas) -> Track:
    """Choose among candidates that were nearly as good in one frame by the frames in which most is seen."""
    best, fit = track.candidates[0], track.fit
    rivals = [candidate for candidate in track.candidates if candidate.gain > RIVAL_GAIN * best.gain]
    if len(rivals) == 1:
        return track
    clearest = fit.gain.argsort()[::-1][:NUM_VOTING_FRAMES]
    clear_canvas, clear_pose = select_frames(canvas, clearest), select_frames(fit.pose, clearest)

    def votes(rival: Candidate) -> float:
        return best_blurred_gain(rival.appearance, shift_pose(clear_pose, best, rival), clear_canvas)

    chosen = max(rivals, key=votes)
    if chosen is best:
        return track
    return Track([chosen], fit_pose(chosen.appearance, shift_pose(fit.pose, best, chosen), canvas))


def best_blurred_gain(appearance: Appearance, pose: Pose, canvas: Canvas) -> float:
    """Measure what an appearance explains, blurred as suits it best: a blurred star is no square, its corners are."""
    pose = fit_pose(appearance, pose, canvas, rounds=4).pose
    crop = canvas.crop(pose.x, pose.y, float(pose.radius.max()) + MAX_BLURS)
    layer, gains = crop.render(appearance, pose), list[float]()
    for _ in range(MAX_BLURS + 1):
        gains.append(float(gain(*crop.measure(layer)).sum()))
        layer = blur(layer)
    return max(gains)


def shift_pose(pose: Pose, tracked: Candidate, other: Candidate) -> Pose:
    """Move a tracked candidate's pose to where another lay in the frame in which both were detected."""
    scale = pose.radius / tracked.radius
    x, y = pose.x + (other.x - tracked.x) * scale, pose.y + (other.y - tracked.y) * scale
    return pose._replace(x=x, y=y, radius=other.radius * scale)


def is_present(track: Track, canvas: Canvas, min_likeness: float) -> bool:
    """True if a thing is there for more than a flash, and larger than a speck."""
    clear = track.likeness(canvas) > min_likeness
    min_radius = MIN_RADIUS_SHARE * min(canvas.weight.shape[1:])
    return bool(clear.sum() >= max(1, MIN_PRESENCE * len(clear)) and track.fit.pose.radius[clear].max() > min_radius)


def without_duplicates(tracks: list[Track], canvas: Canvas) -> list[Track]:
    """Drop tracks that lie on one of larger gain in most of the frames in which they are seen."""
    seen = [track.likeness(canvas) > MIN_LIKENESS for track in tracks]

    def lies_on(i: int, j: int) -> bool:
        pose, other = tracks[i].fit.pose, tracks[j].fit.pose
        near = np.hypot(pose.x - other.x, pose.y - other.y) < SAME_PLACE * np.maximum(pose.radius, other.radius)
        return bool(2 * (seen[i] & seen[j] & near).sum() > seen[i].sum())

    distinct: list[int] = []
    for i in sorted(range(len(tracks)), key=lambda i: -float(tracks[i].fit.gain.sum())):
        if not any(lies_on(i, j) for j in distinct):
            distinct.append(i)
    return [tracks[i] for i in sorted(distinct)]


def describe_thing(track: Track, tracks: Sequence[Track], camera: Camera, canvas: Canvas) -> FoundThing:
    """Describe what one of several tracked things is and does, by the pixels that no other thing covers."""
    appearance, fit = track.appearance, track.fit
    touching = [other for other in tracks if other is not track and touch(other.fit.pose, fit.pose)]
    uncovered = mask_out_all(touching, canvas)
    if touching:
        fit = fit_pose(appearance, fit.pose, uncovered, rounds=3, fit_angle=bool(fit.pose.angle.any()))
    height, width = canvas.weight.shape[1:]
    whole = canvas.full_energy(appearance, fit.pose)
    estimate = classify_motion(appearance, fit, np.clip(fit.energy / whole, 0, 1), camera, uncovered)
    world = to_world(estimate.fit.pose, camera, width, height)
    explained = estimate.fit.gain / whole
    trust = np.where(explained > PRESENT * explained.max(), 1.0, 1e-3)
    grows = estimate.motion in ("grow", "shrink")
    radius = fit_line(world.radius, trust)[0] if grows else weighted_median(world.radius, trust)
    size = "small" if radius < SIZE_LIMIT * min(width, height) else "large"
    likenesses = likeness(estimate.fit.gain, whole)
    pose, trajectory = estimate.fit.pose, estimate.trajectory
    return FoundThing(*appearance, size, estimate.motion, estimate.sense, pose, likenesses, trajectory)


def touch(a: Pose, b: Pose) -> bool:
    """True if the circles of two things come within two pixels of each other in any frame."""
    return bool((np.hypot(a.x - b.x, a.y - b.y) < a.radius + b.radius + 2).any())


def weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    """Find the value below which half of the weight lies."""
    order = values.argsort()
    share = weights[order].cumsum()
    return float(values[order[np.searchsorted(share, share[-1] / 2)]])
