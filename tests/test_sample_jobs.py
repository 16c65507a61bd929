"""The clips of a command are named, and impossible ones are refused, before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.test_cli import QUICK, refused
from videogen.cli.main import sample
from videogen.cli.prompts import PromptRow
from videogen.cli.sample_arguments import SampleArgs
from videogen.cli.sample_jobs import plan_jobs
from videogen.models.checkpoint_config import read_checkpoint_info


@pytest.mark.parametrize("out", ["taken", "taken/clip.mp4", "taken/deeper/still"])
def test_out_below_a_file_is_refused_before_the_model_is_loaded(
    out: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("videogen.cli.sample.load", lambda *args: pytest.fail("the model was loaded"))
    (tmp_path / "taken").write_text("mine", encoding="utf-8")
    words = ["x", "--out", str(tmp_path / out), "--model", str(checkpoint), *QUICK]
    refused(capsys, sample(words), "taken is a file; give --out a folder, or another name")
    assert (tmp_path / "taken").read_text(encoding="utf-8") == "mine"


def test_every_clip_has_a_unique_file_name(checkpoint: Path, tmp_path: Path) -> None:
    """The second clip of "p" with seed 0 and the clip of "p 0" with seed 2 would both be p-0-2.mp4."""
    args = SampleArgs(model=checkpoint, out=tmp_path)
    rows = [PromptRow(prompt, seed, args.sample) for prompt, seed in (("p", 0), ("p", 0), ("p 0", 2), ("p", 0))]
    names = [job.path.name for job in plan_jobs(rows, args, read_checkpoint_info(checkpoint))]
    assert names == ["p-0.mp4", "p-0-2.mp4", "p-0-2-2.mp4", "p-0-3.mp4"]


def test_seeds_together_with_num_or_a_seed_column_are_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", str(checkpoint), *QUICK, "--seeds", "0,1"]
    refused(capsys, sample(["x", "--num", "3", *words]), "--seeds 0,1 and --num 3 both say how many clips")
    table = tmp_path / "PROMPTS.CSV"  # The suffix is read in any case.
    table.write_text("prompt,seed\na red circle,5\n", encoding="utf-8")
    refused(capsys, sample(["--prompts", str(table), *words]), "gives its rows seeds of their own")


def test_a_config_without_patch_size_is_refused(own_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = own_checkpoint / "transformer" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    del config["patch_size"]
    path.write_text(json.dumps(config), encoding="utf-8")
    refused(capsys, sample(["x", "--model", str(own_checkpoint)]), "without patch_size; the checkpoint is not complete")
