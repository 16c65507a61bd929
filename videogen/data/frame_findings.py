"""Look at every frame of a video: damage, times, black and frozen stretches, cuts, bars, and a fingerprint.

path, its header's judgement  ->  Judgement
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from videogen.data.findings import Finding, UnreadableFile
from videogen.data.judgement import Judgement, judge_header
from videogen.data.pictures import IMAGE_SUFFIXES, is_animation, read_image_file
from videogen.data.video_decode import decode_frames, open_video
from videogen.data.video_io import VideoInfo

if TYPE_CHECKING:
    import av
    from numpy import ndarray

SMALL_SIZE = (64, 36)  # width and height at which frames are compared with those before them
PRINT_SIZE, NUM_PRINTS = (12, 8), 4  # size of the pictures in a fingerprint, and how many of each file
DARK = 24  # of 255: darker is black, as for FFmpeg's cropdetect
STILL = 2  # of 255: a smaller change of every small pixel is noise of the codec
CUT_SCORE = 0.1  # FFmpeg's scdet calls this a scene change
MIN_BLACK_SECONDS, MIN_FROZEN_SECONDS = 0.5, 1.0
MIN_JUMP_SECONDS = 1.0


class FrameTrack(NamedTuple):
    """What is measured of each frame of a file, (t,) each."""

    seconds: ndarray  # when it appears
    brightest: ndarray  # its brightest small pixel, 0 to 255
    mean_change: ndarray  # mean change since the frame before, 0 to 1
    max_change: ndarray  # the largest change of a small pixel, 0 to 255
    end_seconds: float  # when the last one leaves the screen


def judge_frames(path: Path) -> Judgement:
    """Judge a file by its header and all of its frames."""
    judgement = judge_header(path)
    if judgement.info is None:
        return judgement
    try:
        if is_animation(path):  # FFmpeg reads not all of them
            return judgement
        if path.suffix.lower() in IMAGE_SUFFIXES:
            return judge_picture(read_image_file(path)[0], judgement)
        track, bars, fingerprint = track_frames(path, judgement.info.num_frames)
    except UnreadableFile as error:
        return judgement._replace(info=None).with_findings(error.finding)
    findings = [*describe_times(track.seconds), *describe_stills(track), *describe_cuts(track), *bars.describe()]
    judgement = correct_length(judgement, judgement.info, track)
    facts = {**judgement.facts, "cuts": [round(cut, 3) for cut in find_cuts(track)]}
    return judgement.with_findings(*findings)._replace(fingerprint=fingerprint, facts=facts)


def correct_length(judgement: Judgement, info: VideoInfo, track: FrameTrack) -> Judgement:
    """Replace the length that a header says by that of the frames where they last longer or less long."""
    num_frames, length = len(track.seconds), track.end_seconds - float(track.seconds.min())
    if length <= 0 or abs(length - info.seconds) <= max(2 * length / num_frames, min(0.25, 0.1 * info.seconds)):
        return judgement
    is_said = length > info.seconds or any(finding.kind == "cut_off" for finding in judgement.findings)
    words = f"{length:.1f} of {info.seconds:.1f} s are there; it is read up to where it ends"
    info = info._replace(num_frames=num_frames, seconds=length, fps=num_frames / length)
    return judgement._replace(info=info).with_findings(*([] if is_said else [Finding("cut_off", words)]))


def judge_picture(pixels: ndarray, judgement: Judgement) -> Judgement:
    """Judge a picture (h, w, 3) by its pixels."""
    bars = BarFinder()
    bars.add(pixels.mean(axis=2).astype(np.uint8))
    findings = [Finding("black", "it is black throughout")] if pixels.max() <= DARK else bars.describe()
    fingerprint = shrink_picture(pixels).tobytes() * NUM_PRINTS
    return judgement.with_findings(*findings)._replace(fingerprint=fingerprint)


def track_frames(path: Path, num_frames: int) -> tuple[FrameTrack, BarFinder, bytes]:
    """Decode all frames and measure each; num_frames says where the pictures of the fingerprint lie."""
    rows: list[tuple[float, float, float, float]] = []
    pictures: list[ndarray] = []
    bars = BarFinder()
    shown = {int((i + 0.5) * num_frames / NUM_PRINTS) for i in range(NUM_PRINTS)}
    previous: ndarray | None = None
    with open_video(path) as (container, stream):
        stream.thread_type = "SLICE"  # The files are shared among the cores, not their frames.
        duration = 1 / float(stream.guessed_rate or 25)
        for number, frame in enumerate(decode_frames(path, container, stream)):
            small = shrink(frame, *SMALL_SIZE, "gray").astype(np.int16)
            change = np.abs(small - previous) if previous is not None else np.zeros_like(small)
            seconds = frame.time if frame.time is not None else rows[-1][0]
            rows.append((seconds, small.max(), change.mean() / 255, change.max()))
            previous, duration = small, float((frame.duration or 0) * (frame.time_base or 0)) or duration
            if number in shown:
                pictures.append(shrink(frame, *PRINT_SIZE, "rgb24"))
                bars.add(frame.reformat(format="gray").to_ndarray())
    pictures += pictures[-1:] * (NUM_PRINTS - len(pictures))
    columns = np.array(rows, dtype=np.float64).T
    track = FrameTrack(*columns, end_seconds=float(columns[0].max()) + duration)
    return track, bars, b"".join(picture.tobytes() for picture in pictures)


def shrink(frame: av.VideoFrame, width: int, height: int, pixel_format: str) -> ndarray:
    """Scale a frame down by the mean of its pixels."""
    return frame.reformat(width=width, height=height, format=pixel_format, interpolation="AREA").to_ndarray()


def shrink_picture(pixels: ndarray) -> ndarray:
    """Scale a picture (h, w, 3) to the size of a fingerprint's."""
    from PIL import Image

    return np.asarray(Image.fromarray(pixels).resize(PRINT_SIZE, Image.Resampling.BOX))


