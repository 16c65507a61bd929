"""Read and write videos and images: which file, which reader, which format, and the settings that a file carries.

any file FFmpeg or Pillow can read  ->  frames (t, h, w, 3) uint8  ->  .mp4, .mov, .mkv, .webm, .gif or .png
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from einops import rearrange

from videogen.data.files import WriteError, atomic_file, error_reason, refuse_existing
from videogen.data.parameters import format_parameters
from videogen.data.pictures import IMAGE_SUFFIXES, is_animation, read_animation, read_image_file
from videogen.data.video_decode import READERS, FrameRequest, decode_animation, decode_hdr, inspect_header, open_video
from videogen.data.video_encode import ENCODERS, GROWING, SupportsWrite, check_codec, encode_video

if TYPE_CHECKING:
    from av import VideoStream
    from numpy import ndarray
    from torch import Tensor

logger = logging.getLogger(__name__)


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
    tone_mapped: bool = False,
    transform: Callable[[Tensor], Tensor] = lambda chunk: chunk,
) -> Tensor:
    """Read frames (t, h, w, 3) uint8 of a video or image: every 1/fps from start_seconds, the frame on screen then.

    fps None gives the file's own frames. A file that ends early gives fewer frames. size is (width, height). HDR is
    read as if it were BT.709, and looks washed out, unless it is tone_mapped to SDR. transform is applied to each
    chunk as it is decoded, so that a long clip never lies in memory at its full size. Raises a ValueError for an
    argument out of range, and one that names the file where it cannot be read or has no such frame.
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
    elif tone_mapped and header.transfer:
        chunks = [transform(resize(chunk, size)) for chunk in decode_hdr(path, request)]
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


WRITABLE = (*ENCODERS, ".png")
PIPE_FORMAT = ".mp4"


def write_video(
    path: Path,
    frames: Tensor | Iterable[Tensor],
    *,
    fps: float,
    settings: Mapping[str, object] | None = None,
    crf: int = 12,
    overwrite: bool = False,
    on_part: Callable[[Path], object] | None = None,
    next_name: Callable[[], Path] | None = None,
    codec: str | None = None,
) -> None:
    """Write frames (t, h, w, 3) uint8, whole or in chunks, in a format of WRITABLE with settings as a comment.

    crf 0 is the best picture, 51 the smallest file. The same frames and settings give the same bytes. With on_part the
    file can be played while it grows, and on_part is told the name that it has until it is whole. Where the name is
    taken by then, without overwrite, the file takes the first free one that next_name gives. codec av1 takes the place
    of the format's usual one, for a smaller file. Raises a ValueError for what cannot be written, a FileExistsError,
    or an OSError for a full disk; none leaves a partial file.
    """
    import torch

    suffix = check_format(path, fps)
    if on_part is not None and suffix not in GROWING:
        raise ValueError(f"a {suffix} cannot be played while it grows; {', '.join(GROWING)} can")
    if codec is not None:
        check_codec(suffix, codec, growing=on_part is not None)
    if not 0 <= crf <= 51:
        raise ValueError(f"crf must be from 0 (best) to 51 (smallest), got {crf}")
    if not overwrite and next_name is None:
        refuse_existing(path)  # now, and once more when it is written
    tags = settings_tags(settings) if settings is not None else {}
    images = iterate_frames([frames] if isinstance(frames, torch.Tensor) else frames)
    if (first := next(images, None)) is None:
        raise ValueError(f"cannot write {path}: there are no frames")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_file(path, overwrite=overwrite, next_name=next_name) as part:
            if suffix == ".png":
                write_png(part, first, images, tags)
            else:
                if on_part is not None:
                    on_part(part)
                whole = chain([first], images)
                grows = on_part is not None
                encode_video(part, suffix, whole, fps=fps, crf=crf, tags=tags, growing=grows, codec=codec)
                if tags and suffix == ".gif":
                    insert_gif_comment(part, tags["comment"].encode())
    except (FileExistsError, WriteError):
        raise
    except OSError as error:  # Pillow does not say that a disk is full
        raise WriteError(path, error_reason(error)) from error


def stream_video(
    pipe: SupportsWrite, frames: Iterable[Tensor], *, fps: float, settings: Mapping[str, object], crf: int = 12
) -> None:
    """Write frames (t, h, w, 3) uint8 in chunks to a pipe, as an MP4 that can be played as it comes.

    Raises a ValueError for what cannot be written, and an OSError where nobody reads any more.
    """
    check_format(Path(f"pipe{PIPE_FORMAT}"), fps)
    images = iterate_frames(frames)
    encode_video(pipe, PIPE_FORMAT, images, fps=fps, crf=crf, tags=settings_tags(settings), growing=True)


def settings_tags(settings: Mapping[str, object]) -> dict[str, str]:
    """Format settings as a file's tags: a comment, in ASCII, which every container stores unchanged, and a clip's
    parameters as galleries read them, which a GIF has no place for.
    """
    parameters = format_parameters(settings)
    comment = {"comment": json.dumps({"videogen": dict(settings)})}
    return comment | ({"parameters": parameters} if parameters else {})


def check_format(path: Path, fps: float) -> str:
    """Return the lower-case suffix of a path; raises a ValueError where it cannot be written at this frame rate."""
    if (suffix := path.suffix.lower()) not in WRITABLE:
        raise ValueError(f"a clip can be written as {', '.join(ENCODERS)} or .png, got {path.name!r}")
    if not (max_fps := 100 if suffix == ".gif" else 1000) >= fps > 0:
        raise ValueError(f"fps of a {suffix} must be above 0 and at most {max_fps}, got {fps}")
    return suffix


def iterate_frames(chunks: Iterable[Tensor]) -> Iterator[ndarray]:
    """Yield the frames (h, w, 3) of chunks (t, h, w, 3) uint8, which must all have one size."""
    size = None
    for chunk in chunks:
        pixels = chunk.cpu().contiguous().numpy()
        size = size or pixels.shape[1:]
        assert pixels.dtype == "uint8", f"expected uint8 frames, got {pixels.dtype}"
        assert pixels.shape[1:] == size == (*size[:2], 3), f"expected (t, h, w, 3), one size, got {pixels.shape}"
        yield from pixels


def insert_gif_comment(path: Path, comment: bytes) -> None:
    """Insert a comment block behind the header of a GIF, which FFmpeg cannot write."""
    gif = path.read_bytes()
    start = 13 + (3 << (gif[10] & 7) + 1 if gif[10] & 0x80 else 0)  # signature, screen, palette for all frames
    blocks = b"".join(bytes([len(b)]) + b for b in (comment[i : i + 255] for i in range(0, len(comment), 255)))
    path.write_bytes(gif[:start] + b"\x21\xfe" + blocks + b"\x00" + gif[start:])


def write_png(path: Path, first: ndarray, rest: Iterator[ndarray], tags: Mapping[str, str]) -> None:
    """Write a single frame (h, w, 3) as a PNG; raises a ValueError where more follow."""
    import imageio.v3 as iio
    from PIL.PngImagePlugin import PngInfo

    if next(rest, None) is not None:
        raise ValueError("a .png holds one frame and got more; write .mp4, .webm or .gif instead")
    info = PngInfo()
    for name, text in tags.items():
        info.add_text(name, text)
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
