"""Write a mended video: upright, in square pixels, without bars, at one rate, in SDR, a file for each scene.

file, Mending  ->  H.264 MP4s
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from videogen.data.frame_findings import MIN_JUMP_SECONDS
from videogen.data.tone_mapping import tone_map
from videogen.data.video_decode import decode_frames, display_matrix, open_video, turn
from videogen.data.video_encode import encode_video

if TYPE_CHECKING:
    import av
    from numpy import ndarray

CRF = 12


class Mending(NamedTuple):
    """What is done to a video."""

    cuts: Sequence[float] = ()  # seconds after the first frame at which another file begins
    crop: tuple[int, int, int, int] = (0, 0, 0, 0)  # rows and columns at the top, bottom, left and right
    transfer: str = ""  # of HDR: PQ or HLG
    deinterlace: bool = False
    retime: bool = False  # to the usual distance between frames


class TimedPicture(NamedTuple):
    """A picture (h, w, 3) uint8 and when it appears, in seconds after the first."""

    seconds: float
    pixels: ndarray


def write_scenes(source: Path, mending: Mending, names: Iterator[Path], fps: float) -> list[Path]:
    """Write each scene of a video to the next of the names; a change of size begins another as well."""
    written = list[Path]()
    for scene in split_scenes(mended_pictures(source, mending), mending.cuts):
        path = next(names)
        path.parent.mkdir(parents=True, exist_ok=True)
        encode(path, scene, fps, retime=mending.retime)
        written.append(path)
    return written


def split_scenes(pictures: Iterator[TimedPicture], cuts: Sequence[float]) -> Iterator[Iterator[TimedPicture]]:
    """Yield the pictures of each scene, which must be used up before the next is asked for."""
    ahead = next(pictures, None)
    left = [*cuts]

    def scene() -> Iterator[TimedPicture]:
        nonlocal ahead
        while ahead is not None:
            current = ahead
            yield current
            ahead = next(pictures, None)
            if ahead is None or ahead.pixels.shape != current.pixels.shape:
                return
            if left and ahead.seconds >= left[0] - 1e-3:
                return

    while ahead is not None:
        while left and ahead.seconds >= left[0] - 1e-3:
            left.pop(0)
        yield scene()


def mended_pictures(source: Path, mending: Mending) -> Iterator[TimedPicture]:
    """Decode the pictures of a video and mend each but its time."""
    first_seconds = None
    with open_video(source) as (container, stream):
        stream.thread_type = "SLICE"
        ratio = float(stream.sample_aspect_ratio or 1)
        frames = decode_frames(source, container, stream, any_size=True)
        for frame in converted(frames, deep=bool(mending.transfer), deinterlace=mending.deinterlace):
            first_seconds = frame.time if first_seconds is None else first_seconds
            pixels = frame.to_ndarray()
            if mending.transfer:
                pixels = tone_map(pixels.astype(np.float32) / 65535, mending.transfer)
            top, bottom, left, right = mending.crop
            pixels = pixels[top : pixels.shape[0] - bottom, left : pixels.shape[1] - right]
            if ratio != 1:
                pixels = widen(pixels, ratio)
            pixels = turn(pixels[None], display_matrix(frame))[0]
            height, width = (side - side % 2 for side in pixels.shape[:2])  # H.264 halves the colours
            yield TimedPicture(
                (frame.time or 0.0) - (first_seconds or 0.0), np.ascontiguousarray(pixels[:height, :width])
            )


def converted(frames: Iterator[av.VideoFrame], *, deep: bool, deinterlace: bool) -> Iterator[av.VideoFrame]:
    """Convert frames to RGB of 8 or 16 bits by FFmpeg's filters, which are set up anew where the size changes."""
    import av.error
    from av.filter import Graph

    graph, size = None, (0, 0)

    def drained() -> Iterator[av.VideoFrame]:
        while graph is not None:
            try:
                yield cast("av.VideoFrame", graph.pull())
            except (av.error.BlockingIOError, av.error.EOFError):
                return

    for frame in frames:
        if graph is None or size != (frame.width, frame.height):
            if graph is not None:
                graph.push(None)
                yield from drained()
            graph, size = Graph(), (frame.width, frame.height)
            source = graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
            )
            filters = [graph.add("bwdif", "mode=send_frame")] if deinterlace else []
            filters += [graph.add("format", "rgb48le" if deep else "rgb24"), graph.add("buffersink")]
            graph.link_nodes(source, *filters).configure()
        graph.push(frame)
        yield from drained()
    if graph is not None:
        graph.push(None)
        yield from drained()


def widen(pixels: ndarray, ratio: float) -> ndarray:
    """Scale the width of a picture (h, w, 3)."""
    from PIL import Image

    height, width = pixels.shape[:2]
    return np.asarray(Image.fromarray(pixels).resize((round(width * ratio), height), Image.Resampling.BICUBIC))


def encode(path: Path, pictures: Iterator[TimedPicture], fps: float, *, retime: bool) -> None:
    """Write pictures as an H.264 MP4 at a constant rate: each as it comes, or by its time where it is to be retimed."""
    frames = by_time(pictures, fps) if retime else (picture.pixels for picture in pictures)
    encode_video(path, ".mp4", frames, fps=fps, crf=CRF)


def by_time(pictures: Iterator[TimedPicture], fps: float) -> Iterator[ndarray]:
    """Yield the picture on screen at every 1/fps; a time that jumps is taken for one step."""
    clock, previous, num_shown = 0.0, None, 0
    for picture in pictures:
        if previous is not None:
            step = picture.seconds - previous.seconds
            clock += step if 0 < step <= max(MIN_JUMP_SECONDS, 8 / fps) else 1 / fps
            while num_shown / fps < clock - 1e-4:
                yield previous.pixels
                num_shown += 1
        previous = picture
    if previous is not None:
        yield previous.pixels
