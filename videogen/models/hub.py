"""Find checkpoints by their ids on the Hugging Face Hub in its local cache: nothing is downloaded.

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
    """Find a checkpoint folder by its path or its Hub id; a ValueError where an id is not in the cache.

    A path that could not be an id is returned whether it exists or not: its reader says what it lacks.
    """
    if (folder := look_up_checkpoint(name, revision=revision, cache_dir=cache_dir)) is not None:
        return folder
    if (match := ID.fullmatch(Path(name).as_posix())) is None:
        return Path(name)
    revision = match["revision"] or revision
    command = f"hf download {match['repo']}" + (f" --revision {revision}" if revision else "")
    raise ValueError(
        f"{name} is neither a folder nor in the Hugging Face cache; give a checkpoint folder, or bring it: {command}"
    )


def look_up_checkpoint(
    name: str | PathLike[str], *, revision: str | None = None, cache_dir: str | None = None
) -> Path | None:
    """Look up an existing path, or the folder of an id's snapshot in the cache (its usual place by default)."""
    if Path(name).exists():
        return Path(name)
    if (match := ID.fullmatch(Path(name).as_posix())) is None:
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            match["repo"],
            revision=match["revision"] or revision,
            cache_dir=cache_dir,
            local_files_only=True,
            allow_patterns="model_index.json",  # the rest is checked later, and may be less than the whole repository
        )
    except (HFValidationError, LocalEntryNotFoundError):
        return None
    return Path(folder)


def hub_id(folder: Path) -> str | None:
    """Read owner/name@commit off the path of a snapshot; None for any other folder."""
    match = SNAPSHOT.fullmatch("/".join(folder.parts[-3:]))
    return f"{match['owner']}/{match['name']}@{match['commit']}" if match else None


def checkpoint_name(folder: Path) -> str:
    """Name a checkpoint for a command line: a snapshot of the cache by id and commit, any other folder by its path.

    The commit keeps the command's meaning when the repository goes on.
    """
    name = hub_id(folder)
    return name if name is not None and look_up_checkpoint(name) == folder else str(folder)


def checkpoint_id(folder: Path) -> dict[str, str]:
    """Identify a checkpoint by its name and a hash of its configs and weights."""
    snapshot = hub_id(folder)  # the folder of a snapshot is named after its commit
    return {"name": snapshot.partition("@")[0] if snapshot else folder.name, "sha256": content_id(folder)}
