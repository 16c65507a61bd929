"""Push a folder of weights to the Hugging Face Hub as it is, with its card and its words.

folder, owner/name  ->  the address of the commit
"""

from __future__ import annotations

import shutil
from pathlib import Path

from videogen.models.card import CARD, format_card, how_to_run
from videogen.models.hub import ID, INDEX, is_fetching_allowed, online

# What a checkpoint folder holds beside its parts, which saving a pipeline does not write.
COMPANIONS = (CARD, "words.tsv", "LICENSE*", "NOTICE*")


def push_to_hub(
    folder: Path | str,
    repo_id: str,
    *,
    commit_message: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    create_pr: bool = False,
    subfolder: str | None = None,
) -> str:
    """Upload a checkpoint, a VAE or a LoRA that training wrote, every file as it is; return the commit's address.

    The repository is made where there is none. Raises a ValueError where the folder holds no weights, the network is
    forbidden or the Hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]

    folder = Path(folder)
    if not (folder / INDEX).is_file() and not any(folder.rglob("*.safetensors")):
        raise ValueError(f"{folder} holds no weights, neither {INDEX} nor a .safetensors; give what training wrote")
    if not (match := ID.fullmatch(repo_id)) or match["revision"]:
        raise ValueError(f"a repository of the Hub is owner/name, got {repo_id!r}")
    if not is_fetching_allowed():
        raise ValueError(f"HF_HUB_OFFLINE keeps this process offline; unset it to push to {repo_id}")
    try:
        with online():
            api = HfApi(token=token)
            repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            commit = api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                path_in_repo=subfolder,
                commit_message=commit_message or f"Upload {folder.resolve().name}",
                create_pr=create_pr,
                ignore_patterns=["*.part", "*.part/*"],
            )
    except (HTTPError, HFValidationError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ValueError(
            f"{folder} cannot be pushed to {repo_id}: {reason}; check the connection and the name, or log in by "
            "hf auth login"
        ) from None
    return str(commit)


def add_companions(folder: Path, source: Path, *, title: str) -> None:
    """Copy the card, words and licences of the folder that a pipeline was loaded from; write a card where it has none.

    A folder that is no checkpoint is none that a pipeline was loaded from.
    """
    for pattern in COMPANIONS:
        for path in source.glob(pattern) if (source / INDEX).is_file() else ():
            shutil.copyfile(path, folder / path.name)
    if not (folder / CARD).is_file():
        text = format_card(title=title, what="A text-to-video checkpoint.", how=how_to_run())
        (folder / CARD).write_text(text, encoding="utf-8")
