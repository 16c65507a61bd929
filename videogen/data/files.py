"""Write files and folders atomically (write beside, then rename), and hash them.

tensors, path  ->  path.safetensors;  a finished folder.part  ->  folder
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

MAX_FULLY_HASHED_BYTES = 2**28
"""Larger files are hashed by samples: reading all of a 14B model would take longer than loading it."""
NUM_SAMPLES, SAMPLE_BYTES = 1000, 2**14
MAX_SHOWN = 300  # characters of a path in a message
MAX_SLUG = 60, 150  # characters, and bytes in UTF-8: a file system allows 255 for a name
MAY_BE_FULL = errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO
MANIFEST = "manifest.json"
"""Lists the hashes of a folder's files (see manifest.py); no part of what the folder is."""


class WriteError(OSError):
    """A file could not be written; the message names it, and what is free on its disk."""

    def __init__(self, path: Path, reason: str) -> None:
        free = shutil.disk_usage(next(parent for parent in path.absolute().parents if parent.is_dir())).free
        super().__init__(f"could not write {path}: {reason}; {free / 1e6:,.0f} MB are free on its disk")


@contextmanager
def name_full_disk(path: Path) -> Iterator[None]:
    """Raise what a full disk raises within the context as a WriteError of `path`.

    Libraries in Rust, such as safetensors, have errors of their own for it, which tell the number in their words alone.
    """
    try:
        yield
    except WriteError:
        raise
    except Exception as error:
        said = re.search(r"\(os error (\d+)\)", str(error))
        if (error.errno if isinstance(error, OSError) else said and int(said[1])) in MAY_BE_FULL:
            raise WriteError(path, error_reason(error)) from error
        raise


@contextmanager
def atomic_file(
    path: Path, *, overwrite: bool = True, durable: bool = True, next_name: Callable[[], Path] | None = None
) -> Iterator[Path]:
    """Yield a file beside `path` to write to; it takes its name on success, and is removed on an error.

    Without overwrite a FileExistsError if the name is taken, even where that happened meanwhile: of two writers the
    second is refused, or takes the first free one of the names that next_name gives, in the same folder. A durable file
    is on disk before it has its name, so a power cut leaves it whole or not at all. What is no regular file is never
    replaced: a ValueError.
    """
    if not overwrite and next_name is None:
        refuse_existing(path)
    refuse_special(path)
    part = part_path(path)
    part.touch(exist_ok=False)
    mode = part.stat().st_mode  # as the umask wants it; safetensors replaces it by one for the owner alone
    try:
        with name_full_disk(path):
            yield part
        part.chmod(mode)
        if durable:
            sync(part)
        if overwrite:
            part.replace(path)
        else:
            place_first_free(part, path, next_name)
        if durable:
            sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


def part_path(path: Path) -> Path:
    """Name the unfinished file or folder beside `path`, which no other process and no other thread chooses.

    It is hidden, and never longer than a file system allows, whatever the name of `path`.
    """
    return path.with_name(f".{path.stem[:40]}.{os.getpid()}-{secrets.token_hex(4)}.part{path.suffix.lower()[:40]}")


def check_writable(path: Path) -> None:
    """Write an empty unfinished file of `path` and remove it; a ValueError says why it could not be written later.

    Folders that are missing are made, and removed again.
    """
    missing = [folder for folder in path.parents if not folder.exists()]
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "there is a folder of that name")
        if path.exists() and not path.is_file():
            raise FileExistsError(errno.EEXIST, "it is no regular file, and is not replaced by one")
        with contextlib.suppress(FileNotFoundError):
            path.lstat()  # which fails for a name that is too long
        path.parent.mkdir(parents=True, exist_ok=True)
        part = part_path(path)
        part.touch(exist_ok=False)
        part.unlink()
    except OSError as error:
        name = (
            str(path) if len(str(path)) <= MAX_SHOWN else f"{str(path)[:MAX_SHOWN]}... ({len(str(path)):,} characters)"
        )
        raise ValueError(f"cannot write {name}: {error_reason(error)}; give another --out") from None
    finally:
        for folder in missing:
            with contextlib.suppress(OSError):  # it was not made, or somebody has put something into it
                folder.rmdir()


