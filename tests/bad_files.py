"""Make one file of every kind that a folder of videos may hold, good and bad, each with what is to be found in it."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tests.test_video_io import H264, ffmpeg, make_video

Make = Callable[[Path], object]
PICTURE = np.random.default_rng(0).integers(60, 255, (32, 48, 3), dtype=np.uint8)


def video(*options: str, size: str = "96x64", seconds: float = 1) -> Make:
    """Write FFmpeg's test picture with these options."""
    return lambda path: make_video(path, *(options or H264), size=size, seconds=seconds)


def filtered(chain: str, *options: str, size: str = "96x64", seconds: float = 2) -> Make:
    """Write FFmpeg's test picture through a chain of filters."""
    return video("-vf", chain, *(options or H264), size=size, seconds=seconds)


def content(data: bytes) -> Make:
    return lambda path: path.write_bytes(data)


def picture(mode: str = "RGB", **options: object) -> Make:
    return lambda path: Image.fromarray(PICTURE).convert(mode).save(path, **options)  # type: ignore[arg-type]


def change(make: Make, edit: Callable[[bytes], bytes]) -> Make:
    """Make a file and edit its bytes."""

    def make_and_edit(path: Path) -> None:
        make(path)
        path.write_bytes(edit(path.read_bytes()))

    return make_and_edit


def renamed(make: Make, suffix: str) -> Make:
    """Make a file of another format under the name that is asked for."""

    def make_and_rename(path: Path) -> None:
        make(path.with_suffix(suffix))
        path.with_suffix(suffix).rename(path)

    return make_and_rename


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def zeros_inside(data: bytes) -> bytes:
    start = data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 3
    return data[:start] + bytes(2000) + data[start + 2000 :]


