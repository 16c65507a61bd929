"""Decode the frames of a file by time, as they are displayed, with decord or PyAV.

path, FrameRequest  ->  chunks of frames (t, h, w, 3) uint8
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar, cast

from einops import rearrange

from videogen.data.file_format import explain_failure
from videogen.data.files import error_reason
from videogen.data.findings import UnreadableFile
from videogen.data.pictures import IMAGE_SUFFIXES, read_animation, read_image_file

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from numpy import ndarray

Frame = TypeVar("Frame")
CHUNK_FRAMES = 32  # decoded before they are scaled, so that a long clip never lies in memory at its full size
HDR_TRANSFERS = {16: "PQ", 18: "HLG"}  # ITU-T H.273: SMPTE ST 2084 and ARIB STD-B67
DECORD_CODECS = ("h264", "vp8", "vp9", "av1")  # In HEVC and MPEG-2, decord's seeking returns the wrong frames.


class FrameRequest(NamedTuple):
    """The frames on screen at start, start + step, ...; a step of 0 asks for every frame from start on."""

    start_seconds: float
    step_seconds: float
    num_frames: int | None


class VideoHeader(NamedTuple):
    """What only a decoded frame tells; width and height are as displayed: rotated, and with square pixels."""

    width: int
    height: int
    is_mirrored: bool = False
    has_square_pixels: bool = True
    tick_seconds: float = 0.0  # one step of the file's clock
    first_seconds: float = 0.0  # the time of the first frame
    coded_size: tuple[int, int] = (0, 0)  # width and height as decoded
    transfer: str = ""  # of HDR: PQ or HLG


def inspect_header(path: Path) -> VideoHeader:
    """Decode one frame for its size and time, once for each state of the file."""
    if not path.exists():
        raise UnreadableFile(path, "missing", "it does not exist; give a file")
    if not path.is_file():
        words = "is a folder" if path.is_dir() else "is no regular file"  # Opening a pipe would wait for ever.
        raise UnreadableFile(path, "no_file", f"it {words}; give a file")
    return cached_header(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1 << 16)
def cached_header(path: Path, _mtime_ns: int) -> VideoHeader:
    """Decode one frame for inspect_header; a changed modification time decodes it again."""
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return VideoHeader(*read_image_file(path).shape[2:0:-1])
    with open_video(path) as (container, stream):
        frame = next(decode_frames(path, container, stream), None)
        if frame is None or frame.time is None:
            lack = "times" if frame else "frames"
            raise UnreadableFile(path, f"no_{lack}", f"it has no {lack}; ffmpeg can rewrite it")
        a, b, c, d = display_matrix(frame)
        ratio = float(stream.sample_aspect_ratio or 1)  # of a pixel's sides: DVDs and camcorders have oblong ones
        size = (round(frame.width * ratio), frame.height) if a else (frame.height, round(frame.width * ratio))
        is_mirrored, coded_size = a * d < b * c, (frame.width, frame.height)
        tick_seconds, transfer = float(stream.time_base or 0), hdr_transfer(frame)
        return VideoHeader(*size, is_mirrored, ratio == 1, tick_seconds, frame.time, coded_size, transfer)


@lru_cache(maxsize=1 << 16)
def decord_reads_right(path: Path, _mtime_ns: int) -> bool:
    """True if decord shows the right frames, judged from all packets of the file, which decord reads too.

    Its seeking counts from a keyframe on, in the order of the file: frames that follow a keyframe and are shown before
    it, as in an open group of pictures, are lost on the way; and in a transport stream it seeks to a later keyframe.
    Frames of another size, which begin with a keyframe, it would stretch: one keyframe a second is looked at.
    """
    with open_video(path) as (container, stream):
        if stream.codec_context.codec.canonical_name not in DECORD_CODECS or container.format.name == "mpegts":
            return False
        keyframe_time = decoded_time = -math.inf
        second, sizes = 1 / float(stream.time_base or 1), set[tuple[int, int]]()
        stream.codec_context.skip_frame = "NONKEY"
        for packet in container.demux(stream):
            if packet.is_corrupt:
                return False
            if packet.pts is None or (packet.is_keyframe and packet.pts >= decoded_time + second):  # None ends the file
                decoded_time = packet.pts or decoded_time
                sizes |= {(frame.width, frame.height) for frame in packet.decode()}
            if packet.pts is not None:
                keyframe_time = packet.pts if packet.is_keyframe else keyframe_time
                if packet.pts < keyframe_time:
                    return False
    return len(sizes) <= 1


@contextmanager
def open_video(path: Path) -> Iterator[tuple[InputContainer, av.VideoStream]]:
    """Open a file with PyAV and yield it with its first video stream; errors of FFmpeg inside name the file."""
    import av.error

    try:
        # FFmpeg takes a colon in a relative path for a protocol; titles may be in Latin-1.
        with av.open(path.absolute(), metadata_errors="replace") as container:
            if not container.streams.video:
                raise UnreadableFile(path, "no_picture", "there is no picture in it")
            yield container, container.streams.video[0]
    except av.error.FFmpegError as error:
        raise explain_failure(path, error) from error


def decode_frames(
    path: Path, container: InputContainer, stream: av.VideoStream, *, any_size: bool = False
) -> Iterator[av.VideoFrame]:
    """Decode a file from where it stands; one that is cut off ends before the picture that is not whole.

    Unless frames may have any size, a ValueError where one has another than the first.
    """
    file_size, first_size = path.stat().st_size, None
    for packet in container.demux(stream):
        if packet.is_corrupt and (packet.pos or 0) + packet.size >= file_size:
            break
        for frame in packet.decode():
            first_size = first_size or (frame.width, frame.height)
            if not any_size:
                check_size_stays(path, first_size, frame)
            yield cast("av.VideoFrame", frame)
    else:
        return
    for frame in stream.decode(None):
        frame.time_base = stream.time_base or frame.time_base  # PyAV sets it with a packet alone.
        yield cast("av.VideoFrame", frame)


def check_size_stays(path: Path, first_size: tuple[int, int], frame: av.VideoFrame) -> None:
    """Raise an UnreadableFile where a frame's size differs from that of the first: scaling would stretch it."""
    if (size := (frame.width, frame.height)) != first_size:
        (w, h), (new_w, new_h) = first_size, size
        words = f"its frames change size, from {w}x{h} to {new_w}x{new_h}; split it there"
        raise UnreadableFile(path, "size_change", words)


