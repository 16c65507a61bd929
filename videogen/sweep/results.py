"""Keep the rows of a sweep: a line of JSON is appended for each, by any process, and tables are written at the end.

    row: dict of plain values  ->  add_row  ->  results.jsonl  ->  gather_rows  ->  results.csv, results.parquet

A sweep resumes from the lines; of several with the key of a run the last counts. A line that a kill left half-written
is made again. The Parquet table is written where pyarrow is installed.
"""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from videogen.config.parsing import to_mapping
from videogen.data.files import atomic_file, error_reason, save_text, sync

if TYPE_CHECKING:
    from videogen.sweep.plan import Plan, Run

logger = logging.getLogger(__name__)
Row = dict[str, object]
NUMBERS = ("_seconds", "_gb", "_db")
ROWS = "results.jsonl"


def add_row(folder: Path, row: Row) -> None:
    """Append a row, which takes the place of that of an earlier attempt; it is on disk when this returns."""
    path = folder / ROWS
    with FileLock(folder / ".results.lock"):  # network file systems let two processes append at the same place
        adopt_old_rows(folder)
        with path.open("a+b") as file:
            if file.tell():
                file.seek(-1, io.SEEK_END)
                if file.read(1) != b"\n":  # a kill, or a full disk, has cut the last line
                    file.write(b"\n")
            file.write(f"{json.dumps(row)}\n".encode())
        sync(path)


def save_tables(folder: Path, rows: Sequence[Row]) -> None:
    """Write rows of the same columns as CSV, and as Parquet where pyarrow is installed."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: quote_formula(value) for name, value in row.items()} for row in rows)
    save_text(folder / "results.csv", text.getvalue())
    path = folder / "results.parquet"
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        path.unlink(missing_ok=True)  # of an earlier call, and it lacks rows
        return
    with atomic_file(path) as part:
        parquet.write_table(pyarrow.Table.from_pylist(rows), part)


def quote_formula(value: object) -> object:
    """Put an apostrophe before a text that a spreadsheet would run as a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def read_rows(folder: Path) -> dict[str, Row]:
    """Read the rows by key, in the order in which their runs were first made, all with the same columns."""
    path = folder / ROWS
    rows = {str(row["key"]): row for row in (read_lines(path) if path.is_file() else read_old_rows(folder))}
    return dict(zip(rows, align_columns(rows.values()), strict=True))


def read_lines(path: Path) -> Iterator[Row]:
    """Yield the whole rows of a file; what is damaged is left out, and made again."""
    num_damaged = 0
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and has_types(row):
            yield row
        else:
            num_damaged += bool(line.strip())
    if num_damaged:
        logger.warning("%d lines of %s are damaged, and their rows are made again", num_damaged, path)


def adopt_old_rows(folder: Path) -> None:
    """Write the rows of a sweep that kept them in Parquet as lines, to which others can be appended."""
    path = folder / ROWS
    if not path.exists() and (rows := read_rows(folder)):
        save_text(path, "".join(f"{json.dumps(row)}\n" for row in rows.values()))


def read_old_rows(folder: Path) -> Iterator[Row]:
    """Yield the rows of a sweep that kept them in Parquet, a table a process; a ValueError says what reads them."""
    paths = sorted(folder.glob("results*.parquet"))
    if not paths:
        return
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise ValueError(
            f"{paths[0]} holds the rows of a sweep by an earlier version; pip install 'videogen[parquet]' to go on "
            "with it, or add --overwrite to begin anew"
        ) from None
    rows: list[Row] = []
    for path in paths:
        try:
            rows += parquet.read_table(path).to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            logger.warning("%s is damaged, and its rows are made again: %s", path, error_reason(error))
    whole = [row for row in rows if has_types(row)]
    if len(whole) < len(rows):
        logger.warning("%d rows of %s are damaged and are made again", len(rows) - len(whole), folder)
    yield from sorted(whole, key=lambda row: not row.get("error"))  # of two processes, what worked counts


def unfinished_runs(folder: Path, plan: Plan, runs: Sequence[Run] | None = None) -> list[Run]:
    """List the runs of a plan that have no whole row yet, failed, or were not compared with the plan's reference."""
    rows = read_rows(folder)
    return [
        run for run in (plan.runs() if runs is None else runs) if not is_done(rows.get(run.key, {}), run, folder, plan)
    ]


def is_done(row: Row, run: Run, folder: Path, plan: Plan) -> bool:
    """True if a row is that of a run, with its clip and its reference."""
    files = [row.get("clip"), *([row.get("reference")] if plan.reference_steps else [])]
    return (
        not row.get("error")
        and all(name and (folder / str(name)).is_file() for name in files)
        and row.items() >= settings_row(run).items()
    )


def settings_row(run: Run) -> Row:
    """Return a run's settings as the columns of its row."""
    settings = {name: json.dumps(v) if isinstance(v, list) else v for name, v in to_mapping(run.config).items()}
    return {"key": run.key, "prompt": run.prompt, "seed": run.seed, **settings}


def gather_rows(folder: Path, order: Sequence[str] = ()) -> list[Row]:
    """Write the tables of all rows, in the order of the given keys."""
    adopt_old_rows(folder)
    for old in folder.glob("results.[0-9]*.*"):  # the tables that each process had
        old.unlink()
    place = {key: i for i, key in enumerate(order)}
    saved = read_rows(folder)
    rows = [saved[key] for key in sorted(saved, key=lambda key: place.get(key, len(place)))]
    if rows:
        save_tables(folder, rows)
    return rows


def align_columns(rows: Iterable[Row]) -> list[Row]:
    """Give all rows the columns of any of them, in the order of first appearance, with error last."""
    rows = list(rows)
    columns = list(dict.fromkeys(key for row in rows for key in row if key != "error"))
    return [{key: row.get(key) for key in [*columns, "error"]} for row in rows]


def has_types(row: Row) -> bool:
    """True if a row has a key, texts where texts stand and numbers where numbers stand."""
    texts = [row.get(name) for name in ("clip", "reference", "error")]
    numbers = [value for name, value in row.items() if name.endswith(NUMBERS)]
    return (
        isinstance(row.get("key"), str)
        and all(value is None or isinstance(value, str) for value in texts)
        and all(value is None or isinstance(value, int | float) for value in numbers)
    )
