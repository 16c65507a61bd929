"""LoRA files as the command line names them.

"low:style.safetensors=0.8"  ->  Lora(path, scale, expert)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Lora(NamedTuple):
    """A LoRA's file or folder, how much of it, and of two experts that for high or low noise; empty: there is one."""

    path: Path
    scale: float
    expert: str


def read_lora(word: str) -> Lora:
    """ "low:style.safetensors=0.8" -> a LoRA, all of it if no scale is said; a ValueError where it is not there."""
    name, _, scale = word.rpartition("=") if re.search(r"=[-+.\d]+$", word) else (word, "", "1")
    expert, _, path = name.partition(":") if name.startswith(("high:", "low:")) else ("", "", name)
    if not Path(path).exists():
        raise ValueError(f"there is no LoRA {path}; give a .safetensors file or its folder, =SCALE behind it")
    return Lora(Path(path), float(scale), expert)


def check_experts(loras: Sequence[Lora], *, two: bool) -> None:
    """Refuse LoRAs that do not say which of two experts they are for, or say it of one."""
    for path, _, expert in loras:
        if two and not expert:
            raise ValueError(f"this model has two experts: say --lora high:{path} or low:{path}, for high or low noise")
        if expert and not two:
            raise ValueError(f"this model has one transformer; leave {expert}: out before {path}")
