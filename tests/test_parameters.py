"""Clips and pictures carry their settings as galleries read them, beside those that --from reads."""

from __future__ import annotations

from pathlib import Path

import av
import pytest
import torch
from PIL import Image

from videogen.data.parameters import format_parameters
from videogen.data.video_io import read_settings, write_video

SETTINGS = {
    "prompt": "ein Café, 猫", "negative": "blurry", "steps": 12, "sampler": "euler", "guidance": 3.0, "seed": 7,
    "size": "64x64", "shift": 2.5, "checkpoint": {"name": "my, model", "sha256": "a3f8cd054803359e"},
    "versions": {"videogen": "1"},
}  # fmt: skip
TEXT = (
    "ein Café, 猫\nNegative prompt: blurry\nSteps: 12, Sampler: Euler, CFG scale: 3, Seed: 7, Size: 64x64, Shift: 2.5, "
    'Model hash: a3f8cd0548, Model: "my, model", Version: videogen 1'
)


def test_settings_are_formatted_as_galleries_read_them() -> None:
    assert format_parameters(SETTINGS) == TEXT
    assert format_parameters(SETTINGS | {"negative": ""}) == TEXT.replace("Negative prompt: blurry\n", "")
    assert format_parameters({"prompt": "a preview", "seed": 0, "step": 500}) == ""


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".png"])
@pytest.mark.parametrize("length", [1, 40_000], ids=["short", "long"])
def test_a_file_carries_both_texts(suffix: str, length: int, tmp_path: Path) -> None:
    path, settings = tmp_path / f"clip{suffix}", SETTINGS | {"prompt": "ein Café, 猫" * length}
    frames = torch.zeros(1 if suffix == ".png" else 5, 32, 32, 3, dtype=torch.uint8)
    write_video(path, frames, fps=8, settings=settings)
    if suffix == ".png":
        with Image.open(path) as image:
            tags = dict(image.text)  # type: ignore[attr-defined]
    else:
        with av.open(str(path)) as container:
            tags = {name.lower(): text for name, text in container.metadata.items()}
    assert tags["parameters"] == format_parameters(settings)
    assert read_settings(path) == settings
