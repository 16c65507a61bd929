"""The first lines of those who come from other programs do what the guide says."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from videogen.cli.main import sample
from videogen.cli.train import train

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "assets" / "guide" / "coming.md").read_text(encoding="utf-8")
LINES = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
PROGRAMS = {"sample.py": sample, "train.py": train}


@pytest.fixture
def desk(clips_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder with what the lines name."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(clips_folder, tmp_path / "my-clips")
    (tmp_path / "prompts.txt").write_text('a red circle --w 64 --h 64 --n "a blue circle" --s 12 --d 42\na cat\n')
    videos = tmp_path / "my-clips"
    (tmp_path / "dataset.toml").write_text(
        f'[general]\nresolution = [64, 64]\nenable_bucket = true\n\n[[datasets]]\nvideo_directory = "{videos}"\n'
        'caption_extension = ".txt"\ntarget_frames = [17]\n'
    )
    for path in videos.rglob("*.mp4"):
        path.with_suffix(".txt").write_text("a clip")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    return tmp_path


@pytest.mark.parametrize("line", LINES)
def test_a_line_of_the_guide_runs(line: str, desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, program, *words = shlex.split(line)
    vae = ["--dit.vae", str(ROOT / "assets" / "mini")] if "configs/folder-dit.toml" in words else []
    assert PROGRAMS[program]([*words, *vae, "--dry-run"]) == 0, capsys.readouterr().err
    assert not list(desk.glob("runs/*/step_*"))


def test_the_lines_for_diffusers_run() -> None:
    (program,) = [code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "pipe(" in code]
    names: dict[str, object] = {}
    exec(program.replace('"assets/mini"', repr(str(ROOT / "assets" / "mini"))), names)
    frames = names["frames"]
    assert torch.as_tensor(frames).shape == (17, 64, 64, 3)
