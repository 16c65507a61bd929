"""Checkpoints by their ids on the Hugging Face Hub, as its local cache holds them: nothing is fetched.

owner/name or owner/name@revision  ->  the folder of a snapshot  ->  owner/name@commit
"""

from __future__ import annotations

import re
from os import PathLike
from pathlib import Path

from videogen.data.files import content_id

ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>\S+))?")
SNAPSHOT = re.compile(r"models--(?P<owner>.+?)--(?P<name>.+)/snapshots/(?P<commit>[0-9a-f]{40})")


def find_checkpoint(name: str | PathLike[str], *, revision: str | None = None, cache_dir: str | None = None) -> Path:
    """The folder of a checkpoint, named by its path or by its id; a ValueError where an id is not in the cache.

    A path that could not be an id is given back whether it is there or not: who reads it says what it lacks.
    """
    if (folder := look_up(name, revision=revision, cache_dir=cache_dir)) is not None:
        return folder
    if (asked := ID.fullmatch(Path(name).as_posix())) is None:
        return Path(name)
    revision = asked["revision"] or revision
    command = f"hf download {asked['repo']}" + (f" --revision {revision}" if revision else "")
    raise ValueError(
        f"{name} is neither a folder nor in the Hugging Face cache; give a checkpoint folder, or bring it: {command}"
    )


def look_up(name: str | PathLike[str], *, revision: str | None = None, cache_dir: str | None = None) -> Path | None:
    """A path that exists, or the folder of an id's snapshot in the cache (its usual place if none is given)."""
    if Path(name).exists():
        return Path(name)
    if (asked := ID.fullmatch(Path(name).as_posix())) is None:
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            asked["repo"],
            revision=asked["revision"] or revision,
            cache_dir=cache_dir,
            local_files_only=True,
            allow_patterns="model_index.json",  # the rest is checked, and may be less than all of the repository
        )
    except (HFValidationError, LocalEntryNotFoundError):
        return None
    return Path(folder)


def hub_id(folder: Path) -> str | None:
    """The owner/name@commit that a folder is the snapshot of; None of any other folder."""
    found = SNAPSHOT.fullmatch("/".join(folder.parts[-3:]))
    return f"{found['owner']}/{found['name']}@{found['commit']}" if found else None


def called(folder: Path) -> str:
    """How a command names a checkpoint: a snapshot that is found by its id and commit by these, any other by its path.

    The commit keeps the command's meaning when the repository goes on.
    """
    name = hub_id(folder)
    return name if name is not None and look_up(name) == folder else str(folder)


def checkpoint_id(folder: Path) -> dict[str, str]:
    """The name of a checkpoint folder and a hash of its configs and weights, to know it again."""
    snapshot = hub_id(folder)  # whose folder's name is a commit
    return {"name": snapshot.partition("@")[0] if snapshot else folder.name, "sha256": content_id(folder)}
