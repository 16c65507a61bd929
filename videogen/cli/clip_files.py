"""Name the files of clips, and refuse those that cannot be written before anything is loaded.

prompt, seed, --out  ->  out/a-red-circle-0.mp4, or -0-2 where that name is taken
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from itertools import count
from pathlib import Path

from videogen.data.files import check_writable, slug
from videogen.data.video_encode import GROWING, check_encoder
from videogen.data.video_io import PIPE_FORMAT, WRITABLE

OUT, STDOUT = Path("out"), Path("-")
# Names of videos and pictures that are not written here: no folder is meant by them.
OTHER_MEDIA = (
    ".avi", ".m4v", ".ogv", ".wmv", ".flv", ".mpg", ".mpeg", ".ts", ".3gp", ".webp", ".apng", ".avif", ".jpg", ".jpeg",
    ".tif", ".tiff", ".bmp", ".heic",
)  # fmt: skip


def split_out(out: Path | None, *, num_clips: int) -> tuple[Path | None, Path]:
    """Read --out as one file and its folder, or as a folder alone; a ValueError where neither can be."""
    if out == STDOUT:
        if num_clips > 1:
            raise ValueError(f"--out - is one pipe for {num_clips} clips; give a folder")
        return STDOUT, Path()
    if out is None or out.suffix.lower() not in WRITABLE:
        if out is not None and out.suffix.lower() in OTHER_MEDIA and not out.is_dir():
            raise ValueError(f"--out must be a folder or end in {', '.join(WRITABLE)}, got {out}")
        out_file, folder = None, out or OUT
    else:
        out_file, folder = out, out.parent
    if out_file is not None and num_clips > 1:
        raise ValueError(f"--out {out} is one file for {num_clips} clips; give a folder")
    check_folder(folder)
    return out_file, folder


def name_clip(folder: Path, prompt: str, seed: int, used: set[Path], *, may_exist: bool) -> Path:
    """Name a clip after its prompt and seed, with a number where that name is used, or where a file has it already."""
    stem = f"{slug(prompt)}-{seed}"
    paths = (folder / (f"{stem}-{i}.mp4" if i > 1 else f"{stem}.mp4") for i in count(1))
    return next(path for path in paths if path not in used and (may_exist or not os.path.lexists(path)))


def check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be created since a file has its name, or that of one above it."""
    existing = next(path for path in (folder, *folder.parents, Path()) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"{existing} is a file; give --out a folder, or another name")


def check_stream(path: Path, *, stream: bool) -> None:
    """Refuse to stream into a format that cannot grow, and to write a clip to a terminal or, whole, to a pipe."""
    if path != STDOUT:
        if stream and path.suffix.lower() not in GROWING:
            formats = f"{', '.join(GROWING)} or to a pipe (--out -)"
            raise ValueError(f"--stream writes {formats}, and {path} cannot be played while it grows")
    elif not stream:
        raise ValueError("--out - is a pipe, which takes a clip as it is made; add --stream, or give a file")
    elif sys.stdout.isatty():
        raise ValueError("--out - writes a video, and here to a terminal; pipe it on: ... --out - --stream | ffplay -")


def check_files(paths: Iterable[Path], codec: str | None = None) -> None:
    """Try what the last step will need: the encoder of each format, and a file of each name's length in its folder."""
    named = [path for path in paths if path != STDOUT]
    for suffix in sorted({path.suffix.lower() for path in named} or {PIPE_FORMAT}):
        check_encoder(suffix, None if suffix == ".safetensors" else codec)
    longest = {path.parent: path for path in sorted(named, key=lambda path: len(path.name.encode(errors="replace")))}
    for path in longest.values():
        check_writable(path)
