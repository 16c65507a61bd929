"""What lies in a file, decoded: its frames by time, as they are displayed, by decord or PyAV.

path, (first moment, step, most frames)  ->  chunks of frames (t, h, w, 3) uint8
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from einops import rearrange, repeat

from videogen.data.files import reason

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from numpy import ndarray

T = TypeVar("T")
Wanted = tuple[float, float, int | None]  # first moment and step in seconds (0: every frame), most frames
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
CHUNK = 32  # frames decoded before they are scaled, so that a long clip never lies in memory at its full size
SEEKABLE = ("h264", "vp8", "vp9", "av1")
"""Codecs that decord finds its way in; in HEVC and MPEG-2 it takes frames for others."""


class Look(NamedTuple):
    """What only a decoded frame tells; tick is one step of the file's clock and origin its first time, in seconds.

    Width and height are as it is displayed: turned, and with square pixels.
    """

    width: int
    height: int
    mirrored: bool = False
    square: bool = True
    tick: float = 0.0
    origin: float = 0.0


def look(path: Path) -> Look:
    """Decode one frame, once for each state of the file."""
    if not path.is_file():
        raise ValueError(f"cannot read {path}: it {'is a folder' if path.is_dir() else 'does not exist'}; give a file")
    return look_into(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1 << 16)
def look_into(path: Path, _mtime_ns: int) -> Look:
    """What look remembers."""
    if path.suffix.lower() in PICTURES:
        return Look(*read_picture(path).shape[2:0:-1])
    with opened(path) as (container, stream):
        frame = next(container.decode(stream), None)
        if frame is None or frame.time is None:
            raise ValueError(f"cannot read {path}: it has no {'times' if frame else 'frames'}; ffmpeg can rewrite it")
        a, b, c, d = display_matrix(frame)
        ratio = float(stream.sample_aspect_ratio or 1)  # of a pixel's sides: DVDs and camcorders have oblong ones
        size = (round(frame.width * ratio), frame.height) if a else (frame.height, round(frame.width * ratio))
        turned = {"mirrored": a * d < b * c, "square": ratio == 1}
        return Look(*size, **turned, tick=float(stream.time_base or 0), origin=frame.time)


@lru_cache(maxsize=1 << 16)
def decord_seeks(path: Path, _mtime_ns: int) -> bool:
    """Whether decord finds the frames of a file, by a look at all of its packets, as decord itself has.

    It counts from a keyframe on, in the order of the file: frames that stand behind one and are shown before it, as
    in an open group of pictures, are lost on the way; and a transport stream brings it to a later one.
    """
    with opened(path) as (container, stream):
        if stream.codec_context.codec.canonical_name not in SEEKABLE or container.format.name == "mpegts":
            return False
        shown = -math.inf
        for packet in container.demux(stream):
            if packet.pts is not None:
                shown = packet.pts if packet.is_keyframe else shown
                if packet.pts < shown:
                    return False
    return True


@contextmanager
def opened(path: Path) -> Iterator[tuple[InputContainer, av.VideoStream]]:
    """A file opened by PyAV, and its first video stream; what goes wrong with it names the file."""
    import av.error

    try:
        with av.open(path, metadata_errors="replace") as container:  # titles in Latin-1 are none of our business
            if not container.streams.video:
                raise ValueError(f"cannot read {path}: there is no picture in it")
            yield container, container.streams.video[0]
    except av.error.FFmpegError as error:
        raise ValueError(f"cannot read {path}: {reason(error)}") from error


def decode_decord(path: Path, wanted: Wanted) -> Iterator[ndarray]:
    """Chunks of frames (t, h, w, 3) by decord."""
    import decord
    import numpy as np

    decord.logging.set_level(decord.logging.QUIET)
    if not decord_seeks(path, path.stat().st_mtime_ns):
        raise OSError(f"decord would take frames of {path} for others")
    try:
        video = decord.VideoReader(str(path), num_threads=1)
        times = video.get_frame_timestamp(range(len(video))).astype(np.float64)
        starts, end = times[:, 0], times[-1, 1]
        # AVI has no times; frames that an edit list hides have negative ones, and decord counts but does not give them.
        if look(path).mirrored or not np.isfinite(times).all() or starts[0] < 0 or (np.diff(starts) <= 0).any():
            raise OSError(f"decord would show {path} mirrored or at other times")
        untils = (np.append(starts[1:], end) - starts[0]).tolist()
        indices = pick(zip(untils, range(len(untils)), strict=True), wanted)
        while chunk := list(islice(indices, CHUNK)):
            yield video.get_batch(chunk).asnumpy()
    except (decord.DECORDError, RuntimeError, AssertionError) as error:  # e.g. 48 pixels wide
        raise OSError(f"decord cannot read {path} ({reason(error)})") from error


def decode_pyav(path: Path, wanted: Wanted) -> Iterator[ndarray]:
    """Chunks of frames (t, h, w, 3) by PyAV itself, for imageio's plugin gives neither times nor rotation."""
    origin = look(path).origin
    with opened(path) as (container, stream):
        # Of Theora, FFmpeg's threads a frame make other pixels at every reading.
        stream.thread_type = "SLICE" if stream.codec_context.codec.canonical_name == "theora" else "AUTO"
        frames, moment = container.decode(stream), origin + wanted[0]
        if wanted[0] > 0.1:  # else the beginning is as near
            container.seek(int(moment / float(stream.time_base or 1)), stream=stream)
            head = next(frames, None)
            if late := head is None or (head.time or 0) > moment:  # TS can land behind it
                container.seek(0)
            frames = container.decode(stream) if head is None or late else chain([head], frames)
        shown = pick(timed(frames, origin, 1 / float(stream.guessed_rate or 25)), wanted)
        while chunk := list(islice(shown, CHUNK)):
            yield to_rgb(chunk)


