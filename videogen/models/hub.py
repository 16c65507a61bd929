"""Find checkpoints by their ids on the Hugging Face Hub: in its local cache, and where it has none, on the Hub.

owner/name or owner/name@revision  ->  the folder of a snapshot  ->  owner/name@commit

The commands keep every library offline, and go online for a --model that is neither a folder nor in the cache alone.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

from videogen.data.files import content_id

logger = logging.getLogger(__name__)

ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>\S+))?")
SNAPSHOT = re.compile(r"models--(?P<owner>.+?)--(?P<name>.+)/snapshots/(?P<commit>[0-9a-f]{40})")
INDEX = "model_index.json"
MAY_FETCH = "VIDEOGEN_MAY_FETCH"  # 1 where HF_HUB_OFFLINE was set by a command and not by its user
# What pipelines read: neither pickled weights nor a repository's pictures.
READ = ["*.json", "*.safetensors", "*.txt", "*.model", "*.tsv", "*.jinja", "README.md", "LICENSE*", "NOTICE*"]


def set_offline() -> None:
    """Keep libraries offline while the program runs; find_checkpoint may go online, unless the user forbids it."""
    if not {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"} & set(os.environ):
        os.environ[MAY_FETCH] = "1"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def find_checkpoint(
    name: str | PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | None = None,
    local_files_only: bool = False,
) -> Path:
    """Find a checkpoint folder by its path or its Hub id, which is fetched where the cache has none of it.

    A path that could not be an id is returned whether it exists or not: its reader says what it lacks.
    """
    if (folder := look_up_checkpoint(name, revision=revision, cache_dir=cache_dir)) is not None:
        return folder
    if (match := ID.fullmatch(Path(name).as_posix())) is None:
        return Path(name)
    repo, revision = match["repo"], match["revision"] or revision
    # A mistyped folder beside others is no repository, and its name is nobody else's concern.
    if not (local_files_only or Path(name).parent.is_dir()) and is_fetching_allowed():
        return fetch_snapshot(repo, revision=revision, cache_dir=cache_dir)
    command = f"hf download {repo}" + (f" --revision {revision}" if revision else "")
    raise ValueError(
        f"{name} is neither a folder nor in the Hugging Face cache; give a checkpoint folder, or bring it: {command}"
    )


def is_fetching_allowed() -> bool:
    """Return whether checkpoints may be fetched: wherever the user has not set HF_HUB_OFFLINE."""
    from huggingface_hub import is_offline_mode

    return os.environ.get(MAY_FETCH) == "1" or not is_offline_mode()


@contextmanager
def online() -> Iterator[None]:
    """Let the Hub's client connect for a while; it reads HF_HUB_OFFLINE once, when it is imported."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, False
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def fetch_snapshot(repo: str, *, revision: str | None, cache_dir: str | None) -> Path:
    """Fetch what pipelines read of a repository into the cache, its size said first; a ValueError where it fails."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of httpx or httpx2, as its version has
    from huggingface_hub.utils import filter_repo_objects

    name = f"{repo}@{revision}" if revision else repo
    try:
        with online():
            info = HfApi().model_info(repo, revision=revision, files_metadata=True)
            sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
            if INDEX not in sizes:
                raise ValueError(f"{name} on the Hugging Face Hub is no checkpoint folder: it has no {INDEX}")
            wanted = list(filter_repo_objects(sizes, allow_patterns=READ))
            size = sum(map(sizes.__getitem__, wanted)) / 1e6
            logger.warning("fetching %s: %d files, %.1f MB, less what is in the cache", name, len(wanted), size)
            # The index comes last: a snapshot without it is not found, so that what was interrupted is fetched again.
            snapshot_download(repo, revision=info.sha, cache_dir=cache_dir, allow_patterns=READ, ignore_patterns=INDEX)
            return Path(snapshot_download(repo, revision=revision, cache_dir=cache_dir, allow_patterns=INDEX))
    except (HTTPError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ValueError(
            f"{name} is neither a folder nor in the Hugging Face cache, and cannot be fetched: {reason}; "
            "check its name and the connection, or log in by hf auth login where it is gated"
        ) from None


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
            allow_patterns=INDEX,  # the rest is checked later, and may be less than the whole repository
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
