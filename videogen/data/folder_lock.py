"""Lock a folder against other processes: of two that would write into it, the second is refused at once.

folder  ->  its lock, held; where another process holds it, a ValueError that names that process

The system frees a lock with the process that held it, so a kill leaves none behind.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from videogen.data.files import remove_unfinished

RUN_LOCK = "run.lock"


@contextmanager
def lock_folder(folder: Path, name: str, *, task: str, flag: str, reentrant: bool = False) -> Iterator[None]:
    """Make a folder and hold the lock of a task in it; the flag is what chooses another folder.

    A reentrant lock can be taken again by the process that holds it. A folder made for it and left empty is removed.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; choose another {flag}")
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    holder = path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""
    lock = FileLock(path, is_singleton=reentrant, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        about = f" ({holder})" if holder else ""
        raise ValueError(
            f"another {task} is running in {folder}{about}; wait for its end, or choose another {flag}"
        ) from None
    try:
        with contextlib.suppress(OSError):  # Windows lets nobody write to a locked file
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            path.write_text(f"process {os.getpid()} on {platform.node()} since {since}\n", encoding="utf-8")
        yield
    finally:
        lock.release()
        if made and [item.name for item in folder.iterdir()] == [name]:
            path.unlink()
            with contextlib.suppress(OSError):  # a folder above may have other files by now
                for place in made:
                    place.rmdir()


@contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Hold the lock of a training's run folder, cleared of what a killed training left unfinished.

    Of several processes that train one model, the first holds it.
    """
    if int(os.environ.get("RANK", "0")):
        yield
        return
    with lock_folder(folder, RUN_LOCK, task="training", flag="--run folder", reentrant=True):
        for place in (folder, folder / "checkpoint"):
            remove_unfinished(place)
        yield