def slug(prompt: str) -> str:
    """Turn a prompt into a file name that still reads like it: the letters, marks and digits of every script."""
    letters = unicodedata.normalize("NFC", prompt).lower()
    kept = "".join(letter if unicodedata.category(letter)[0] in "LMN" else "-" for letter in letters)
    num_letters, num_bytes = MAX_SLUG
    short = re.sub("-+", "-", kept).strip("-")[:num_letters]
    return short.encode()[:num_bytes].decode(errors="ignore").rstrip("-") or "clip"


def refuse_existing(path: Path) -> None:
    """Raise a FileExistsError if a file has the name already."""
    if os.path.lexists(path):
        raise FileExistsError(f"{path} exists already; choose another name, or allow overwrite")


def refuse_special(path: Path) -> None:
    """Raise a ValueError if a folder, a fifo or a device has the name, which a writer must not replace."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no regular file, and is not replaced by one; remove it, or choose another name")


def place_new(part: Path, path: Path) -> None:
    """Give a finished file its name, which no file may have: the file system decides between two at once."""
    try:
        os.link(part, path)
    except FileExistsError:
        refuse_existing(path)
        raise
    except OSError:  # a file system without links, such as exFAT
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            refuse_existing(path)
        part.replace(path)


def place_first_free(part: Path, path: Path, next_name: Callable[[], Path] | None) -> None:
    """Give a finished file its name, or the first of the next ones that no file has; without any, refuse."""
    while True:
        try:
            return place_new(part, path)
        except FileExistsError:
            if next_name is None:
                raise
            path = next_name()


def sync(path: Path) -> None:
    """Wait until a file, or the list of a folder's files, is on disk."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot, and need not
            raise
    finally:
        os.close(descriptor)


def save_tensors(
    tensors: Mapping[str, Tensor],
    path: Path,
    metadata: dict[str, str] | None = None,
    *,
    overwrite: bool = True,
    durable: bool = True,
) -> None:
    """Write a .safetensors file atomically; a full disk raises a WriteError, and leaves no part."""
    from safetensors.torch import save_file

    with atomic_file(path, overwrite=overwrite, durable=durable) as part:
        save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, part, metadata)


def save_text(path: Path, text: str) -> None:
    """Write a small text file atomically."""
    with atomic_file(path) as part:
        part.write_text(text, encoding="utf-8")


def content_id(path: Path) -> str:
    """Hash a file, or the configs and weights of a folder, to 16 hexadecimal digits."""
    if path.is_file():
        return file_digest(path).hex()[:16]
    digest = hashlib.sha256()
    for part in sorted(p for p in path.rglob("*") if is_content(p)):
        digest.update(part.relative_to(path).as_posix().encode())
        digest.update(file_digest(part))
    return digest.hexdigest()[:16]


def is_content(path: Path) -> bool:
    """True for the configs and the weights of a checkpoint folder."""
    return path.suffix in (".json", ".safetensors") and path.name != MANIFEST and path.is_file()


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
    part, old = part_path(folder), folder.with_name(folder.name + ".old")
    part.mkdir(parents=True)
    try:
        with name_full_disk(folder):
            yield part
        mode = part.stat().st_mode & 0o666
        for path in sorted(part.rglob("*")):
            if path.is_file():
                path.chmod(mode)
            sync(path)
        sync(part)
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        part.rename(folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what killed writers left in a folder, and bring back a folder that was about to be replaced.

    Only where nobody else writes: a part does not tell whether its writer lives.
    """
    for old in folder.glob("*.old"):
        if old.with_suffix("").exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(old.with_suffix(""))
    for part in (*folder.glob("*.part"), *folder.glob(".*.part*")):
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def check_regular(folder: Path, suffixes: Collection[str]) -> None:
    """Raise a ValueError for a fifo, a device or a dead link in a folder, and for a folder where a file is expected.

    Whoever opened a fifo would wait for ever, and a device has no end.
    """
    for path in folder.rglob("*"):
        if not path.is_file() and not (path.is_dir() and path.suffix not in suffixes):
            raise ValueError(f"{path} is no regular file; download or save the folder again")


def error_reason(error: Exception) -> str:
    """Return the last line of an error's message, or the name of its class if it has none."""
    message = getattr(error, "strerror", None) or str(error)
    return (message.strip().splitlines() or [type(error).__name__])[-1]
