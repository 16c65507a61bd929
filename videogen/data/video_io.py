"""Read and write videos and images; decord, PyAV and imageio are used here and where files are judged.

any file FFmpeg or Pillow can read  ->  frames (t, h, w, 3) uint8  ->  .mp4, .mov, .mkv, .webm, .gif or .png
"""

from __future__ import annotations

import errno
import json
import logging
import math
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from einops import rearrange

from videogen.data.files import atomic_file, error_reason, refuse_existing
from videogen.data.pictures import IMAGE_SUFFIXES, is_animation, read_animation, read_image_file
from videogen.data.video_decode import READERS, FrameRequest, decode_animation, inspect_header, open_video

if TYPE_CHECKING:
    from av import VideoStream
    from numpy import ndarray
    from torch import Tensor

logger = logging.getLogger(__name__)
MAX_COMMENT = 100_000  # characters: Linux passes at most 128 KiB in one argument of a program
MAY_BE_FULL = (None, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EPIPE)  # None: FFmpeg does not say


class VideoInfo(NamedTuple):
    """Size as displayed, length and rate of a file; an image is one frame at fps 1 that lasts 0 seconds."""

    width: int
    height: int
    num_frames: int
    fps: float
    seconds: float


def probe(path: Path) -> VideoInfo:
    """Read the size, length and rate of a video or image from its headers and one frame."""
    header = inspect_header(path)
    width, height = header.width, header.height
    if is_animation(path):
        ends = [seconds for seconds, _ in read_animation(path)]
        return VideoInfo(width, height, len(ends), len(ends) / ends[-1], ends[-1])
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return VideoInfo(width, height, num_frames=1, fps=1.0, seconds=0.0)
    with open_video(path) as (container, stream):
        tick_seconds, fps = float(stream.time_base or 1), float(stream.guessed_rate or 25)
        num_frames, seconds = stream.frames, (stream.duration or 0) * tick_seconds
        whole, num_listed = count_whole_frames(stream, path.stat().st_size)
        if whole < num_listed:  # The file is cut off.
            num_frames, seconds = num_frames * whole // num_listed, seconds * whole / num_listed
        # Matroska, WebM and TS do not say how many frames they hold; MP4 also counts those that an edit list hides, and
        # an AVI whose index is lost may say anything.
        is_sure = num_frames and seconds and num_listed >= stream.frames
        if not is_sure or any(entry.is_discard for entry in stream.index_entries):
            packets = (p for p in container.demux(stream) if p.pts is not None and not p.is_discard)
            spans = [((p.pts or 0) * tick_seconds, (p.duration or 0) * tick_seconds or 1 / fps) for p in packets]
            # What comes before the first keyframe, as in a recording that was joined late, is not decoded.
            spans = [span for span in spans if span[0] > header.first_seconds - tick_seconds / 2] or spans
            num_frames, seconds = len(spans), sum(max(spans)) - min(spans)[0]
    is_constant = abs(num_frames / fps - seconds) <= max(0.002, tick_seconds)  # A variable rate has only a mean.
    return VideoInfo(width, height, num_frames, fps if is_constant else num_frames / seconds, seconds)


def count_whole_frames(stream: VideoStream, file_size: int) -> tuple[int, int]:
    """Count the frames in a file's index that lie before its end, and all of them; no index gives (0, 0)."""
    ends = [entry.pos + entry.size for entry in stream.index_entries]
    return sum(end <= file_size for end in ends), len(ends)


