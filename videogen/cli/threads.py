"""Choose how many threads a CPU computes with, and how they wait for each other; before torch is loaded.

affinity, cgroup quota, environment  ->  OMP_WAIT_POLICY, OMP_NUM_THREADS

Threads that spin while they wait take the core that another process would give back: beside one busy process, two of
them are 4 times as slow as one (videogen bench busy).
"""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

SPIN_COUNT = "1000"
"""Turns that GNU's threads wait before they sleep: as fast as spinning where nothing else runs, and beside a busy
process 1.2 times the time of one thread (assets/LOG.md)."""
WAITING_SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def prepare_threads(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let threads sleep while they wait, and take no more of them than may run at a time.

    A user's own settings stay. It does nothing once torch is loaded, which reads the settings only then.
    """
    if "torch" in sys.modules:
        return
    if not any(name in environment for name in WAITING_SETTINGS):
        environment["OMP_WAIT_POLICY"] = "passive"
        environment["GOMP_SPINCOUNT"] = SPIN_COUNT
    num_cores = count_usable_cores()
    # Torch's own choice, one thread a physical core, is right where all cores may be used.
    if num_cores < (os.cpu_count() or 1):
        environment.setdefault("OMP_NUM_THREADS", str(num_cores))


def count_usable_cores() -> int:
    """Count the cores that this process may run on at a time, by its affinity and by the quota of its cgroup."""
    # macOS and Windows have no affinity to ask for.
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(num_cores, cgroup_quota())))


def cgroup_quota(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> float:
    """Read how many cores' time the process's control groups allow, the least of them; infinity without a limit."""
    quotas = [float("inf")]
    lines = membership.read_text(encoding="utf-8").splitlines() if membership.is_file() else []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # Version 2 has no controllers here and one hierarchy; version 1 mounts that of the processor apart. A group
        # is bound by those above it, and within a container its own path may be missing.
        top = root / controllers if controllers else root
        group = top / path.lstrip("/")
        for folder in [group, *group.parents]:
            quotas.append(read_quota(folder))
            if folder == top:
                break
    return min(quotas)


def read_quota(folder: Path) -> float:
    """Read the quota of one control group, in cores; infinity if it has none."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        else:
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            quota, period = ((folder / name).read_text(encoding="utf-8").strip() for name in names)
        return float(quota) / float(period) if float(quota) > 0 else float("inf")
    except (OSError, ValueError):  # no such file, or "max"
        return float("inf")