def describe_times(seconds: ndarray) -> list[Finding]:
    """Find frames that come long after, or before, the one before; and a variable rate."""
    steps = np.diff(seconds)
    if len(steps) == 0:
        return []
    usual = float(np.median(steps))
    jumps = np.flatnonzero((steps <= 0) | (steps > max(MIN_JUMP_SECONDS, 8 * usual)))
    if len(jumps):
        words = f"{len(jumps)} times, first from {seconds[jumps[0]]:.2f} s to {seconds[jumps[0] + 1]:.2f} s"
        return [Finding("jump", words)]
    if steps.max() - steps.min() > max(0.004, 0.3 * usual):  # a clock of milliseconds rounds times
        words = f"frames last {1000 * steps.min():.0f} to {1000 * steps.max():.0f} ms; it is read by time"
        return [Finding("variable_rate", words)]
    return []


def describe_stills(track: FrameTrack) -> list[Finding]:
    """Find stretches that are black or do not move, and frames that repeat the one before."""
    seconds, num_frames = track.seconds, len(track.seconds)
    if num_frames == 1:
        return [Finding("black", "it is black throughout")] if track.brightest.max() <= DARK else []
    is_black, is_still = track.brightest <= DARK, track.max_change <= STILL
    is_still[0] = is_still[1]  # the first frame has none before it
    if is_black.all():
        return [Finding("black", "it is black throughout")]
    if is_still.all():
        return [Finding("frozen", "its picture never moves")]
    findings = list[Finding]()
    start, end = longest_run(is_black, seconds)
    if end - start >= MIN_BLACK_SECONDS:
        findings.append(Finding("black", f"it is black from {start:.1f} to {end:.1f} s"))
    start, end = longest_run(is_still & ~is_black, seconds)
    if end - start >= MIN_FROZEN_SECONDS:
        findings.append(Finding("frozen", f"its picture stands still from {start:.1f} to {end:.1f} s"))
    elif (share := float((is_still & ~is_black)[1:].mean())) >= 0.15:
        findings.append(Finding("repeats", f"{share:.0%} of its frames repeat the one before"))
    return findings