READERS: dict[str, Callable[[Path, Wanted], Iterator[ndarray]]] = {"decord": decode_decord, "pyav": decode_pyav}


def pick(shown: Iterable[tuple[float, T]], wanted: Wanted) -> Iterator[T]:
    """From frames in order, each with the time at which it leaves the screen, those on screen when wanted."""
    (start, step, num_frames), num_picked = wanted, 0
    for until, frame in shown:
        while until > start + num_picked * step:
            yield frame
            num_picked += 1
            if num_picked == num_frames:
                return
            if not step:
                break


def timed(frames: Iterable[av.VideoFrame], origin: float, gap: float) -> Iterator[tuple[float, av.VideoFrame]]:
    """Each decoded frame with the time in seconds at which it leaves the screen; the last, after a gap."""
    last = None
    for frame in frames:
        if last is not None:
            yield (frame.time or 0) - origin, last
        last = frame
    if last is not None:
        yield (last.time or 0) - origin + (float((last.duration or 0) * (last.time_base or 0)) or gap), last


def to_rgb(frames: Sequence[av.VideoFrame]) -> ndarray:
    """Decoded frames as pixels (t, h, w, 3), turned and mirrored as their file asks."""
    import numpy as np
    from av.filter import Graph

    like = frames[0]
    graph = Graph()  # FFmpeg's own conversion, which is decord's too: PyAV's to_ndarray is far off for 10 bits
    source = graph.add_buffer(width=like.width, height=like.height, format=like.format, time_base=like.time_base)
    graph.link_nodes(source, graph.add("format", "rgb24"), graph.add("buffersink")).configure()
    for frame in frames:
        graph.push(frame)
    pixels = np.stack([graph.pull().to_ndarray() for _ in frames])
    a, b, c, d = display_matrix(like)
    if a == 0:
        pixels = rearrange(pixels, "t h w rgb -> t w h rgb")
    return np.ascontiguousarray(pixels[:, :: -1 if b + d < 0 else 1, :: -1 if a + c < 0 else 1])


def display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """Signs of the 2x2 part of the display matrix: (x, y) is shown at (a·x + c·y, b·x + d·y)."""
    side_data = frame.side_data.get("DISPLAYMATRIX")
    if side_data is None:
        return 1, 0, 0, 1
    a, b, _, c, d, *_ = (round(v / 65536) for v in struct.unpack("=9i", bytes(side_data)))  # 16.16 fixed point
    return a, b, c, d


def read_picture(path: Path) -> ndarray:
    """A picture as a clip of one frame (1, h, w, 3), turned as its EXIF data asks."""
    import imageio.v3 as iio
    from PIL import Image

    try:
        with Image.open(path) as picture:  # a JPEG's other pictures are no frames
            moves = path.suffix.lower() in (".png", ".webp") and getattr(picture, "n_frames", 1) > 1
        if moves:
            raise ValueError("it is an animation; ffmpeg can make an .mp4 of it")
        if iio.improps(path, index=0, plugin="pillow").dtype == "uint16":  # Pillow would clip it to white
            gray = iio.imread(path, index=0, plugin="pillow", rotate=True)
            return repeat((gray // 257).astype("uint8"), "h w -> 1 h w rgb", rgb=3)
        pixels = iio.imread(path, index=0, plugin="pillow", mode="RGB", rotate=True)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"cannot read {path}: Pillow finds no whole picture in it ({reason(error)})") from error
    return rearrange(pixels, "h w rgb -> 1 h w rgb")
