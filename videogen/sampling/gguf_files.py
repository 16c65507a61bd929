"""Check the .gguf files of a command before anything is loaded.

paths, CheckpointInfo  ->  the transformers that they replace, or a ValueError
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from videogen.models.checkpoint_config import CheckpointInfo

TRANSFORMERS = ("transformer", "transformer_2")


def transformers_of(info: CheckpointInfo, quantise: str, gguf: Sequence[Path]) -> list[str]:
    """List the transformers of a checkpoint; a ValueError where the options do not go with them."""
    parts = [part for part in TRANSFORMERS if part in info.components]
    if gguf and quantise != "none":
        raise ValueError(f"the weights of a .gguf are quantised already; leave --quantise {quantise} out")
    if gguf and len(gguf) != len(parts):
        raise ValueError(f"{info.folder} has {len(parts)} transformers, got {len(gguf)} .gguf files; give one for each")
    return parts


def check_gguf(path: Path) -> None:
    """Refuse a .gguf that does not exist, and any where its reader is not installed."""
    require("gguf", "--gguf")
    if not path.is_file() or path.suffix.lower() != ".gguf":
        raise ValueError(f"there is no .gguf file {path}; give one of a Wan transformer")


def require(package: str, flag: str) -> None:
    """Refuse a flag whose package is not installed."""
    if find_spec(package) is None:
        raise ValueError(
            f"{flag} needs {package}, which is not installed: pip install {package}, or leave the flag out"
        )
