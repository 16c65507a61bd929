"""Read the captions of a folder of videos, and the rows of any table file.

metadata.csv / .jsonl / .parquet, clip.txt beside clip.mp4  ->  {video path: caption}
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from videogen.data.files import walk_files


def read_captions(folder: Path) -> dict[str, str]:
    """Read all metadata files of a folder and its sub-folders into {file name relative to the folder: caption}.

    Raises a ValueError that names the row where file_name or text is missing or no string.
    """
    captions: dict[str, str] = {}
    for path in sorted(path for path in walk_files(folder) if path.name in METADATA):
        for number, row in ROW_READERS[path.suffix](path):
            if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("file_name", "text")):
                raise ValueError(f"{path} row {number}: every row needs file_name and text, got {row}")
            name = path.parent.relative_to(folder) / row["file_name"].replace("\\", "/")
            captions[name.as_posix()] = row["text"]
    return captions


def read_utf8(path: Path) -> str:
    """Read a text file, with or without a byte order mark; raises a ValueError that names a file not in UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not encoded in UTF-8: {error}; save it as UTF-8") from None


def read_csv_rows(path: Path) -> Iterator[tuple[int, object]]:
    """Yield (number, {column: cell}) of each row; the number is that of the row's last line in the file."""
    with path.open(newline="", encoding="utf-8-sig") as file:  # Excel begins a file with a byte order mark
        reader = csv.DictReader(file)
        try:
            for row in reader:
                if None in row:  # DictReader files the surplus cells under None
                    surplus = f"{row[None]}; put texts with commas in quotes"
                    raise ValueError(f"it has more cells than the table has columns: {surplus}")
                yield reader.line_num, row
        except (csv.Error, ValueError) as error:
            raise ValueError(f"{path} row {reader.line_num}: {error}") from None


def read_jsonl_rows(path: Path) -> Iterator[tuple[int, object]]:
    """Yield (line number, JSON value) of each line that is not blank."""
    for number, line in enumerate(read_utf8(path).split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path} row {number}: it is not JSON: {error}") from None


def read_parquet_rows(path: Path) -> Iterator[tuple[int, object]]:
    """Yield (number, {column: value}) of each row, counted from 1."""
    try:
        import pyarrow.parquet  # type: ignore[import-not-found]
    except ImportError:
        raise ValueError(f"{path} needs pyarrow: pip install 'videogen[parquet]', or write a .csv instead") from None
    yield from enumerate(pyarrow.parquet.read_table(path).to_pylist(), start=1)


def read_rows(path: Path) -> Iterator[tuple[int, object]]:
    """Yield (number, row) of a table file, or (number, text) of each line of any other file that is not blank."""
    if (read := ROW_READERS.get(path.suffix.lower())) is not None:
        yield from read(path)
    else:
        lines = enumerate(read_utf8(path).splitlines(), start=1)
        yield from ((number, line.strip()) for number, line in lines if line.strip())


ROW_READERS: dict[str, Callable[[Path], Iterator[tuple[int, object]]]] = {
    ".csv": read_csv_rows,
    ".jsonl": read_jsonl_rows,
    ".parquet": read_parquet_rows,
}
"""Readers of table files by suffix. Their errors read "PATH row N: reason"."""
METADATA = tuple(f"metadata{suffix}" for suffix in ROW_READERS)