def longest_run(mask: ndarray, seconds: ndarray) -> tuple[float, float]:
    """Return when the longest stretch of frames in a mask begins and ends, in seconds after the first frame."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    starts, ends = edges[::2], edges[1::2]
    if len(starts) == 0:
        return 0.0, 0.0
    after = np.append(seconds, seconds[-1] + np.median(np.diff(seconds))) - seconds[0]
    longest = int(np.argmax(after[ends] - after[starts]))
    return float(after[starts[longest]]), float(after[ends[longest]])


def find_cuts(track: FrameTrack) -> list[float]:
    """Return the times of hard cuts in seconds after the first frame, as FFmpeg's scdet finds them.

    A cut changes most of a frame, and far more than the step before it did: a fast pan does not.
    """
    change = track.mean_change
    rise = np.abs(np.diff(change, prepend=change[:1]))
    score = np.minimum(change, rise)
    # A flash, or what follows a cut in a fast scene, falls as far as it rose: only rises are cuts.
    places = np.flatnonzero((score >= CUT_SCORE) & (np.diff(change, prepend=0) > 0))
    return [float(track.seconds[i] - track.seconds[0]) for i in places if i > 0]


def describe_cuts(track: FrameTrack) -> list[Finding]:
    """Say how many hard cuts a file has, and where the first are."""
    if not (cuts := find_cuts(track)):
        return []
    places = ", ".join(f"{cut:.2f}" for cut in cuts[:5]) + (" ..." if len(cuts) > 5 else "")
    return [Finding("cuts", f"{len(cuts)}, at {places} s; a clip across one shows two scenes")]


class BarFinder:
    """Find the black bars that all frames of a file share: rows or columns that are dark in each."""

    def __init__(self) -> None:
        self.rows: ndarray | None = None  # the largest share of pixels that are not dark, of each row in any frame
        self.columns: ndarray | None = None

    def add(self, luma: ndarray) -> None:
        """Take another frame (h, w) uint8 into account."""
        is_bright = luma > DARK
        rows, columns = is_bright.mean(axis=1), is_bright.mean(axis=0)
        self.rows = rows if self.rows is None else np.maximum(self.rows, rows)
        self.columns = columns if self.columns is None else np.maximum(self.columns, columns)

    def crop(self) -> tuple[int, int, int, int]:
        """Return how many rows and columns are bars: top, bottom, left, right."""
        if self.rows is None or self.columns is None:  # no frame was added
            return 0, 0, 0, 0
        left, right = count_bars(self.columns)
        width = max(1, len(self.columns) - left - right)
        # Rows are judged between the bars at the sides, which darken every row.
        top, bottom = count_bars(self.rows * len(self.columns) / width)
        height = max(1, len(self.rows) - top - bottom)
        left, right = count_bars(self.columns * len(self.rows) / height)
        return top, bottom, left, right

    def describe(self) -> list[Finding]:
        """Say where bars are."""
        crop = self.crop()
        sides = [f"{side} {size}" for side, size in zip(("top", "bottom", "left", "right"), crop, strict=True) if size]
        if not sides:
            return []
        return [Finding("bars", f"pixels at the {', '.join(sides)}; they are trained as part of the picture")]


def count_bars(bright_shares: ndarray) -> tuple[int, int]:
    """Count the dark rows at both ends: bars of much the same width whose inner edge is straight, or none.

    The edge tells a bar from a dark scene: behind it, within three rows, half of a row is not dark.
    """
    lit = np.flatnonzero(bright_shares > 0.01)
    if len(lit) == 0:
        return 0, 0
    before, after, least = int(lit[0]), len(bright_shares) - 1 - int(lit[-1]), max(2, len(bright_shares) // 50)
    edges = (bright_shares[lit[0] : lit[0] + 3].max(), bright_shares[max(lit[-1] - 2, 0) : lit[-1] + 1].max())
    is_bar = min(before, after) >= least and abs(before - after) <= 0.1 * len(bright_shares) and min(edges) >= 0.5
    return (before, after) if is_bar else (0, 0)
