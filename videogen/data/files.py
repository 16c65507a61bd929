"""Write files and folders atomically (write beside, then rename), hash them, and list them.

tensors, path  ->  path.safetensors;  a finished folder.part  ->  folder
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

MAX_FULLY_HASHED_BYTES = 2**28
"""Larger files are hashed by samples: reading all of a 14B model would take longer than loading it."""
NUM_SAMPLES, SAMPLE_BYTES = 1000, 2**14


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a .safetensors file atomically; a full disk raises an OSError that names the file, and leaves no part."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, part, metadata)
        part.replace(path)
    except (SafetensorError, OSError) as error:
        raise OSError(f"could not write {path}: {error}") from error
    finally:
        part.unlink(missing_ok=True)


def save_text(path: Path, text: str) -> None:
    """Write a small text file atomically."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def content_id(path: Path) -> str:
    """Hash a file, or the configs and weights of a folder, to 16 hexadecimal digits."""
    if path.is_file():
        return file_digest(path).hex()[:16]
    digest = hashlib.sha256()
    for part in sorted(p for p in path.rglob("*") if p.suffix in (".json", ".safetensors")):
        digest.update(part.relative_to(path).as_posix().encode())
        digest.update(file_digest(part))
    return digest.hexdigest()[:16]


def file_digest(path: Path) -> bytes:
    """Hash a file with SHA-256: its content, or for a large file its size and a thousand samples, header first."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= MAX_FULLY_HASHED_BYTES:
            return hashlib.file_digest(file, "sha256").digest()
        digest = hashlib.sha256(str(size).encode())
        for i in range(NUM_SAMPLES):
            file.seek((size - SAMPLE_BYTES) * i // (NUM_SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
        return digest.digest()


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder beside `folder` to write into; it replaces `folder` on success and is removed on an error.

    A kill between the two renames leaves the previous folder as `folder.old`; otherwise one of the two is in place.
    """
    part, old = (folder.with_name(folder.name + suffix) for suffix in (".part", ".old"))
    shutil.rmtree(part, ignore_errors=True)  # A write that was killed leaves one.
    part.mkdir(parents=True)
    try:
        yield part
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def error_reason(error: Exception) -> str:
    """Return the last line of an error's message, or the name of its class if it has none."""
    message = getattr(error, "strerror", None) or str(error)
    return (message.strip().splitlines() or [type(error).__name__])[-1]


def walk_files(folder: Path) -> Iterator[Path]:
    """Yield all files of a folder and its sub-folders, following links; a folder reached twice is listed once."""
    visited = set[str]()
    for parent, folders, names in os.walk(folder, followlinks=True):
        if (real_path := os.path.realpath(parent)) in visited:
            folders.clear()
            continue
        visited.add(real_path)
        yield from (Path(parent) / name for name in names)