def decode_decord(path: Path, request: FrameRequest) -> Iterator[ndarray]:
    """Yield chunks of frames (t, h, w, 3) with decord; raises an OSError where it would give wrong frames or none."""
    import numpy as np

    try:
        import decord
    except (ImportError, OSError, RuntimeError) as error:  # it is not installed, or a library that it loads is not
        raise OSError(f"decord cannot be imported ({error_reason(error)})") from error
    decord.logging.set_level(decord.logging.QUIET)
    if not decord_reads_right(path, path.stat().st_mtime_ns):
        raise OSError(f"decord would return the wrong frames of {path}")
    try:
        video = decord.VideoReader(str(path.absolute()), num_threads=1)
        times = video.get_frame_timestamp(range(len(video))).astype(np.float64)
        starts, end = times[:, 0], times[-1, 1]
        # AVI has no times; frames that an edit list hides have negative ones, and decord counts but does not give them.
        # A picture alone in a .mkv lasts no time.
        disordered = not np.isfinite(times).all() or starts[0] < 0 or (np.diff([*starts, end]) <= 0).any()
        if inspect_header(path).is_mirrored or disordered:
            raise OSError(f"decord would show {path} mirrored or at other times")
        ends = (np.append(starts[1:], end) - starts[0]).tolist()
        indices = select_frames(zip(ends, range(len(ends)), strict=True), request)
        while chunk := list(islice(indices, CHUNK_FRAMES)):
            yield video.get_batch(chunk).asnumpy()
    except (decord.DECORDError, RuntimeError, AssertionError, UnicodeEncodeError) as error:  # e.g. 48 pixels wide
        raise OSError(f"decord cannot read {path} ({error_reason(error)})") from error


def decode_pyav(
    path: Path, request: FrameRequest, convert: Callable[[Sequence[av.VideoFrame]], ndarray] | None = None
) -> Iterator[ndarray]:
    """Yield chunks of frames (t, h, w, 3) with PyAV itself, as imageio's plugin gives neither times nor rotation."""
    header = inspect_header(path)
    first_seconds = header.first_seconds
    with open_video(path) as (container, stream):
        # With FFmpeg's frame threads, Theora decodes to other pixels at every reading.
        stream.thread_type = "SLICE" if stream.codec_context.codec.canonical_name == "theora" else "AUTO"
        frames, seek_seconds = decode_frames(path, container, stream), first_seconds + request.start_seconds
        if request.start_seconds > 0.1:  # Decoding from the beginning is as fast below.
            container.seek(int(seek_seconds / float(stream.time_base or 1)), stream=stream)
            frame = next(frames, None)
            if frame is None or (frame.time or 0) > seek_seconds:  # A transport stream can land behind the time.
                container.seek(0)
                frames = decode_frames(path, container, stream)
            else:
                frames = chain([frame], frames)
        timed_frames = with_end_times(frames, first_seconds, 1 / float(stream.guessed_rate or 25))
        selected = select_frames(timed_frames, request)
        while chunk := list(islice(selected, CHUNK_FRAMES)):
            check_size_stays(path, header.coded_size, chunk[0])
            yield (convert or to_rgb)(chunk)


