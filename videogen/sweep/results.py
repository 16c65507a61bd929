"""Save the rows of a sweep as results.parquet and results.csv, complete after every row.

    row: dict of plain values  ->  add_row  ->  both files, written to a temporary file and renamed

Where several processes share a sweep, each writes results.<rank>.parquet, and the first gathers them at the end.
"""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from videogen.config.parsing import to_mapping
from videogen.data.files import atomic_file, error_reason, save_text

if TYPE_CHECKING:
    from types import ModuleType

    from videogen.sweep.plan import Plan, Run

logger = logging.getLogger(__name__)
Row = dict[str, object]
NUMBERS = ("_seconds", "_gb", "_db")


def add_row(folder: Path, row: Row, rank: int = 0) -> None:
    """Add a row to a process's files, in place of the row of an earlier attempt."""
    stem = "results" if rank == 0 else f"results.{rank}"
    rows = {str(saved["key"]): saved for saved in read_parquet(folder / f"{stem}.parquet")}
    save_rows(folder, stem, {**rows, str(row["key"]): row}.values())


def save_rows(folder: Path, stem: str, rows: Iterable[Row]) -> None:
    """Write both files; a kill between the two leaves the CSV one row behind until the next row."""
    rows = align_columns(rows)
    write_parquet(folder / f"{stem}.parquet", rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: quote_formula(value) for name, value in row.items()} for row in rows)
    save_text(folder / f"{stem}.csv", text.getvalue())


def quote_formula(value: object) -> object:
    """Put an apostrophe before a text that a spreadsheet would run as a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def read_rows(folder: Path) -> dict[str, Row]:
    """Read the rows of all processes by key; a run that worked wins over one that failed."""
    rows: dict[str, Row] = {}
    for path in sorted(folder.glob("results*.parquet")):
        for row in read_parquet(path):
            if (key := str(row["key"])) not in rows or not row.get("error"):
                rows[key] = row
    return rows


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
    """Gather the rows of all processes in results.parquet and results.csv, in the order of the given keys."""
    place = {key: i for i, key in enumerate(order)}
    saved = read_rows(folder)
    rows = align_columns(saved[key] for key in sorted(saved, key=lambda key: place.get(key, len(place))))
    if rows:
        save_rows(folder, "results", rows)
    for path in folder.glob("results.[0-9]*.*"):
        path.unlink()
    return rows


def align_columns(rows: Iterable[Row]) -> list[Row]:
    """Give all rows the columns of any of them, in the order of first appearance, with error last."""
    rows = list(rows)
    columns = list(dict.fromkeys(key for row in rows for key in row if key != "error"))
    return [{key: row.get(key) for key in [*columns, "error"]} for row in rows]


def import_pyarrow() -> tuple[ModuleType, ModuleType]:
    """Import pyarrow and its Parquet module; a ValueError says how to install them."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError("a sweep writes Parquet and needs pyarrow: pip install 'videogen[sweep]'") from None
    return pyarrow, pyarrow.parquet


def read_parquet(path: Path) -> list[Row]:
    """Read the rows of a Parquet file, none if there is no such file; what is damaged is left out, and made again."""
    pyarrow, parquet = import_pyarrow()
    try:
        rows = parquet.read_table(path).to_pylist() if path.is_file() else []
    except (pyarrow.ArrowException, OSError) as error:
        logger.warning("%s is damaged, and its rows are made again: %s", path, error_reason(error))
        return []
    whole = [row for row in rows if has_types(row)]
    if len(whole) < len(rows):
        logger.warning("%d rows of %s are damaged and are made again", len(rows) - len(whole), path)
    return whole


def has_types(row: Row) -> bool:
    """True if a row has a key, texts where texts stand and numbers where numbers stand."""
    texts = [row.get(name) for name in ("clip", "reference", "error")]
    numbers = [value for name, value in row.items() if name.endswith(NUMBERS)]
    return (
        isinstance(row.get("key"), str)
        and all(value is None or isinstance(value, str) for value in texts)
        and all(value is None or isinstance(value, int | float) for value in numbers)
    )


def write_parquet(path: Path, rows: Sequence[Row]) -> None:
    """Write rows atomically."""
    pyarrow, parquet = import_pyarrow()
    with atomic_file(path) as part:
        parquet.write_table(pyarrow.Table.from_pylist(list(rows)), part)
