"""Latents kept beside their clips, so that what was denoised can be decoded later, or again.

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

if TYPE_CHECKING:
    from torch import Tensor

NAME = "latent"
# Of a clip's settings, what may be another when it is decoded.
WHERE = ("device", "dtype", "versions")


def save_latent(path: Path, latent: Tensor, settings: Mapping[str, object]) -> None:
    """Keep a latent and its settings."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors({NAME: latent}, path, {"settings": json.dumps(settings)})


def read_latent(path: Path) -> Tensor:
    """A latent (c, t, h, w) as it was kept."""
    from safetensors.torch import load_file

    return load_file(path)[NAME]


def latent_settings(path: Path) -> dict[str, object]:
    """The settings that a latent was made with; a ValueError where the file is none."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ValueError(f"there is no file {path}; give a latent that --save-latents wrote")
    try:
        with safe_open(path, framework="pt") as file:
            names, about = list(file.keys()), file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is not whole: {error}; remove it and make the clip again") from None
    if names != [NAME] or "settings" not in about:
        raise ValueError(f"{path} is not a latent that --save-latents wrote; give one, or the clip itself")
    return dict(json.loads(about["settings"]))


def check_latent(path: Path, wanted: Mapping[str, object]) -> None:
    """Refuse a latent that was made with other settings; frames a second are free where the length is in frames."""
    found, wanted = to_mapping(SampleConfig()) | latent_settings(path), json.loads(json.dumps(wanted))
    free = {*WHERE, *(["fps"] if wanted.get("seconds") is None else [])}
    for key in sorted((found.keys() | wanted.keys()) - free):
        if not is_same(found.get(key), wanted.get(key)):
            raise ValueError(
                f"{path} is the latent of another clip: its {key} is {found.get(key)!r}, not {wanted.get(key)!r}; "
                "ask for its own settings (--from it, no flag else), or move it away"
            )


def is_same(was: object, now: object) -> bool:
    """Whether two settings are equal; checkpoints are by what is in them, whatever their folders are called."""
    if isinstance(was, Mapping) and isinstance(now, Mapping) and "sha256" in was:
        return was["sha256"] == now.get("sha256")
    return was == now
