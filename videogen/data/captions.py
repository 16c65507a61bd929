"""Read the captions of a folder of videos, and the rows of any table file.

metadata.csv / .jsonl / .parquet  ->  CaptionTable: rows, and what is wrong with them
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from videogen.data.files import error_reason
from videogen.data.findings import Finding

TAB = "\t"
FILE_COLUMNS = ("file_name", "video", "video_path", "media_path")
"""Columns that name a clip: that of Hugging Face's folders first, then those of other trainers."""
TEXT_COLUMNS = ("text", "caption", "prompt")
"""Columns that hold its caption; a table with several of them is read by the first."""


VIDEO_LIST, PROMPT_LISTS = "videos.txt", ("prompts.txt", "prompt.txt", "captions.txt")
"""Two lists of as many lines, which stand for a table: a clip's name, and its caption."""


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
            read = read_paired_rows if path.name == VIDEO_LIST else ROW_READERS[path.suffix]
            for number, row in read(path):
                name, text = take_caption(row, f"{path} row {number}")
                table.texts.setdefault((path.parent, name), []).append(text.strip())
            if path.suffix == ".csv" and (delimiter := find_delimiter(path)) != ",":
                marks = "tabs" if delimiter == TAB else "semicolons"
                words = f"its cells are separated by {marks}; it is read all the same"
                table.findings.append((path, Finding("separator", words)))
        except (ValueError, OSError) as error:
            words = error_reason(error) if isinstance(error, OSError) else str(error).removeprefix(f"{path} ")
            table.findings.append((path, Finding("bad_row", words)))
    return table


def find_tables(files: Iterable[Path]) -> list[Path]:
    """Find the tables among the files of a folder: metadata files, and videos.txt with a list of prompts beside it."""
    return [path for path in files if path.name in METADATA or (path.name == VIDEO_LIST and find_prompt_list(path))]


def find_prompt_list(videos: Path) -> Path | None:
    """Find the list of prompts beside a list of videos."""
    return next((path for name in PROMPT_LISTS if (path := videos.with_name(name)).is_file()), None)


def read_paired_rows(videos: Path) -> Iterator[tuple[int, object]]:
    """Yield (line number, {file_name, text}) of a list of videos and the list of prompts beside it."""
    prompts = find_prompt_list(videos)
    assert prompts is not None, f"{videos} has no prompts"
    names, texts = (read_utf8(path).rstrip().splitlines() for path in (videos, prompts))
    if len(names) != len(texts):
        raise ValueError(f"{videos} has {len(names)} lines and {prompts.name} {len(texts)}; give a prompt a video")
    for number, (name, text) in enumerate(zip(names, texts, strict=True), start=1):
        yield number, {"file_name": name.strip(), "text": text}


def find_column(row: object, columns: Iterable[str]) -> str | None:
    """Find the first of several columns that a row has; None where it has none."""
    return next((column for column in columns if column in row), None) if isinstance(row, dict) else None


def take_caption(row: object, where: str) -> tuple[str, str]:
    """Return the file's name and the caption of a row; a ValueError where it lacks one."""
    name, text = (find_column(row, columns) for columns in (FILE_COLUMNS, TEXT_COLUMNS))
    cells = [row[column] for column in (name, text) if column is not None] if isinstance(row, dict) else []
    if len(cells) < 2 or not all(isinstance(cell, str) for cell in cells):
        raise ValueError(f"{where}: every row needs file_name and text, got {row}")
    return cells[0], cells[1]


def find_delimiter(path: Path) -> str:
    """Return what separates the cells of a .csv: where its first line has no comma, semicolons or tabs, as of Excel."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        header = file.readline()
    return next((mark for mark in (",", ";", TAB) if mark in header), ",")


def read_utf8(path: Path) -> str:
    """Read a text file in UTF-8, or in the UTF-16 that its byte order mark tells; a ValueError names any other file."""
    data = path.read_bytes()
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not encoded in UTF-8: {error}; save it as UTF-8") from None


def read_csv_rows(path: Path) -> Iterator[tuple[int, object]]:
    """Yield (number, {column: cell}) of each row; the number is that of the row's last line in the file."""
    separator = find_delimiter(path)
    reader = csv.DictReader(io.StringIO(read_utf8(path), newline=""), delimiter=separator)
    try:
        for row in reader:
            if None in row:  # DictReader files the surplus cells under None
                surplus = f"{row[None]}; put texts with {'tabs' if separator == TAB else repr(separator)} in quotes"
                raise ValueError(f"it has more cells than the table has columns: {surplus}")
            yield reader.line_num, row
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{path} row {reader.line_num}: {error}") from None


def read_jsonl_rows(path: Path) -> Iterator[tuple[int, object]]:
    """Yield (line number, JSON value) of each line that is neither blank nor a # comment."""
    for number, line in enumerate(read_utf8(path).split("\n"), start=1):
        if is_content(line):
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path} row {number}: it is not JSON: {error}") from None


def read_json_rows(path: Path) -> Iterator[tuple[int, object]]:
    """Yield (number, value) of each item of a JSON list, counted from 1."""
    try:
        rows = json.loads(read_utf8(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}; a file with an object a line is a .jsonl") from None
    if not isinstance(rows, list):
        raise ValueError(f"{path} must hold a JSON list of rows, got {type(rows).__name__}")
    yield from enumerate(rows, start=1)


def is_content(line: str) -> bool:
    """True if a line of a text file is neither blank nor a # comment."""
    return bool(line.strip()) and not line.lstrip().startswith("#")


def read_parquet_rows(path: Path) -> Iterator[tuple[int, object]]:
    """Yield (number, {column: value}) of each row, counted from 1."""
    try:
        import pyarrow.parquet  # type: ignore[import-not-found]
    except ImportError:
        raise ValueError(f"{path} needs pyarrow: pip install 'videogen[parquet]', or write a .csv instead") from None
    yield from enumerate(pyarrow.parquet.read_table(path).to_pylist(), start=1)


def read_rows(path: Path) -> Iterator[tuple[int, object]]:
    """Yield (number, row) of a table file, or (number, text) of each line of any other but blank ones and comments."""
    if (read := ROW_READERS.get(path.suffix.lower())) is not None:
        yield from read(path)
    else:
        lines = enumerate(read_utf8(path).splitlines(), start=1)
        yield from ((number, line.strip()) for number, line in lines if is_content(line))


ROW_READERS: dict[str, Callable[[Path], Iterator[tuple[int, object]]]] = {
    ".csv": read_csv_rows,
    ".tsv": read_csv_rows,
    ".json": read_json_rows,
    ".jsonl": read_jsonl_rows,
    ".parquet": read_parquet_rows,
}
"""Readers of table files by suffix. Their errors read "PATH row N: reason"."""
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
