"""Training and sampling on real footage: a folder of captioned videos in, the clip of each caption out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import real_footage
from tests.bench import real_overfit
from videogen.cli.main import sample
from videogen.cli.train import train
from videogen.data.video_io import probe, read_settings

RECIPE = "configs/real-overfit.toml"


def build_dit_command(root: Path) -> list[str]:
    """Build the words of train.py for a small DiT on the two clips.

    Most noise levels of a step are high, where only the text tells the clips apart.
    """
    data = ["--data", str(root / "clips"), "--data.max-tokens", "48", "--data.max-seconds", "0.7"]
    data += ["--data.repeats", "8"]
    size = ["--dit.num-layers", "2", "--dit.num-attention-heads", "2", "--dit.ffn-dim", "256", "--dit.base-tokens", "8"]
    run = ["--run", str(root / "dit"), "--run.steps", "400", "--optim.lr", "2e-3"]
    return [RECIPE, "--dit.vae", str(root / "vae" / "checkpoint"), *data, *size, *run]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a DiT that was trained with its VAE for a minute on two real clips of different sizes."""
    root = tmp_path_factory.mktemp("real")
    real_footage.write_folder(root / "clips")
    for name in ("carphone_distorted.mp4", "bikes.mp4"):
        (root / "clips" / name).unlink()
    data = ["--data", str(root / "clips"), "--data.max-tokens", "48", "--data.max-seconds", "0.7"]
    vae = [RECIPE, "--stage", "vae", "--run", str(root / "vae"), *data]
    assert train([*vae, "--run.steps", "30", "--vae.width", "16", "--vae.batch-clips", "2"]) == 0
    assert train(build_dit_command(root)) == 0
    return root / "dit"


def test_each_caption_reproduces_its_own_clip_best(run_dir: Path) -> None:
    names, rows = real_overfit.table(run_dir)
    for i, row in enumerate(rows):
        others = [value for j, value in enumerate(row) if j != i]
        assert row[i] > max(others) + 3, f"{names[i]}: {row}"


def test_a_clip_of_the_trained_checkpoint_is_repeated_byte_for_byte(run_dir: Path, tmp_path: Path) -> None:
    caption = real_footage.CAPTIONS["bigbuckbunny.mp4"]
    first, again = tmp_path / "first.mp4", tmp_path / "again.mp4"
    model = ["--model", str(run_dir / "checkpoint")]
    assert sample([caption, "--out", str(first), "--steps", "3", "--size", "96x48", "--frames", "5", *model]) == 0
    info = probe(first)
    assert (info.width, info.height, info.num_frames) == (96, 48, 5)
    settings = read_settings(first)
    assert settings["prompt"] == caption
    assert settings["steps"] == 3
    assert sample(["--from", str(first), "--out", str(again), *model]) == 0
    assert again.read_bytes() == first.read_bytes()


def test_a_finished_training_command_resumes_and_prints_the_checkpoint(run_dir: Path) -> None:
    command = [sys.executable, "train.py", *build_dit_command(run_dir.parent)]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "resuming" in process.stderr
    assert process.stdout.strip().endswith("checkpoint")


@pytest.mark.slow
def test_the_recipe_overfits_all_four_real_clips(tmp_path: Path) -> None:
    real_footage.write_folder(tmp_path / "clips")
    data = ["--data", str(tmp_path / "clips")]
    stage = ["--stage", "vae", "--run", str(tmp_path / "vae"), "--run.steps", "300", "--optim.lr", "3e-4"]
    assert train([RECIPE, *stage, *data]) == 0
    vae = str(tmp_path / "vae" / "checkpoint")
    assert train([RECIPE, "--run", str(tmp_path / "dit"), "--dit.vae", vae, *data]) == 0
    names, rows = real_overfit.table(tmp_path / "dit")
    for i, row in enumerate(rows):
        # The distorted carphone clip is the pristine one after strong compression, so each is the other's nearest.
        others = [value for j, value in enumerate(row) if j != i]
        assert row[i] == max(row), f"{names[i]}: {row}"
        assert row[i] > sorted(others)[-2] + 3, f"{names[i]}: {row}"
