"""Write down the hashes of a folder's files and of a file's tensors, and check them when they are loaded.

    folder  ->  manifest.json: size and SHA-256 of every file  ->  nothing, or a ValueError that names the damaged file
    tensors  ->  .safetensors with their hash  ->  tensors

What has no hash is loaded as it is: the folders of other programs, and what earlier versions wrote.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from videogen.data.files import MANIFEST, save_tensors, save_text
from videogen.data.json_files import read_json_object

if TYPE_CHECKING:
    from torch import Tensor

HASH_KEY = "sha256"


def write_manifest(folder: Path) -> None:
    """Write manifest.json, with the size and the hash of every other file of a folder and its sub-folders."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    with ThreadPoolExecutor() as pool:
        entries = {
            path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, HASH_KEY: digest}
            for path, digest in zip(paths, pool.map(hash_file, paths), strict=True)
        }
    save_text(folder / MANIFEST, json.dumps({"files": entries}, indent=2) + "\n")


def check_manifest(folder: Path, *, only: Collection[str] = (), skip: Collection[str] = ()) -> None:
    """Raise a ValueError that names the first damaged file of a folder; one without a manifest passes.

    `only` and `skip` name sub-folders: the files of no other, or of all others, are read.
    """
    if fault := find_fault(folder, only=only, skip=skip):
        raise ValueError(
            f"{fault}; save or copy the folder again, or remove {folder / MANIFEST} if the change was meant"
        )


def find_fault(folder: Path, *, only: Collection[str] = (), skip: Collection[str] = ()) -> str:
    """Describe the first file of a folder that is not as its manifest says; empty if all are."""
    if not (folder / MANIFEST).exists():
        return ""
    try:
        values = read_json_object(folder / MANIFEST, max_bytes=2**28)
        listed = {
            str(name): (int(entry["bytes"]), str(entry[HASH_KEY]))
            for name, entry in values["files"].items()  # type: ignore[attr-defined]
        }
    except (ValueError, TypeError, KeyError, AttributeError):
        return f"{folder / MANIFEST} is damaged: it is no list of files with their sizes and hashes"
    wanted = {
        folder / name: entry
        for name, entry in sorted(listed.items())
        if (not only or name.partition("/")[0] in only) and name.partition("/")[0] not in skip
    }
    for path, (size, _) in wanted.items():  # sizes first: reading all of a large model takes a minute
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != size:
            return f"{path} is damaged: it has {path.stat().st_size:,} bytes and was written with {size:,}"
    with ThreadPoolExecutor() as pool:
        for (path, (_, digest)), now in zip(wanted.items(), pool.map(hash_file, wanted), strict=True):
            if now != digest:
                return f"{path} is damaged: its content is not what was written"
    return ""


def hash_file(path: Path) -> str:
    """Hash all of a file with SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_hashed_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a .safetensors file that carries the hash of its tensors: for what can be computed again.

    It need not be on disk at once, since what a power cut leaves of it is noticed when it is read.
    """
    save_tensors(tensors, path, {HASH_KEY: hash_tensors(tensors)}, durable=False)


def load_hashed_tensors(path: Path) -> dict[str, Tensor]:
    """Load a .safetensors file; a ValueError where it is not whole, or its tensors are not those of its hash."""
    from safetensors import SafetensorError, safe_open

    if path.exists() and not path.is_file():  # opening a fifo would wait for its writer
        raise ValueError(f"{path} is no regular file")
    try:
        with safe_open(path, framework="pt") as file:
            saved = (file.metadata() or {}).get(HASH_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not whole: {error}") from None
    if saved not in (None, hash_tensors(tensors)):
        raise ValueError(f"{path} is damaged: its content is not what was written")
    return tensors


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Hash names, types, shapes and values of tensors."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
