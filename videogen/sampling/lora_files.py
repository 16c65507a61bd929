"""Read LoRA files as the command line names them.

"low:style.safetensors=0.8"  ->  Lora(path, scale, expert)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Lora(NamedTuple):
    """A LoRA's file or folder, its scale, and which of two experts it is for: high or low noise, empty for one."""

    path: Path
    scale: float
    expert: str


def read_lora(text: str) -> Lora:
    """Read "low:style.safetensors=0.8", the scale 1 by default; a ValueError where the file does not exist."""
    name, _, scale = text.rpartition("=") if re.search(r"=[-+.\d]+$", text) else (text, "", "1")
    expert, _, path = name.partition(":") if name.startswith(("high:", "low:")) else ("", "", name)
    if not Path(path).exists():
        raise ValueError(f"there is no LoRA {path}; give a .safetensors file or its folder, =SCALE behind it")
    return Lora(Path(path), float(scale), expert)


def check_experts(loras: Sequence[Lora], *, two: bool) -> None:
    """Refuse LoRAs that do not name their expert where there are two, or that name one where there is one."""
    for path, _, expert in loras:
        if two and not expert:
            raise ValueError(f"this model has two experts: say --lora high:{path} or low:{path}, for high or low noise")
        if expert and not two:
            raise ValueError(f"this model has one transformer; leave {expert}: out before {path}")
