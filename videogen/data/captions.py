"""Captions of a folder of videos, and rows of the table files that hold them.

metadata.csv / .jsonl / .parquet, clip.txt beside clip.mp4  ->  {video path: caption}
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from videogen.data.files import files_in


def read_captions(folder: Path) -> dict[str, str]:
    """Captions by file name relative to the folder, from the metadata files in it and its sub-folders."""
    captions: dict[str, str] = {}
    for path in sorted(path for path in files_in(folder) if path.name in METADATA):
        for number, row in METADATA[path.name](path):
            if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("file_name", "text")):
                raise ValueError(f"{path} line {number}: every row needs file_name and text, got {row}")
            name = path.parent.relative_to(folder) / row["file_name"].replace("\\", "/")
            captions[name.as_posix()] = row["text"]
    return captions


def read_text(path: Path) -> str:
    """A text file, which may begin with a byte order mark; a ValueError that names it where it is not in UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text in UTF-8: {error}") from None


def rows_of_csv(path: Path) -> Iterator[tuple[int, object]]:
    """The rows of a CSV file with their line numbers."""
    with path.open(newline="", encoding="utf-8-sig") as file:  # Excel begins a file with a byte order mark
        reader = csv.DictReader(file)
        try:
            for row in reader:
                if None in row:
                    raise ValueError("it has more cells than the table has columns; put texts with commas in quotes")
                yield reader.line_num, row
        except (csv.Error, ValueError) as error:
            raise ValueError(f"{path} line {reader.line_num}: {error}") from None


def rows_of_jsonl(path: Path) -> Iterator[tuple[int, object]]:
    """The objects of a JSON lines file with their line numbers."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path} line {number} is not JSON: {error}") from None


def rows_of_parquet(path: Path) -> Iterator[tuple[int, object]]:
    """The rows of a Parquet file, numbered."""
    try:
        import pyarrow.parquet  # type: ignore[import-not-found]
    except ImportError:
        raise ValueError(f"{path} needs pyarrow: pip install 'videogen[parquet]', or write a metadata.csv") from None
    yield from enumerate(pyarrow.parquet.read_table(path).to_pylist(), start=1)


ROW_READERS = {".csv": rows_of_csv, ".jsonl": rows_of_jsonl, ".parquet": rows_of_parquet}
METADATA: dict[str, Callable[[Path], Iterator[tuple[int, object]]]] = {
    "metadata.csv": rows_of_csv,
    "metadata.jsonl": rows_of_jsonl,
    "metadata.parquet": rows_of_parquet,
}
