"""Read the captions of a folder of videos, and the rows of any table file.

metadata.csv / .jsonl / .parquet  ->  CaptionTable: rows, and what is wrong with them
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from videogen.data.files import error_reason
from videogen.data.findings import Finding

TAB = "\t"


class CaptionTable(NamedTuple):
    """The rows of metadata files, and what is wrong with these files."""

    texts: dict[tuple[Path, str], list[str]]  # folder of the metadata and file_name in it: its captions in order
    findings: list[tuple[Path, Finding]]


def read_caption_tables(paths: Iterable[Path]) -> CaptionTable:
    """Read metadata files; a row that cannot be read ends its file, and is named."""
    table = CaptionTable({}, [])
    for path in paths:
        try:
            if not path.is_file():  # Reading a pipe would wait for ever.
                raise ValueError(f"{path} is no regular file; write a table in its place")
            for number, row in ROW_READERS[path.suffix](path):
                if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("file_name", "text")):
                    raise ValueError(f"{path} row {number}: every row needs file_name and text, got {row}")
                table.texts.setdefault((path.parent, row["file_name"]), []).append(row["text"].strip())
            if path.suffix == ".csv" and (delimiter := find_delimiter(path)) != ",":
                marks = "tabs" if delimiter == TAB else "semicolons"
                words = f"its cells are separated by {marks}; it is read all the same"
                table.findings.append((path, Finding("separator", words)))
        except (ValueError, OSError) as error:
            words = error_reason(error) if isinstance(error, OSError) else str(error).removeprefix(f"{path} ")
            table.findings.append((path, Finding("bad_row", words)))
    return table


def find_delimiter(path: Path) -> str:
    """Return what separates the cells of a .csv: where its first line has no comma, semicolons or tabs, as of Excel."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        header = file.readline()
    return next((mark for mark in (",", ";", TAB) if mark in header), ",")


def read_utf8(path: Path) -> str:
    """Read a text file, with or without a byte order mark; raises a ValueError that names a file not in UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not encoded in UTF-8: {error}; save it as UTF-8") from None


def read_csv_rows(path: Path) -> Iterator[tuple[int, object]]:
    """Yield (number, {column: cell}) of each row; the number is that of the row's last line in the file."""
    with path.open(newline="", encoding="utf-8-sig") as file:  # Excel begins a file with a byte order mark
        reader = csv.DictReader(file, delimiter=find_delimiter(path))
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