def read_video(
    path: Path,
    *,
    fps: float | None = None,
    start_seconds: float = 0.0,
    num_frames: int | None = None,
    size: tuple[int, int] | None = None,
    reader: Literal["auto", "decord", "pyav"] = "auto",
    transform: Callable[[Tensor], Tensor] = lambda chunk: chunk,
) -> Tensor:
    """Read frames (t, h, w, 3) uint8 of a video or image: every 1/fps from start_seconds, the frame on screen then.

    fps None gives the file's own frames. A file that ends early gives fewer frames. size is (width, height). transform
    is applied to each chunk as it is decoded, so that a long clip never lies in memory at its full size. Raises a
    ValueError for an argument out of range, and one that names the file where it cannot be read or has no such frame.
    """
    import torch

    if fps is not None and not 0 < fps < math.inf:
        raise ValueError(f"fps must be above 0, got {fps}; leave it out to keep the file's own frames")
    if not 0 <= start_seconds < math.inf:
        raise ValueError(f"start_seconds must be 0 or more, got {start_seconds}")
    if num_frames is not None and num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}; leave it out to read to the end")
    if size is not None and min(size) < 1:
        raise ValueError(f"size must be (width, height), each at least 1, got {size}")
    if reader not in ("auto", *READERS):
        raise ValueError(f"reader must be one of auto, {', '.join(READERS)}, got {reader!r}")
    header = inspect_header(path)
    size = size or (None if header.has_square_pixels else (header.width, header.height))
    slack = max(0.001, 0.55 * header.tick_seconds)  # A file's clock may have rounded a time up.
    request = FrameRequest(start_seconds + slack, 1 / fps if fps else 0.0, num_frames)
    if is_animation(path):
        chunks = [transform(resize(chunk, size)) for chunk in decode_animation(path, request)]
    elif path.suffix.lower() in IMAGE_SUFFIXES:
        chunks = [transform(resize(read_image_file(path), size))] if start_seconds == 0 else []
    else:
        try:
            decode = READERS["decord" if reader == "auto" else reader]
            chunks = [transform(resize(chunk, size)) for chunk in decode(path, request)]
            if not chunks and reader == "auto":
                raise OSError(f"decord finds no frame of {path} then")  # It may take the last for one of no duration.
        except OSError as error:
            if reader != "auto":
                raise ValueError(f"{error}; use reader='auto'") from error
            logger.debug("%s; PyAV reads it", error)
            chunks = [transform(resize(chunk, size)) for chunk in READERS["pyav"](path, request)]
    if not chunks:
        raise ValueError(f"{path} has no frame at {start_seconds:g} s: it ends after {probe(path).seconds:.3f} s")
    return torch.cat(chunks)


def resize(frames: ndarray, size: tuple[int, int] | None) -> Tensor:
    """Resize frames (t, h, w, 3) to (width, height), bicubic with antialiasing; None keeps their size."""
    import torch

    pixels = torch.from_numpy(frames if frames.flags.writeable else frames.copy())
    if size is None or size == (pixels.shape[2], pixels.shape[1]):
        return pixels
    planes = rearrange(pixels, "t h w rgb -> t rgb h w")
    planes = torch.nn.functional.interpolate(planes, size=(size[1], size[0]), mode="bicubic", antialias=True)
    return rearrange(planes, "t rgb h w -> t h w rgb").contiguous()


# BT.709 throughout, and said in the file: a player guesses what it is not told, and shows another contrast. The filters
# say it, since the encoder takes it from their frames.
BT709 = (
    "-vf scale=out_color_matrix=bt709:out_range=tv:flags=bicubic+accurate_rnd+full_chroma_int,"
    "setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=tv"
)
H264 = f"{BT709} -crf {{crf}} -threads 4"
# Codec, pixel format, options. Threads are fixed, as the bytes depend on them. Each frame of a GIF has its own palette.
ENCODERS = {
    ".mp4": ("libx264", "yuv420p", f"{H264} -movflags +faststart"),
    ".mov": ("libx264", "yuv420p", f"{H264} -movflags +faststart"),
    ".mkv": ("libx264", "yuv420p", H264),
    ".webm": ("libvpx-vp9", "yuv420p", f"{BT709} -crf {{crf}} -b:v 0 -cpu-used 4 -threads 1"),
    ".gif": ("gif", "pal8", "-threads 1 -vf split[a][b];[a]palettegen=stats_mode=single[p];[b][p]paletteuse=new=1"),
}
WRITABLE = (*ENCODERS, ".png")