def decode_hdr(path: Path, request: FrameRequest) -> Iterator[ndarray]:
    """Yield chunks of frames (t, h, w, 3) of an HDR file, mapped to those of an SDR screen."""
    return decode_pyav(path, request, to_sdr)


def decode_animation(path: Path, request: FrameRequest) -> Iterator[ndarray]:
    """Yield chunks of frames (t, h, w, 3) of an animated picture with Pillow, as FFmpeg reads no animated WebP."""
    import numpy as np

    selected = select_frames(read_animation(path), request)
    while chunk := list(islice(selected, CHUNK_FRAMES)):
        yield np.stack(chunk)


READERS: dict[str, Callable[[Path, FrameRequest], Iterator[ndarray]]] = {"decord": decode_decord, "pyav": decode_pyav}


def select_frames(frames: Iterable[tuple[float, Frame]], request: FrameRequest) -> Iterator[Frame]:
    """Yield the requested ones of (time at which it leaves the screen, frame) in order; a slow file repeats frames."""
    num_selected = 0
    for end_seconds, frame in frames:
        while end_seconds > request.start_seconds + num_selected * request.step_seconds:
            yield frame
            num_selected += 1
            if num_selected == request.num_frames:
                return
            if not request.step_seconds:
                break


def with_end_times(
    frames: Iterable[av.VideoFrame], first_seconds: float, frame_seconds: float
) -> Iterator[tuple[float, av.VideoFrame]]:
    """Yield (seconds until it leaves the screen, frame); a last frame of unknown duration stays for frame_seconds."""
    previous = None
    for frame in frames:
        if previous is not None:
            yield (frame.time or 0) - first_seconds, previous
        previous = frame
    if previous is not None:
        duration = float((previous.duration or 0) * (previous.time_base or 0)) or frame_seconds
        yield (previous.time or 0) - first_seconds + duration, previous


def hdr_transfer(frame: av.VideoFrame) -> str:
    """Return by which curve a frame codes the brightness of HDR, PQ or HLG; empty for any other."""
    return HDR_TRANSFERS.get(int(frame.color_trc or 0), "")


def to_sdr(frames: Sequence[av.VideoFrame]) -> ndarray:
    """Convert decoded HDR frames to pixels (t, h, w, 3), one by one since those of 16 bits take much memory."""
    import numpy as np

    from videogen.data.tone_mapping import tone_map

    transfer, signals = hdr_transfer(frames[0]), (to_rgb([frame], deep=True) for frame in frames)
    return np.concatenate([tone_map(signal.astype("float32") / 65535, transfer) for signal in signals])


def to_rgb(frames: Sequence[av.VideoFrame], *, deep: bool = False) -> ndarray:
    """Convert decoded frames to pixels (t, h, w, 3) of 8 bits, or 16, rotated and mirrored as their file asks."""
    import numpy as np
    from av.filter import Graph

    first = frames[0]
    graph = Graph()  # FFmpeg's own conversion, which is decord's too: PyAV's to_ndarray is far off for 10 bits
    source = graph.add_buffer(width=first.width, height=first.height, format=first.format, time_base=first.time_base)
    is_transparent = not deep and any(component.is_alpha for component in first.format.components)
    wanted = graph.add("format", "rgba" if is_transparent else "rgb48le" if deep else "rgb24")
    graph.link_nodes(source, wanted, graph.add("buffersink")).configure()
    for frame in frames:
        graph.push(frame)
    pixels = np.stack([graph.pull().to_ndarray() for _ in frames])
    if is_transparent:  # on white, as pictures are
        alpha = pixels[..., 3:].astype("float32") / 255
        pixels = np.rint(pixels[..., :3] * alpha + 255 * (1 - alpha)).astype("uint8")
    return turn(pixels, display_matrix(first))


def turn(pixels: ndarray, matrix: tuple[int, int, int, int]) -> ndarray:
    """Rotate and mirror pixels (t, h, w, 3) by the signs of a display matrix."""
    import numpy as np

    a, b, c, d = matrix
    if a == 0:
        pixels = rearrange(pixels, "t h w rgb -> t w h rgb")
    return np.ascontiguousarray(pixels[:, :: -1 if b + d < 0 else 1, :: -1 if a + c < 0 else 1])


def display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """Return the signs (a, b, c, d) of the 2x2 display matrix: (x, y) is shown at (a·x + c·y, b·x + d·y)."""
    side_data = frame.side_data.get("DISPLAYMATRIX")
    if side_data is None:
        return 1, 0, 0, 1
    a, b, _, c, d, *_ = (round(v / 65536) for v in struct.unpack("=9i", bytes(side_data)))  # 16.16 fixed point
    return a, b, c, d
