"""Encode frames in the formats that clips are written in, by FFmpeg's libraries (PyAV) in this process.

frames (h, w, 3) uint8, suffix  ->  .mp4, .mov, .mkv or .webm in BT.709 that the file names, or .gif
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

from videogen.data.files import error_reason

if TYPE_CHECKING:
    import av
    from av.filter import Graph
    from av.filter.context import FilterContext
    from numpy import ndarray

BT709, LIMITED_RANGE = 1, 1  # ITU-T H.273; AVCOL_RANGE_MPEG
Options = dict[str, str]


class SupportsWrite(Protocol):
    """A pipe, or a file that is open for writing bytes."""

    def write(self, data: bytes, /) -> int:
        """Write bytes, and return their number."""
        ...


class Encoder(NamedTuple):
    """How FFmpeg writes a format, and how where the file shall be playable while it grows."""

    codec: str
    pixel_format: str
    container: str
    options: Options
    muxing: Options
    growing_options: Options
    growing_muxing: Options


IS_X86 = platform.machine().lower() in ("x86_64", "amd64")
# x264's code for AVX-512 reads memory that was never written, so its bytes depend on what the process did before. Its
# code for AVX2 gives the bytes of plain C.
SAME_BYTES: Options = {"x264-params": "asm=avx2"} if IS_X86 else {}
# They depend on the number of threads, too. An encoder that looks ahead holds frames back, which a growing file cannot.
H264: Options = {"threads": "4", **SAME_BYTES}
H264_AT_ONCE: Options = {"threads": "1", "tune": "zerolatency", **SAME_BYTES}
VP9: Options = {"b": "0", "cpu-used": "4", "threads": "1", "field_order": "progressive"}
# The older tags of MP4 and QuickTime cannot name parameters, and what is longer than 65,535 bytes damages the file.
INDEX_FIRST: Options = {"movflags": "+faststart+use_metadata_tags"}
FRAGMENTS: Options = {"movflags": "+frag_every_frame+empty_moov+default_base_moof+use_metadata_tags"}
CLUSTERS: Options = {"cluster_time_limit": "1"}  # milliseconds: each frame is written as it comes
ENCODERS = {
    ".mp4": Encoder("libx264", "yuv420p", "mp4", H264, INDEX_FIRST, H264_AT_ONCE, FRAGMENTS),
    ".mov": Encoder("libx264", "yuv420p", "mov", H264, INDEX_FIRST, H264_AT_ONCE, FRAGMENTS),
    ".mkv": Encoder("libx264", "yuv420p", "matroska", H264, {}, H264_AT_ONCE, CLUSTERS),
    ".webm": Encoder("libvpx-vp9", "yuv420p", "webm", VP9, {}, VP9 | {"lag-in-frames": "0"}, CLUSTERS),
    ".gif": Encoder("gif", "pal8", "gif", {"threads": "1"}, {}, {}, {}),
}
# Asked for, never chosen: smaller files of the same pictures, by an encoder that is slower. With one thread it writes
# the same bytes at every size. x265 does not: it reads memory that was never written, and fails on some single frames.
AV1: Options = {"preset": "8", "svtav1-params": "lp=1"}
CODECS = {
    "av1": {name: ENCODERS[name]._replace(codec="libsvtav1", options=AV1) for name in (".mp4", ".mkv", ".webm")},
}
GROWING = tuple(suffix for suffix, encoder in ENCODERS.items() if encoder.growing_options)


def encoder_of(suffix: str, codec: str | None = None) -> Encoder:
    """Look up the encoder of a format, its usual one or that of a codec; a ValueError where it does not hold that."""
    if codec is None:
        return ENCODERS[suffix]
    check_codec(suffix, codec)
    return CODECS[codec][suffix]


def check_codec(suffix: str, codec: str, *, growing: bool = False) -> None:
    """Raise a ValueError where there is no such codec, a format does not hold it, or the file is to grow."""
    if codec not in CODECS:
        why = " (HEVC's encoder here writes other bytes each time)" if codec in ("hevc", "h265") else ""
        raise ValueError(f"codec must be {', '.join(CODECS)}, or left out, got {codec!r}{why}")
    if suffix not in CODECS[codec]:
        raise ValueError(f"codec {codec} is written in {', '.join(CODECS[codec])}, and not in a {suffix}")
    if growing:
        raise ValueError(f"a file in {codec} cannot be played while it grows; leave the codec out")


def check_encoder(suffix: str, codec: str | None = None) -> None:
    """Raise a ValueError where FFmpeg's libraries are not there or cannot encode a format. A .png needs none."""
    if codec is None and suffix not in ENCODERS:
        return
    codec, advice = encoder_of(suffix, codec).codec, "install it anew: pip install --force-reinstall av"
    try:
        from av.codec import Codec
    except ImportError as error:
        raise ValueError(f"a {suffix} is written by PyAV, which cannot be imported: {error}; {advice}") from None
    try:
        Codec(codec, "w")
    except ValueError:
        raise ValueError(f"this PyAV has no encoder {codec}, which a {suffix} needs; {advice}") from None


