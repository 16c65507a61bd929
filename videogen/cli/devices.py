"""Choose the device that a command computes on, and refuse one that the machine lacks.

--device auto|cpu|cuda[:N]|mps|xpu[:N]  ->  cpu, cuda, cuda:1, ...
"""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path

logger = logging.getLogger(__name__)
NAME = re.compile(r"auto|cpu|mps|(?:cuda|xpu)(?::\d+)?")
NEEDS = {
    "cuda": "an NVIDIA or AMD GPU and a build of torch for it",
    "mps": "an Apple GPU",
    "xpu": "an Intel GPU and a build of torch for it",
}
DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd", "/dev/dri")  # of NVIDIA, of any in WSL, of AMD, of Intel


def check_device_name(device: str) -> None:
    """Refuse what is no name of a device, before torch is imported."""
    if NAME.fullmatch(device) is None:
        raise ValueError(f"--device must be auto, cpu, cuda, cuda:1 (or another number), mps or xpu, got {device!r}")


def may_have_accelerator() -> bool:
    """True unless this is a Linux without the driver of any GPU, where torch need not be asked."""
    return sys.platform != "linux" or any(Path(driver).exists() for driver in DRIVERS)


def resolve_device(device: str, recorded: object = None) -> str:
    """Choose the device that "auto" stands for: the machine's accelerator, which is said once, or else the CPU.

    A clip that was made on a CPU is made again on one, whatever else there is: only there it is the same to the byte.
    """
    check_device_name(device)
    if device == "auto":
        device = "cpu" if recorded == "cpu" else find_accelerator()
        if device != "cpu":
            print(f"note: computing on {device}; --device cpu computes on the CPU", file=sys.stderr)
    logger.info("device: %s", device)
    return device


def find_accelerator() -> str:
    """Return the kind of accelerator that torch can use here, cpu where it finds none."""
    if not may_have_accelerator():
        return "cpu"
    import torch

    found = torch.accelerator.current_accelerator(check_available=True)
    return found.type if found is not None and found.type in NEEDS else "cpu"


def check_device(device: str) -> None:
    """Refuse a device that this machine lacks."""
    if device == "cpu":  # only another is asked of torch, which takes a second to import
        return
    import torch

    kind, _, index = device.partition(":")
    if not {"cuda": torch.cuda, "mps": torch.backends.mps, "xpu": torch.xpu}[kind].is_available():
        raise ValueError(f"--device {device} needs {NEEDS[kind]}, and finds none; use --device cpu")
    if index and int(index) >= (num := getattr(torch, kind).device_count()):
        raise ValueError(f"--device {device} is not there: this machine has {num}, from {kind}:0 to {kind}:{num - 1}")
