"""What a command asks for that cannot be: said before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.test_cli import QUICK, refused
from videogen.cli import sample


@pytest.mark.parametrize("out", ["taken", "taken/clip.mp4", "taken/deeper/still"])
def test_a_file_in_the_way_is_said_before_anything_is_loaded(
    out: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("videogen.generate.load", lambda args: pytest.fail("the model was loaded"))
    (tmp_path / "taken").write_text("mine", encoding="utf-8")
    words = ["x", "--out", str(tmp_path / out), "--model", str(checkpoint), *QUICK]
    refused(capsys, sample(words), "taken is a file; give --out a folder, or another name")
    assert (tmp_path / "taken").read_text(encoding="utf-8") == "mine"


def test_a_config_without_patch_size_is_said(own_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = own_checkpoint / "transformer" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    del config["patch_size"]
    path.write_text(json.dumps(config), encoding="utf-8")
    refused(capsys, sample(["x", "--model", str(own_checkpoint)]), "without patch_size; the checkpoint is not complete")