def check_even(suffix: str, width: int, height: int) -> None:
    """Raise a ValueError where a format halves the colours of a size that is not even."""
    if ENCODERS[suffix].pixel_format == "yuv420p" and (width % 2 or height % 2):
        below, above = (
            f"{max(2, width + sign * (width % 2))}x{max(2, height + sign * (height % 2))}" for sign in (-1, 1)
        )
        raise ValueError(f"{suffix} needs even sizes, got {width}x{height}; try {below} or {above}")


def encode_video(
    target: Path | SupportsWrite,
    suffix: str,
    frames: Iterable[ndarray],
    *,
    fps: float,
    crf: int,
    tags: Mapping[str, str] | None = None,
    growing: bool = False,
    codec: str | None = None,
) -> None:
    """Encode frames (h, w, 3) uint8 of one size into a file or a pipe; raises an OSError where it cannot be written.

    A growing file can be played at any moment up to the last frame but one, and is somewhat larger for it. A codec is
    one of CODECS, in place of the format's usual one, and does not grow.
    """
    import av
    import av.error

    encoder, frames, rate = encoder_of(suffix, codec), iter(frames), as_rate(fps)
    assert not (growing and codec), f"a file in {codec} does not grow"
    os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder prints its settings otherwise
    first = next(frames)
    height, width = first.shape[:2]
    check_even(suffix, width, height)
    options, muxing = encoder.options, encoder.muxing
    if growing:
        options, muxing = encoder.growing_options, encoder.growing_muxing | {"flush_packets": "1"}
    quality = {} if suffix == ".gif" else {"crf": str(crf)}
    file = str(target.absolute()) if isinstance(target, Path) else target  # a colon in a relative path is a protocol
    try:
        with av.open(
            file, "w", format=encoder.container, container_options={"fflags": "+bitexact", **muxing}
        ) as container:
            container.metadata.update(tags or {})
            options = options | quality | {"flags": "+bitexact"}
            stream = cast("av.VideoStream", container.add_stream(encoder.codec, rate, options))
            stream.width, stream.height, stream.pix_fmt = width, height, encoder.pixel_format
            context = stream.codec_context
            context.thread_type = "AUTO"  # PyAV's default cuts the picture into slices
            if encoder.pixel_format == "yuv420p":  # a player guesses what it is not told, and shows another contrast
                context.colorspace = context.color_primaries = context.color_trc = BT709
                context.color_range = LIMITED_RANGE
            for frame in converted(chain([first], frames), encoder, rate):
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    except av.error.FFmpegError as error:
        raise OSError(error.errno, error_reason(error)) from error


def as_rate(fps: float) -> Fraction:
    """Return a frame rate as a fraction, 24000/1001 for 23.976, with a numerator and a denominator that files hold."""
    return Fraction(fps).limit_denominator(1001) if fps >= 1 else 1 / Fraction(1 / fps).limit_denominator(1001)


def converted(frames: Iterable[ndarray], encoder: Encoder, rate: Fraction) -> Iterator[av.VideoFrame]:
    """Convert frames (h, w, 3) to the pixel format of an encoder, one after another."""
    import av
    import av.error

    graph = None

    def drained() -> Iterator[av.VideoFrame]:
        assert graph is not None
        while True:
            try:
                yield cast("av.VideoFrame", graph.pull())
            except (av.error.BlockingIOError, av.error.EOFError):
                return

    for number, pixels in enumerate(frames):
        graph = graph or conversion(encoder, pixels.shape[1], pixels.shape[0], rate)
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base, frame.duration = number, 1 / rate, 1
        graph.push(frame)
        yield from drained()
    if graph is not None:
        graph.push(None)
        yield from drained()


def conversion(encoder: Encoder, width: int, height: int, rate: Fraction) -> Graph:
    """Build the filters from RGB to a pixel format: BT.709 in limited range, or a palette for each frame of a GIF."""
    from av import VideoFormat
    from av.filter import Graph

    graph = Graph()
    graph.threads = 1
    source = graph.add_buffer(width=width, height=height, format=VideoFormat("rgb24"), time_base=1 / rate)
    if encoder.pixel_format == "pal8":
        split, palette, use = (
            graph.add(*words) for words in (("split",), ("palettegen", "stats_mode=single"), ("paletteuse", "new=1"))
        )
        source.link_to(split)
        split.link_to(use, 0, 0)
        split.link_to(palette, 1, 0)
        palette.link_to(use, 0, 1)
        last: FilterContext = use
    else:
        scale = graph.add("scale", "out_color_matrix=bt709:out_range=tv:flags=bicubic+accurate_rnd+full_chroma_int")
        tags = graph.add("setparams", "colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=tv")
        pixel_format = graph.add("format", encoder.pixel_format)
        graph.link_nodes(source, scale, pixel_format, tags)
        last = tags
    last.link_to(graph.add("buffersink"))
    graph.configure()
    return graph
