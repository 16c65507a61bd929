"""Time a row of a sweep: a line appended, against tables that are written anew for every row.

    videogen bench rows  ->  assets/bench/rows.json

Both add rows to a sweep that has so many already, five in a turn; the result is medians and their ratio.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as parquet

from tests.bench.flags import make_parser, parse_flags
from tests.bench.machine import Rows, publish
from videogen.config.sample import SampleConfig
from videogen.sweep.plan import Run
from videogen.sweep.results import Row, add_row, align_columns, gather_rows, save_tables, settings_row

PROMPT = "a large red circle moves right on a black background"
SHARE = 5  # rows in a turn


def make_row(seed: int) -> Row:
    """Make a row with the columns of a sweep that measures against references."""
    run = Run(PROMPT, seed, SampleConfig())
    texts = {
        "clip": f"clips/steps=4,seed={seed}-{run.key}.mp4",
        "command": f"python sample.py '{PROMPT}' --seed {seed}",
    }
    seconds = {f"{name}_seconds": 1.234567 / (seed + 1) for name in ("text", "denoise", "decode", "total")}
    return settings_row(run) | texts | seconds | {"psnr_db": 31.4159, "ssim": 0.98765, "motion": 1.5, "error": None}


def rewrite_tables(folder: Path, row: Row) -> None:
    """Add a row as sweeps did before: read the Parquet table, and write it and the CSV with one more."""
    saved = parquet.read_table(folder / "results.parquet").to_pylist()
    save_tables(folder, align_columns([*saved, row]))


def measure(folder: Path, num_rows: int, rounds: int) -> dict[str, float]:
    """Measure the milliseconds of a row in a sweep of so many."""
    for seed in range(num_rows):
        add_row(folder, make_row(seed))
    gather_rows(folder)
    milliseconds: dict[str, list[float]] = {"tables written anew, ms": [], "line appended, ms": []}
    for i in range(rounds):
        for add, times in zip((rewrite_tables, add_row), milliseconds.values(), strict=True):
            # Several in a row: the first waits until the disk has what the other way wrote.
            for seed in range(num_rows + SHARE * i, num_rows + SHARE * (i + 1)):
                began = time.perf_counter()
                add(folder, make_row(seed))
                times.append(1000 * (time.perf_counter() - began))
    before, after = (statistics.median(times) for times in milliseconds.values())
    return {
        **dict(zip(milliseconds, (round(before, 2), round(after, 2)), strict=True)),
        "ratio": round(before / after, 1),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure sweeps of few and of many rows, and publish them."""
    parser = make_parser("rows", __doc__)
    parser.add_argument("--rows", type=int, nargs="*", default=(100, 3000), help="rows that a sweep has already")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each way")
    args = parse_flags(parser, argv, {"rows": (10,), "rounds": 2})
    rows: Rows = {}
    for num_rows in args.rows:
        with tempfile.TemporaryDirectory(dir=".") as folder:  # on a disk: /tmp may be memory
            rows[f"{num_rows:,} rows"] = measure(Path(folder), num_rows, args.rounds)
    publish(args.out, {"a row": rows})


if __name__ == "__main__":
    main()