def write_video(
    path: Path,
    frames: Tensor | Iterable[Tensor],
    *,
    fps: float,
    settings: Mapping[str, object] | None = None,
    crf: int = 12,
    overwrite: bool = False,
) -> None:
    """Write frames (t, h, w, 3) uint8, whole or in chunks, in a format of WRITABLE with settings as a comment.

    crf 0 is the best picture, 51 the smallest file. The same frames and settings give the same bytes. Raises a
    ValueError for what cannot be written, a FileExistsError, or an OSError for a full disk; none leaves a partial file.
    """
    import torch

    suffix = check_format(path, fps)
    if not 0 <= crf <= 51:
        raise ValueError(f"crf must be from 0 (best) to 51 (smallest), got {crf}")
    if not overwrite:
        refuse_existing(path)  # now, and once more when it is written
    comment = settings_comment(settings) if settings is not None else ""
    images = iterate_frames([frames] if isinstance(frames, torch.Tensor) else frames)
    if (first := next(images, None)) is None:
        raise ValueError(f"cannot write {path}: there are no frames")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_file(path, overwrite=overwrite) as part:
            if suffix == ".png":
                write_png(part, first, images, comment)
            else:
                encode_video(part, first, images, fps, crf, comment)
    except FileExistsError:
        raise
    except OSError as error:
        reason = error_reason(error)
        if error.errno in MAY_BE_FULL:
            reason += f"; {shutil.disk_usage(path.parent).free / 1e6:,.0f} MB are free on its disk"
        raise OSError(f"could not write {path}: {reason}") from error


def settings_comment(settings: Mapping[str, object]) -> str:
    """Format settings as a file's comment, in ASCII, which every container stores unchanged.

    Raises a ValueError where they are too long.
    """
    comment = json.dumps({"videogen": dict(settings)})
    if len(comment) > MAX_COMMENT:
        raise ValueError(f"settings may take {MAX_COMMENT:,} characters as JSON, got {len(comment):,}; shorten them")
    return comment


def check_format(path: Path, fps: float) -> str:
    """Return the lower-case suffix of a path; raises a ValueError where it cannot be written at this frame rate."""
    if (suffix := path.suffix.lower()) not in WRITABLE:
        raise ValueError(f"a clip can be written as {', '.join(ENCODERS)} or .png, got {path.name!r}")
    if not (max_fps := 100 if suffix == ".gif" else 1000) >= fps > 0:
        raise ValueError(f"fps of a {suffix} must be above 0 and at most {max_fps}, got {fps}")
    return suffix


def check_encoder(suffix: str) -> None:
    """Ask FFmpeg whether it can encode a format; a ValueError where it cannot or is not there. A .png needs none."""
    import imageio_ffmpeg

    if suffix not in ENCODERS:
        return
    codec, *_ = ENCODERS[suffix]
    advice = "install imageio-ffmpeg anew, or name a whole FFmpeg by IMAGEIO_FFMPEG_EXE"
    try:
        program = imageio_ffmpeg.get_ffmpeg_exe()
        listed = subprocess.run([program, "-v", "error", "-encoders"], capture_output=True, text=True, check=True)
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        raise ValueError(f"a {suffix} is written by FFmpeg, which does not run: {error}; {advice}") from None
    if codec not in listed.stdout.split():
        raise ValueError(f"{program} has no encoder {codec}, which a {suffix} needs; {advice}")


def iterate_frames(chunks: Iterable[Tensor]) -> Iterator[ndarray]:
    """Yield the frames (h, w, 3) of chunks (t, h, w, 3) uint8, which must all have one size."""
    size = None
    for chunk in chunks:
        pixels = chunk.cpu().contiguous().numpy()
        size = size or pixels.shape[1:]
        assert pixels.dtype == "uint8", f"expected uint8 frames, got {pixels.dtype}"
        assert pixels.shape[1:] == size == (*size[:2], 3), f"expected (t, h, w, 3), one size, got {pixels.shape}"
        yield from pixels


