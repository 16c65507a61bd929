"""Save the rows of a sweep as results.parquet and results.csv, complete after every row.

    row: dict of plain values  ->  add_row  ->  both files, written to a temporary file and renamed

Where several processes share a sweep, each writes results.<rank>.parquet, and the first gathers them at the end.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from videogen.data.files import atomic_file, save_text

if TYPE_CHECKING:
    from types import ModuleType

    from videogen.sweep.plan import Plan, Run

Row = dict[str, object]


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
    writer.writerows(rows)
    save_text(folder / f"{stem}.csv", text.getvalue())


def read_rows(folder: Path) -> dict[str, Row]:
    """Read the rows of all processes by key; a run that worked wins over one that failed."""
    rows: dict[str, Row] = {}
    for path in sorted(folder.glob("results*.parquet")):
        for row in read_parquet(path):
            if (key := str(row["key"])) not in rows or not row.get("error"):
                rows[key] = row
    return rows


def unfinished_runs(folder: Path, plan: Plan, runs: Sequence[Run] | None = None) -> list[Run]:
    """List the runs of a plan that have no row yet, failed, or were not compared with the plan's reference."""
    rows = read_rows(folder).items()
    done = {key for key, row in rows if not row.get("error") and (row.get("reference") or not plan.reference_steps)}
    return [run for run in (plan.runs() if runs is None else runs) if run.key not in done]


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
    """Read the rows of a Parquet file; none if there is no such file."""
    _, parquet = import_pyarrow()
    return parquet.read_table(path).to_pylist() if path.is_file() else []


def write_parquet(path: Path, rows: Sequence[Row]) -> None:
    """Write rows atomically."""
    pyarrow, parquet = import_pyarrow()
    with atomic_file(path) as part:
        parquet.write_table(pyarrow.Table.from_pylist(list(rows)), part)
