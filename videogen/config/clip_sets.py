"""Describe several folders of clips, in a recipe or by the dataset.toml of musubi-tuner and diffusion-pipe.

    [[sets]] / [[datasets]] / [[directory]]  ->  [ClipSet], and what such a file says that has no meaning here

Clips keep their own sizes, shapes and lengths, so buckets, batches and caches have none.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

from videogen.config.parsing import from_mapping, nearest
from videogen.config.sizes import parse_size, require_positive

Table = Mapping[str, object]
WITHOUT_MEANING = {
    "batch_size", "enable_bucket", "bucket_no_upscale", "cache_directory", "source_fps", "frame_extraction",
    "frame_stride", "frame_sample", "debug_dataset", "enable_ar_bucket", "min_ar", "max_ar", "num_ar_buckets",
    "ar_buckets", "cache_shuffle_num", "cache_shuffle_delimiter", "shuffle_tags",
}  # fmt: skip
"""Keys of other trainers for what is not done here: clips are packed as they are, and frames taken by time."""
FOLDER_KEYS = ("video_directory", "image_directory", "path")
KNOWN = {*WITHOUT_MEANING, *FOLDER_KEYS, "resolution", "resolutions", "target_frames", "frame_buckets", "max_frames",
         "num_repeats", "caption_extension"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ClipSet:
    """One of several folders of clips, and how it is read where that differs from the others."""

    folder: Path
    """Folder of videos and pictures with their captions."""
    repeats: int = 1
    """How often its clips are trained in an epoch, beside data.repeats."""
    fps: float | None = None
    """Frame rate at which its clips are read; none takes data.fps."""
    size: str | None = None
    """Largest area of its clips, as WIDTHxHEIGHT; a larger one is scaled down and keeps its shape."""
    frames: int | None = None
    """Longest clip in frames; none takes data.max_seconds."""

    def __post_init__(self) -> None:
        require_positive(self, "repeats", *(name for name in ("fps", "frames") if getattr(self, name) is not None))
        if self.size is not None:
            parse_size(self.size)


class DatasetFile(NamedTuple):
    """What a dataset.toml says."""

    sets: tuple[ClipSet, ...]
    ignored: tuple[str, ...]  # its keys that have no meaning here


def read_dataset_file(path: Path) -> DatasetFile:
    """Read the sets of a dataset.toml, of this program or another; a ValueError names what cannot be followed."""
    if not path.is_file():
        raise ValueError(f"no dataset file {path}; give a folder of videos, or a .toml that names some")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from None
    try:
        if "sets" in content:
            sets = [from_mapping(ClipSet, table) for table in tables(content, "sets")]
            return DatasetFile(tuple(place(one, path.parent) for one in sets), ())
        name = next((name for name in ("datasets", "directory") if name in content), None)
        if name is None:
            raise ValueError("it names no clips; give [[sets]] with a folder each, or [[datasets]] or [[directory]]")
        general = cast("Table", content.get("general", {})) if name == "datasets" else content
        common = {key: value for key, value in general.items() if key != name}
        rows = [{**common, **table} for table in tables(content, name)]
        sets = [read_foreign_set(row) for row in rows]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    ignored = sorted({key for row in rows for key in row if key in WITHOUT_MEANING})
    if any(len(resolutions_of(row)) > 1 for row in rows):
        ignored.append("all resolutions but the largest")
    return DatasetFile(tuple(place(one, path.parent) for one in sets), tuple(ignored))


def tables(content: Table, name: str) -> list[Table]:
    """Return the tables of a list [[name]]."""
    found = content[name]
    if not isinstance(found, list) or not found or not all(isinstance(table, dict) for table in found):
        raise ValueError(f"{name} must be tables, each [[{name}]] with a folder")
    return found


def place(one: ClipSet, folder: Path) -> ClipSet:
    """Take a set's folder as beside its file where it is not found from here."""
    if one.folder.is_absolute() or one.folder.exists() or not (folder / one.folder).exists():
        return one
    return from_mapping(ClipSet, {**vars(one), "folder": folder / one.folder})


def read_foreign_set(row: Table) -> ClipSet:
    """Read a set of musubi-tuner's or diffusion-pipe's as one of ours."""
    for key in row:
        if key.endswith("_jsonl_file"):
            raise ValueError(f"{key} is a table apart; save it as metadata.jsonl in the folder of the clips")
        if key not in KNOWN:
            raise ValueError(f"{key} cannot be followed here{nearest(key, KNOWN)}; remove it")
    if row.get("caption_extension", ".txt") != ".txt":
        raise ValueError(f"captions stand in .txt files, got caption_extension = {row['caption_extension']!r}")
    folders = [row[key] for key in FOLDER_KEYS if key in row]
    if len(folders) != 1:
        raise ValueError(f"every set needs one of {', '.join(FOLDER_KEYS)}, got {len(folders)}")
    values: dict[str, object] = {"folder": folders[0], "repeats": row.get("num_repeats", 1)}
    areas = [read_resolution(side) for side in resolutions_of(row)]
    if areas:
        values["size"] = max(areas, key=lambda size: size[0] * size[1])
        values["size"] = "x".join(map(str, cast("tuple[int, int]", values["size"])))
    lengths = row.get("max_frames") or row.get("target_frames") or row.get("frame_buckets")
    if lengths is not None:
        values["frames"] = max(lengths) if isinstance(lengths, list) else lengths
    return from_mapping(ClipSet, values)


def resolutions_of(row: Table) -> Sequence[object]:
    """List the resolutions of a set: musubi-tuner has one, diffusion-pipe several, and trains each clip in all."""
    several = row.get("resolutions", [])
    return [row["resolution"]] if "resolution" in row else several if isinstance(several, list) else [several]


def read_resolution(value: object) -> tuple[int, int]:
    """Read a resolution as width and height: [960, 544], or the side of a square."""
    given = value if isinstance(value, list) else [value, value]
    sides = [side for side in given if isinstance(side, int) and side > 0]
    if not len(given) == len(sides) == 2:
        raise ValueError(f"a resolution is a side or [width, height] in pixels, got {value!r}")
    return sides[0], sides[1]