def encode_video(path: Path, first: ndarray, rest: Iterator[ndarray], fps: float, crf: int, comment: str) -> None:
    """Stream frames (h, w, 3) to FFmpeg; raises an OSError unless all of them are in the file."""
    import imageio_ffmpeg

    codec, pixel_format, options = ENCODERS[path.suffix]
    height, width = first.shape[:2]
    if pixel_format == "yuv420p" and (width % 2 or height % 2):
        below, above = (
            f"{max(2, width + sign * (width % 2))}x{max(2, height + sign * (height % 2))}" for sign in (-1, 1)
        )
        raise ValueError(f"{path.suffix} needs even sizes, got {width}x{height}; try {below} or {above}")
    options = f"{options.format(crf=crf)} -fflags +bitexact -flags:v +bitexact"
    writer = imageio_ffmpeg.write_frames(
        path.absolute(),  # in a relative path FFmpeg takes a colon for a protocol
        (width, height),
        codec=codec,
        pix_fmt_out=pixel_format,
        ffmpeg_log_level="error",
        fps=fps,  # pyright: ignore[reportArgumentType]  # Its default is an int, but any number is formatted.
        quality=None,  # pyright: ignore[reportArgumentType]
        macro_block_size=1,  # The default of 16 resizes without a word.
        output_params=[*options.split(), *(["-metadata", f"comment={comment}"] if comment else [])],
    )
    num_frames = 0
    with closing(writer):
        writer.send(None)
        for image in chain([first], rest):
            try:
                writer.send(image)
            except OSError as error:
                raise OSError(f"FFmpeg stopped after {num_frames} frames") from error
            num_frames += 1
    try:  # imageio-ffmpeg does not check FFmpeg's exit status, so the frames in the file are counted.
        with open_video(path) as (container, stream):
            num_written = sum(packet.size > 0 for packet in container.demux(stream))
    except ValueError as error:
        raise OSError("FFmpeg left no readable file") from error
    if num_written != num_frames:
        raise OSError(f"FFmpeg wrote {num_written} of {num_frames} frames")
    if comment and path.suffix == ".gif":
        insert_gif_comment(path, comment.encode())


def insert_gif_comment(path: Path, comment: bytes) -> None:
    """Insert a comment block behind the header of a GIF, which FFmpeg cannot write."""
    gif = path.read_bytes()
    start = 13 + (3 << (gif[10] & 7) + 1 if gif[10] & 0x80 else 0)  # signature, screen, palette for all frames
    blocks = b"".join(bytes([len(b)]) + b for b in (comment[i : i + 255] for i in range(0, len(comment), 255)))
    path.write_bytes(gif[:start] + b"\x21\xfe" + blocks + b"\x00" + gif[start:])


def write_png(path: Path, first: ndarray, rest: Iterator[ndarray], comment: str) -> None:
    """Write a single frame (h, w, 3) as a PNG; raises a ValueError where more follow."""
    import imageio.v3 as iio
    from PIL.PngImagePlugin import PngInfo

    if next(rest, None) is not None:
        raise ValueError("a .png holds one frame and got more; write .mp4, .webm or .gif instead")
    info = PngInfo()
    info.add_text("comment", comment)
    iio.imwrite(path, first, plugin="pillow", pnginfo=info)


def read_settings(path: Path) -> dict[str, object]:
    """Read the settings that write_video stored in a file; raises a ValueError where there are none."""
    inspect_header(path)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        import imageio.v3 as iio

        tags = iio.immeta(path, index=0, plugin="pillow")
    else:
        with open_video(path) as (container, _):
            tags = {key.lower(): value for key, value in container.metadata.items()}
    try:
        return dict(json.loads(tags.get("comment", ""))["videogen"])
    except (TypeError, ValueError, KeyError):
        raise ValueError(f"{path} carries no settings: videogen did not write it, or something re-encoded it") from None
