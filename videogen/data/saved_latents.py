"""Save latents beside their clips, so that a denoised clip can be decoded later, or again.

latent (c, t, h, w), settings  <->  clip.safetensors
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from videogen.config.parsing import to_mapping
from videogen.config.sample import SampleConfig
from videogen.data.files import save_tensors
from videogen.data.manifest import HASH_KEY, hash_tensors, load_hashed_tensors

if TYPE_CHECKING:
    from torch import Tensor

TENSOR_NAME = "latent"
ENVIRONMENT_KEYS = ("device", "dtype", "versions", "pack")  # settings that may differ when a latent is decoded


def save_latent(path: Path, latent: Tensor, settings: Mapping[str, object], *, overwrite: bool = True) -> None:
    """Write a latent (c, t, h, w) with its settings as metadata; a FileExistsError without overwrite."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {TENSOR_NAME: latent}
    metadata = {"settings": json.dumps(settings), HASH_KEY: hash_tensors(tensors)}
    save_tensors(tensors, path, metadata, overwrite=overwrite)


def read_latent(path: Path) -> Tensor:
    """Read a latent (c, t, h, w) that save_latent wrote; raises a ValueError where it is damaged."""
    try:
        return load_hashed_tensors(path)[TENSOR_NAME]
    except ValueError as error:
        raise ValueError(f"{error}; remove it and sample the clip again") from None


def latent_settings(path: Path) -> dict[str, object]:
    """Read the settings that a latent was sampled with; raises a ValueError where the file is no saved latent."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ValueError(f"there is no file {path}; give a latent that --save-latents wrote")
    try:
        with safe_open(path, framework="pt") as file:
            names, metadata = list(file.keys()), file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is not whole: {error}; remove it and sample the clip again") from None
    if names != [TENSOR_NAME] or "settings" not in metadata:
        raise ValueError(f"{path} is not a latent that --save-latents wrote; give one, or the clip itself")
    return dict(json.loads(metadata["settings"]))


def check_latent(path: Path, settings: Mapping[str, object]) -> None:
    """Raise a ValueError where a saved latent was sampled with other settings than those given.

    The frame rate may differ where the length is given in frames: it then changes nothing but the file's clock.
    """
    saved = to_mapping(SampleConfig()) | latent_settings(path)
    settings = json.loads(json.dumps(settings))  # JSON turns tuples into lists
    ignored = {*ENVIRONMENT_KEYS, *(["fps"] if settings.get("seconds") is None else [])}
    for key in sorted((saved.keys() | settings.keys()) - ignored):
        if not is_same_setting(saved.get(key), settings.get(key)):
            raise ValueError(
                f"{path} is the latent of another clip: its {key} is {saved.get(key)!r}, not {settings.get(key)!r}; "
                "decode it with its own settings (--from it, with no other flag), or move it away"
            )


def is_same_setting(saved: object, current: object) -> bool:
    """True if two settings are equal; checkpoints are compared by their hash, whatever their folders are called."""
    if isinstance(saved, Mapping) and isinstance(current, Mapping) and "sha256" in saved:
        return saved["sha256"] == current.get("sha256")
    return saved == current
