"""Print and write the results of a measurement, with the machine that it ran on.

sections of a bench  ->  printed tables, a result file with machine and date
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from datetime import date
from pathlib import Path

import torch

Rows = dict[str, dict[str, float]]


def processor_name() -> str:
    """Read the name of this machine's processor."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    line = next((line for line in info if line.startswith("model name")), platform.processor())
    return line.split(":")[-1].strip()


def set_num_threads() -> None:
    """Give torch as many threads as OMP_NUM_THREADS says, or else as there are cores."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))


def format_table(rows: Rows) -> str:
    """Format rows under their column names."""
    columns = list(next(iter(rows.values())))
    lines = [f"{'':36}" + "".join(f"{column:>24}" for column in columns)]
    lines += [f"{name:36}" + "".join(f"{row[column]:>24}" for column in columns) for name, row in rows.items()]
    return "\n".join(lines) + "\n"


def publish(path: Path | None, sections: Mapping[str, Rows]) -> None:
    """Print the sections as tables, and write them to a result file, if there is to be one."""
    for title, rows in sections.items():
        print(title, format_table(rows), sep="\n")
    threads = torch.get_num_threads()
    machine = f"{processor_name()}, {threads} of {os.cpu_count()} cores, torch {torch.__version__}"
    write_json(path, {"machine": machine, "date": date.today().isoformat(), **sections})


def write_json(path: Path | None, result: Mapping[str, object]) -> None:
    """Write a result file, if there is to be one: --small has none."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