def without_beginning(data: bytes) -> bytes:
    """Leave out a quarter of the packets of a transport stream."""
    return data[188 * (len(data) // 188 // 4) :]


def without_index(data: bytes) -> bytes:
    """Multiply the frame count in the header of an AVI by ten, and leave out its index."""
    start = data.index(b"vids") + 32
    return (data[:start] + struct.pack("<I", 240) + data[start + 4 :]).replace(b"idx1", b"JUNK")


def two_sizes(path: Path) -> None:
    """Join two MPEG-2 streams of different sizes."""
    parts = [make_video(path.with_name(f".{size}.mpegts"), "-f", "mpegts", size=size) for size in ("96x64", "64x96")]
    ffmpeg("-i", f"concat:{parts[0]}|{parts[1]}", "-c", "copy", path)
    for part in parts:
        part.unlink()


def late_frames(path: Path) -> None:
    """Let the second half of the frames come ten seconds late."""
    filtered("setpts='PTS+gte(N,12)*10/TB'", "-fps_mode", "vfr", *H264, seconds=1)(path)


def sound(path: Path) -> None:
    ffmpeg("-f", "lavfi", "-i", "sine=duration=0.2", path)


def animated(path: Path) -> None:
    frames = [Image.fromarray(np.full((16, 16, 3), 20 * i, dtype=np.uint8)) for i in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def huge_png(path: Path) -> None:
    """Write the header of a PNG of 14000x13000 pixels, and a file that is whole otherwise."""
    picture()(path)
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 14000, 13000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)


def exif(path: Path) -> None:
    tags = Image.Exif()
    tags[0x0112] = 6
    Image.fromarray(PICTURE).save(path, exif=tags)


def rotated(path: Path) -> None:
    plain = make_video(path.with_name(".plain.mp4"), size="96x64")
    ffmpeg("-display_rotation", "90", "-i", plain, "-c", "copy", path)
    plain.unlink()


def cutout(path: Path) -> None:
    pixels = np.concatenate([PICTURE, np.full((32, 48, 1), 128, dtype=np.uint8)], axis=2)
    Image.fromarray(pixels, "RGBA").save(path)


def barred(path: Path) -> None:
    Image.fromarray(np.pad(PICTURE, ((20, 20), (0, 0), (0, 0)))).save(path)


CASES: dict[str, tuple[Make, set[str]]] = {
    # Good files.
    "good.mp4": (video(), set()),
    "good.webm": (video("-c:v", "libvpx-vp9"), set()),
    "good.avi": (video("-c:v", "mpeg4"), set()),
    "good.gif": (video("-c:v", "gif"), set()),
    "good.png": (picture(), set()),
    "good.jpg": (picture(), set()),
    "with sound.mp4": (
        lambda path: ffmpeg("-f", "lavfi", "-i", "testsrc2=s=96x64:d=1", "-f", "lavfi", "-i", "sine=d=1", *H264, path),
        set(),
    ),
    "pan.mp4": (filtered("crop=64:64:'32*t':0", size="160x64"), set()),
    # Files that cannot be used.
    "empty.mp4": (content(b""), {"empty"}),
    "empty.png": (content(b""), {"empty"}),
    "text.mp4": (content(b"this is no video\n" * 20), {"not_video"}),
    "text.png": (content(b"this is no picture"), {"not_video"}),
    "page.mp4": (content(b"<!DOCTYPE html><html><body>404 Not Found</body></html>"), {"not_video"}),
    "document.mp4": (content(b"%PDF-1.7\n\x00\x01\x02"), {"not_video"}),
    "noise.mp4": (content(np.random.default_rng(1).bytes(5000)), {"not_video"}),
    "unfinished.mp4": (change(video(), half), {"no_index"}),
    "sound.mp4": (sound, {"no_picture"}),
    "sound.mka.mkv": (sound, {"no_picture"}),
    "damaged.mp4": (change(video(seconds=2), zeros_inside), {"damaged"}),
    "damaged.png": (change(picture(), half), {"damaged"}),
    "video.png": (renamed(video(), ".mp4"), {"wrong_suffix"}),
    "two sizes.mp4": (two_sizes, {"size_change"}),
    "two sizes.mkv": (two_sizes, {"size_change"}),
    "stream.h264.m2v": (renamed(video(), ".h264"), {"no_times"}),
    "animated.png": (animated, set()),
    "animated.webp": (animated, set()),
    "huge.png": (huge_png, {"huge_picture"}),
    "oblong.png": (lambda path: Image.fromarray(PICTURE).resize((4000, 8)).save(path), {"too_oblong"}),
    "folder.mp4/inside.txt": (content(b"a folder may be named like a video"), set()),
    # Files that are used, though training may not see what was meant.
    "cut off.mp4": (change(video(*H264, "-movflags", "+faststart", seconds=2), half), {"cut_off"}),
    "cut off.mkv": (change(video(seconds=2), half), {"cut_off"}),
    "cut off.avi": (change(video("-c:v", "mpeg4"), without_index), {"cut_off"}),
    "joined late.ts": (
        change(video(*H264, "-g", "12", seconds=2), lambda data: data[188 * (len(data) // 700) :]),
        set(),
    ),
    "hdr.mp4": (
        video("-c:v", "libx265", "-pix_fmt", "yuv420p10le", "-x265-params", "log-level=error:transfer=16:colorprim=9"),
        {"hdr", "deep"},
    ),
    "hlg.mov": (
        video("-c:v", "libx265", "-pix_fmt", "yuv420p10le", "-x265-params", "log-level=error:transfer=18:colorprim=9"),
        {"hdr", "deep"},
    ),
    "interlaced.mpg": (filtered("tinterlace=4", "-c:v", "mpeg2video", "-flags", "+ilme+ildct"), {"interlaced"}),
    "see-through.png": (cutout, {"alpha"}),
    "see-through.mov": (
        video("-vf", "format=rgba,colorchannelmixer=aa=0.5", "-c:v", "png", "-pix_fmt", "rgba"),
        {"alpha"},
    ),
    "late.mp4": (late_frames, {"jump"}),
    "black.mp4": (filtered("drawbox=color=black:t=fill"), {"black"}),
    "black at first.mp4": (filtered("drawbox=color=black:t=fill:enable='lt(t,1)'"), {"black", "cuts"}),
    "black.png": (lambda path: Image.new("RGB", (32, 32)).save(path), {"black"}),
    "frozen.mp4": (filtered("trim=end_frame=1,loop=47:1,setpts=N/24/TB"), {"frozen"}),
    "frozen at the end.mp4": (filtered("trim=end_frame=12,tpad=stop_mode=clone:stop_duration=2"), {"frozen"}),
    "cut.mp4": (filtered("negate=enable='gte(t,1)'"), {"cuts"}),
    "letterbox.mp4": (filtered("pad=96:96:0:16"), {"bars"}),
    "pillarbox.mp4": (filtered("pad=128:64:16:0"), {"bars"}),
    "windowbox.mp4": (filtered("pad=128:96:16:16"), {"bars"}),
    "barred.png": (barred, {"bars"}),
    "picture.mp4": (renamed(picture(), ".png"), {"other_container", "one_frame"}),
    "matroska.mp4": (renamed(video(), ".mkv"), {"other_container"}),
    "photo.png": (renamed(picture(), ".jpg"), {"other_container"}),
    # Files that training handles.
    "one frame.mp4": (lambda path: make_video(path, *H264, "-frames:v", "1"), {"one_frame"}),
    "repeats.mp4": (filtered("fps=12,fps=24"), {"repeats"}),
    "variable.mp4": (filtered("setpts='(N+2*floor(N/5))/24/TB'", "-fps_mode", "vfr", *H264), {"variable_rate"}),
    "rotated.mp4": (rotated, {"rotated"}),
    "rotated.jpg": (exif, {"rotated"}),
    "rotated.webp": (exif, {"rotated"}),
    "upside down.png": (exif, {"rotated"}),
    "oblong pixels.mp4": (filtered("setsar=4/3"), {"oblong_pixels"}),
    "odd.png": (lambda path: Image.fromarray(PICTURE[:31, :47]).save(path), {"odd_size"}),
    "10 bits.mp4": (video("-c:v", "libx264", "-pix_fmt", "yuv420p10le"), {"deep"}),
    "16 bits.png": (lambda path: Image.fromarray(PICTURE[..., 0].astype(np.uint16) * 257).save(path), {"deep"}),
    "two\nlines \N{SNOWMAN}.mp4": (video(), {"name"}),
    "at 10:30.mp4": (video(), {"name"}),
    "caf\udce9.mp4": (video(), {"name"}),  # a name in Latin-1
    "clip-%03d[1]'\".mp4": (video(), set()),
    "-v.mp4": (video(), set()),
}
"""Kinds of file: how to make one, and the kinds of finding, but for near duplicates."""


def make_cases(folder: Path) -> Path:
    """Make every case in a folder, with a caption beside it."""
    for name, (make, _) in CASES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        make(path)
        path.with_suffix(".txt").write_text("a test picture", encoding="utf-8")
    return folder
