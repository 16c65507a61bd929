"""Look how busy the machine is before a measurement, and refuse to share it.

/proc at two moments  ->  Load: cores, those that are busy, the busy processes
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
MAX_BUSY = 1.0  # cores; what is measured in one thread still has another for itself
MIN_SHARE = 0.1  # of a core, from which on a process is named
NUM_NAMED, NAME_LENGTH = 5, 60
IDLE, WAITING, GUEST = 3, 4, 8  # fields of a line of /proc/stat; the time of guests is in that of users as well


class Load(NamedTuple):
    """How busy the machine is: with everything but this process, and None where the system does not say."""

    cores: int
    busy: float | None
    last_minute: float | None
    processes: dict[str, float]  # cores that each keeps busy, the busiest first

    def __str__(self) -> str:
        busy = "unknown" if self.busy is None else f"{self.busy:.1f}"
        minute = "" if self.last_minute is None else f", load of the last minute {self.last_minute:.1f}"
        return f"{self.cores} cores, busy {busy}{minute}{self.names}"

    @property
    def names(self) -> str:
        """The busy processes, as the end of a sentence."""
        return "".join(f"; {name}: {share:.1f}" for name, share in self.processes.items())


def read_core_ticks(proc: Path) -> tuple[int, int]:
    """Read how long all cores were busy since the start, and how long they were there, in ticks; zeros if unknown."""
    if not (proc / "stat").is_file():
        return 0, 0
    ticks = [int(word) for word in (proc / "stat").read_text(encoding="ascii").splitlines()[0].split()[1:]]
    total = sum(ticks[:GUEST])
    return total - ticks[IDLE] - ticks[WAITING], total


def read_process_ticks(proc: Path) -> dict[Path, int]:
    """Read how long every other process was busy since its start, in ticks."""
    ticks = {}
    for folder in proc.glob("[0-9]*"):
        try:
            # The name in brackets may hold spaces and brackets of its own.
            fields = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:  # it has ended since
            continue
        if folder.name != str(os.getpid()):
            ticks[folder] = int(fields[11]) + int(fields[12])  # for itself, and for it in the kernel
    return ticks


def process_name(folder: Path) -> str:
    """Read a process's command, shortened."""
    try:
        words = (folder / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ").split()
    except OSError:
        words = []
    return f"{' '.join(words)[:NAME_LENGTH]} ({folder.name})"


def measure_load(seconds: float = 0.5, proc: Path = PROC) -> Load:
    """Measure how busy the machine is over some seconds."""
    busy_before, total_before = read_core_ticks(proc)
    before = read_process_ticks(proc)
    time.sleep(seconds)
    busy_ticks, ticks = (
        now - then for now, then in zip(read_core_ticks(proc), (busy_before, total_before), strict=True)
    )
    cores = os.cpu_count() or 1
    if not ticks:
        return Load(cores, None, last_minute(), {})
    shares = {
        folder: cores * (now - before[folder]) / ticks
        for folder, now in read_process_ticks(proc).items()
        if folder in before
    }
    busiest = sorted((folder for folder in shares if shares[folder] >= MIN_SHARE), key=lambda x: -shares[x])[:NUM_NAMED]
    named = {process_name(folder): shares[folder] for folder in busiest}
    return Load(cores, cores * busy_ticks / ticks, last_minute(), named)


def last_minute() -> float | None:
    """Return the processes that wanted to run in the last minute, on average; Windows does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def check_load(load: Load, *, anyway: bool) -> None:
    """Print the load, and refuse to measure beside more than one busy core unless it is asked for."""
    print(f"before the measurement: {load}", file=sys.stderr)
    if not anyway and load.busy is not None and round(load.busy, 1) > MAX_BUSY:
        raise ValueError(
            f"{load.busy:.1f} of {load.cores} cores are busy, and a measurement may share at most {MAX_BUSY:g}; "
            f"wait until they are free, or give --busy to measure all the same{load.names}"
        )
