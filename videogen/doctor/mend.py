"""Write a mended copy of a folder: what can be mended is, near duplicates are left out, and what was done is said.

Examination  ->  folder with metadata.csv, [Mended]
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np

from videogen.data.files import atomic_folder, refuse_existing
from videogen.data.findings import Finding, UnreadableFile, printable
from videogen.data.frame_findings import BarFinder, find_cuts, track_frames
from videogen.data.pictures import IMAGE_SUFFIXES, read_image_file
from videogen.data.video_decode import inspect_header
from videogen.doctor.examine import Examination, ExaminedClip
from videogen.doctor.mend_video import Mending, write_scenes
from videogen.doctor.summary import relative_name
from videogen.doctor.threads import thread_pool

ABOUT_CAPTIONS = {"no_caption", "caption_encoding"}  # a caption is for people to write; the file is mended all the same
MENDED = {"size_change", "too_oblong", *ABOUT_CAPTIONS}  # what keeps a file from training, but not from the copy
SUFFIX_OF = {
    "mov": ".mp4", "matroska": ".mkv", "avi": ".avi", "gif": ".gif", "flv": ".flv", "mpegts": ".ts", "asf": ".wmv",
    "ogg": ".ogv", "PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "BMP": ".bmp", "png_pipe": ".png",
    "jpeg_pipe": ".jpg", "webp_pipe": ".webp", "bmp_pipe": ".bmp", "gif_pipe": ".gif",
}  # fmt: skip  # by the container that FFmpeg or Pillow names


class Mended(NamedTuple):
    """What became of a file; without outputs it is left out."""

    source: Path
    outputs: tuple[Path, ...]  # in the copy
    words: str


def check_copy(folder: Path, out: Path) -> None:
    """Raise where a copy cannot be written: over something, or into the folder itself."""
    refuse_existing(out)
    if out.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"--fix writes beside the folder, not into it, got {out}; name a folder outside of {folder}")


def mend_folder(
    found: Examination,
    out: Path,
    *,
    num_threads: int = 1,
    on_file: Callable[[int, int], object] = lambda done, total: None,
) -> list[Mended]:
    """Write the mended copy; it is whole or not there, and the folder itself is not touched."""
    check_copy(found.folder, out)
    out.parent.mkdir(parents=True, exist_ok=True)
    results = list[Mended]()
    with atomic_folder(out) as part:
        names = NamesLeft(part)
        with thread_pool(num_threads) as pool:
            for result in pool.map(lambda clip: mend_clip(clip, found.folder, names), found.clips):
                results.append(result._replace(outputs=tuple(path.relative_to(part) for path in result.outputs)))
                on_file(len(results), len(found.clips))
        captions = {clip.path: clip.captions for clip in found.clips}
        with (part / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["file_name", "text"])
            for result in results:
                for path in result.outputs:
                    writer.writerows((path.as_posix(), text) for text in captions[result.source])
    return results


class NamesLeft:
    """Names in the copy; of two files that would have one name, the second gets a number."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.taken, self.lock = folder, set[str](), Lock()

    def take(self, name: Path, suffix: str) -> Path:
        """Take the name with this suffix, or the next that is free."""
        stem = self.folder / name.parent / "".join(c if c.isprintable() and c not in ":\\" else "_" for c in name.stem)
        with self.lock:
            for number in count(1):
                path = stem.with_name(f"{stem.name}{f'-{number}' if number > 1 else ''}{suffix}")
                if path.as_posix().casefold() not in self.taken:
                    self.taken.add(path.as_posix().casefold())
                    return path
        raise AssertionError("there is always another number")

    def series(self, name: Path, suffix: str) -> Iterator[Path]:
        """Take one name after the other."""
        while True:
            yield self.take(name, suffix)


def mend_clip(clip: ExaminedClip, folder: Path, names: NamesLeft) -> Mended:
    """Mend or copy a file."""
    kinds = {finding.kind: finding for finding in clip.judgement.findings}
    fault = next((f for f in clip.judgement.findings if f.level == "unusable" and f.kind not in MENDED), None)
    if fault is not None:
        return Mended(clip.path, (), f"left out: {fault.words}")
    if "duplicate" in kinds:
        return Mended(clip.path, (), f"left out: {kinds['duplicate'].words}")
    name = Path(relative_name(clip.path, folder))
    try:
        inspect_header(clip.path)  # It may have gone since it was judged.
        if clip.path.suffix.lower() in IMAGE_SUFFIXES:
            return mend_picture(clip, kinds, name, names)
        return mend_video(clip, kinds, name, names)
    except UnreadableFile as error:
        return Mended(clip.path, (), f"left out: {error.finding.words}")


