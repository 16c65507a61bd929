"""Files and folders that are whole or not there: written beside, then renamed.

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

HASHED_WHOLE = 2**28
"""Bytes up to which a file is hashed whole: reading all of a 14B model would take longer than loading it."""
NUM_SAMPLES, SAMPLE_BYTES = 1000, 2**14


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write .safetensors; a full disk is an OSError that names the file, and leaves nothing."""
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
    """Write a small text file at once."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def content_id(path: Path) -> str:
    """What a file, or a folder's configs and weights, are known by: 16 hexadecimal digits of a hash."""
    if path.is_file():
        return file_digest(path).hex()[:16]
    digest = hashlib.sha256()
    for part in sorted(p for p in path.rglob("*") if p.suffix in (".json", ".safetensors")):
        digest.update(part.relative_to(path).as_posix().encode())
        digest.update(file_digest(part))
    return digest.hexdigest()[:16]


def file_digest(path: Path) -> bytes:
    """A hash of a file: of all of it, or of a large one's size and a thousand samples, the first its header."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= HASHED_WHOLE:
            return hashlib.file_digest(file, "sha256").digest()
        digest = hashlib.sha256(str(size).encode())
        for i in range(NUM_SAMPLES):
            file.seek((size - SAMPLE_BYTES) * i // (NUM_SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
        return digest.digest()


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder beside to write into, which takes the place of `folder` when all went well and is gone when not.

    A kill between the two renames leaves the old one as `folder.old`; everything else leaves one of the two in place.
    """
    part, old = (folder.with_name(folder.name + suffix) for suffix in (".part", ".old"))
    shutil.rmtree(part, ignore_errors=True)  # of a write that was killed
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


def reason(error: Exception) -> str:
    """The last line of what an error says."""
    text = getattr(error, "strerror", None) or str(error)
    return (text.strip().splitlines() or [type(error).__name__])[-1]


def files_in(folder: Path) -> Iterator[Path]:
    """All files of a folder, those of linked sub-folders too, each folder once."""
    seen = set[str]()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(place) / name for name in names)
