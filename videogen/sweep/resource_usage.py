"""Measure the time and the memory that a run takes, on CPU and GPU.

device  ->  seconds that count finished work only, peak memory in GB
"""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path

import torch


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has finished its queued work, so that a clock measures that work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def reset_peak_memory(device: torch.device) -> None:
    """Restart the measurement of peak memory, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif (switch := Path("/proc/self/clear_refs")).exists():
        try:
            switch.write_text("5", encoding="ascii")
        except OSError:  # A container may forbid it; the peak is then that of the whole process so far.
            return


def peak_memory_gb(device: torch.device) -> float:
    """Return the most memory in use since reset_peak_memory: the GPU's, or the process's own."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    status = Path("/proc/self/status")
    if status.exists() and (peak := re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="ascii"))):
        return int(peak[1]) * 1024 / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
