"""The rows of a sweep on disk: results.parquet and results.csv, whole after every row.

    row: dict of plain values  ->  add_row  ->  both files, written beside and renamed

Where several processes share a sweep, each writes results.<rank>.parquet, and the first gathers them when all are done.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from videogen.data.files import save_text

if TYPE_CHECKING:
    from types import ModuleType

    from videogen.sweep.plan import Plan, Run

Row = dict[str, object]


def add_row(folder: Path, row: Row, rank: int = 0) -> None:
    """Put a row into a process's files, in place of that of an earlier attempt."""
    stem = "results" if rank == 0 else f"results.{rank}"
    rows = {str(found["key"]): found for found in read_parquet(folder / f"{stem}.parquet")}
    save_rows(folder, stem, {**rows, str(row["key"]): row}.values())


def save_rows(folder: Path, stem: str, rows: Iterable[Row]) -> None:
    """Write both files; a kill between the two leaves the CSV one row behind until the next."""
    rows = level(rows)
    write_parquet(folder / f"{stem}.parquet", rows)
    save_text(folder / f"{stem}.csv", to_csv(rows))


def read_rows(folder: Path) -> dict[str, Row]:
    """All rows of a folder by key, whichever process wrote them; a run that worked wins over one that did not."""
    rows: dict[str, Row] = {}
    for path in sorted(folder.glob("results*.parquet")):
        for row in read_parquet(path):
            if (key := str(row["key"])) not in rows or not row.get("error"):
                rows[key] = row
    return rows


def unfinished(folder: Path, plan: Plan, runs: Sequence[Run] | None = None) -> list[Run]:
    """Those of a plan's runs that have no row yet, one that says why they failed, or one without its reference."""
    rows = read_rows(folder).items()
    done = {key for key, row in rows if not row.get("error") and (row.get("reference") or not plan.reference_steps)}
    return [run for run in (plan.runs() if runs is None else runs) if run.key not in done]


def gather(folder: Path, order: Sequence[str] = ()) -> list[Row]:
    """Bring the rows of all processes into results.parquet and results.csv, in the order of the given keys."""
    place = {key: i for i, key in enumerate(order)}
    found = read_rows(folder)
    rows = level(found[key] for key in sorted(found, key=lambda key: place.get(key, len(place))))
    if rows:
        save_rows(folder, "results", rows)
    for path in folder.glob("results.[0-9]*.*"):
        path.unlink()
    return rows


def level(rows: Iterable[Row]) -> list[Row]:
    """Rows with all columns of any of them, in the order of first appearance, error last."""
    rows = list(rows)
    columns = list(dict.fromkeys(key for row in rows for key in row if key != "error"))
    return [{key: row.get(key) for key in [*columns, "error"]} for row in rows]


def to_csv(rows: Sequence[Row]) -> str:
    """Rows as CSV text."""
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def arrow() -> tuple[ModuleType, ModuleType]:
    """pyarrow and its Parquet module, or a sentence where they are missing."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError("a sweep writes Parquet and needs pyarrow: pip install 'videogen[sweep]'") from None
    return pyarrow, pyarrow.parquet


def read_parquet(path: Path) -> list[Row]:
    """The rows of a Parquet file; none where there is no file."""
    _, parquet = arrow()
    return parquet.read_table(path).to_pylist() if path.is_file() else []


def write_parquet(path: Path, rows: Sequence[Row]) -> None:
    """Write beside and rename."""
    pyarrow, parquet = arrow()
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        parquet.write_table(pyarrow.Table.from_pylist(list(rows)), part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
