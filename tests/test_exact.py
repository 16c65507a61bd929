"""A clip's bytes do not depend on what is made beside it; in a pack they are the same to rounding, and it says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.test_cli import QUICK
from videogen.cli.main import sample
from videogen.data.video_io import read_settings

ROWS = [
    {"prompt": "a red circle", "seed": 1},
    {"prompt": "a large blue star moves right on a white background", "seed": 2, "size": "48x32"},
    {"prompt": "a green square", "seed": 3, "frames": 9},
    {"prompt": "a small red star", "seed": 4},
]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps(ROWS), encoding="utf-8")
    return path


def test_a_clip_of_many_prompts_has_the_bytes_of_the_clip_alone_and_from_repeats_them(
    prompts: Path, checkpoint: Path, tmp_path: Path
) -> None:
    model = ["--model", str(checkpoint)]
    assert sample(["--prompts", str(prompts), *model, *QUICK, "--out", str(tmp_path / "many")]) == 0
    clips = sorted((tmp_path / "many").iterdir())
    assert len(clips) == len(ROWS)
    for clip in clips:
        again, settings = tmp_path / "again" / clip.name, read_settings(clip)
        assert sample(["--from", str(clip), *model, "--out", str(again)]) == 0
        assert again.read_bytes() == clip.read_bytes()
        alone = tmp_path / "alone" / clip.name
        row = [str(settings["prompt"]), "--seed", str(settings["seed"]), "--size", str(settings["size"])]
        words = [*row, "--frames", str(settings["frames"]), "--steps", "2", *model, "--out", str(alone)]
        assert sample(words) == 0
        assert alone.read_bytes() == clip.read_bytes()


def test_a_clip_of_a_pack_says_so_and_from_notes_it(
    prompts: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "--prompts",
        str(prompts),
        "--model",
        str(checkpoint),
        *QUICK,
        "--out",
        str(tmp_path / "pack"),
        "--no-exact",
    ]
    assert sample(words) == 0
    clip = tmp_path / "pack" / "a-red-circle-1.mp4"
    assert read_settings(clip)["pack"] == len(ROWS)
    capsys.readouterr()
    assert sample(["--from", str(clip), "--model", str(checkpoint), "--out", str(tmp_path / "again.mp4")]) == 0
    assert f"{clip} was made among 4 clips in one pack (--no-exact)" in capsys.readouterr().err
    assert "pack" not in read_settings(tmp_path / "again.mp4")