def mend_picture(clip: ExaminedClip, kinds: dict[str, Finding], name: Path, names: NamesLeft) -> Mended:
    """Write a picture upright and without bars, or copy it."""
    done = [words for kind, words in (("rotated", "turned upright"), ("bars", "trimmed of its bars")) if kind in kinds]
    if not done:
        return copy_file(clip, kinds, name, names)
    from PIL import Image

    pixels, bars = read_image_file(clip.path)[0], BarFinder()
    bars.add(pixels.mean(axis=2).astype(np.uint8))
    top, bottom, left, right = bars.crop()
    path = names.take(name, ".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[top : pixels.shape[0] - bottom, left : pixels.shape[1] - right]).save(path)
    return Mended(clip.path, (path,), ", ".join(done))


def mend_video(clip: ExaminedClip, kinds: dict[str, Finding], name: Path, names: NamesLeft) -> Mended:
    """Write what is to be mended of a video to files of their own, or copy it."""
    mended = {
        "rotated": "turned upright", "oblong_pixels": "given square pixels", "interlaced": "deinterlaced",
        "hdr": "tone-mapped to SDR", "bars": "trimmed of its bars", "jump": "retimed", "variable_rate": "retimed",
        "cuts": "split at its cuts", "size_change": "split where its size changes",
        "cut_off": "ended where it is whole",
    }  # fmt: skip
    done = list(dict.fromkeys(words for kind, words in mended.items() if kind in kinds))
    if not done:
        return copy_file(clip, kinds, name, names)
    cuts, crop, fps = list[float](), (0, 0, 0, 0), clip.judgement.info.fps if clip.judgement.info else 0.0
    if clip.judgement.info is not None:
        track, bars, _ = track_frames(clip.path, clip.judgement.info.num_frames)
        cuts, crop = find_cuts(track), bars.crop()
        if len(track.seconds) > 1:
            fps = 1 / max(1e-3, float(np.median(np.abs(np.diff(track.seconds)))))
    transfer = ("PQ" if "PQ" in kinds["hdr"].words else "HLG") if "hdr" in kinds else ""
    mending = Mending(cuts, crop, transfer, "interlaced" in kinds, bool({"jump", "variable_rate"} & kinds.keys()))
    outputs = write_scenes(clip.path, mending, names.series(name, ".mp4"), fps or 24.0)
    parts = f" into {len(outputs)} files, each with the caption of the whole" if len(outputs) > 1 else ""
    return Mended(clip.path, tuple(outputs), f"{', '.join(done)}{parts}; written without sound")


def copy_file(clip: ExaminedClip, kinds: dict[str, Finding], name: Path, names: NamesLeft) -> Mended:
    """Copy a file as it is, with the suffix of what it holds."""
    suffix, words = name.suffix, "copied"
    if "other_container" in kinds:
        suffix = SUFFIX_OF.get(str(clip.judgement.facts.get("container")), suffix)
        words = f"copied as {suffix}, which it is"
    path = names.take(name, suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(clip.path, path)
    return Mended(clip.path, (path,), words if path.name == name.name or "as" in words else f"copied as {path.name}")


def describe_mended(results: list[Mended], folder: Path) -> Iterator[str]:
    """Say what became of every file but those that were copied, and how many these are."""
    for result in results:
        if result.words != "copied":
            outputs = ", ".join(printable(path.as_posix()) for path in result.outputs)
            name = printable(relative_name(result.source, folder))
            yield f"{name}: {printable(result.words)}{f' -> {outputs}' if outputs else ''}"
    yield f"{sum(result.words == 'copied' for result in results)} files copied as they are"


def to_rows(results: list[Mended], folder: Path) -> list[dict[str, object]]:
    """Collect what became of every file for JSON."""
    return [
        {
            "path": relative_name(result.source, folder),
            "outputs": [path.as_posix() for path in result.outputs],
            "done": result.words,
        }
        for result in results
    ]
