"""The whole line on real footage, short: a folder of captioned videos in, a prompt's own clip out."""

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


def dit_command(root: Path) -> list[str]:
    """A small DiT on the two clips, many noise levels a step, most of them high: the text has to decide."""
    data = ["--data", str(root / "clips"), "--data.max-tokens", "48", "--data.max-seconds", "0.7"]
    data += ["--data.repeats", "8"]
    size = ["--dit.num-layers", "2", "--dit.num-attention-heads", "2", "--dit.ffn-dim", "256", "--dit.base-tokens", "8"]
    run = ["--run", str(root / "dit"), "--run.steps", "400", "--optim.lr", "2e-3"]
    return [RECIPE, "--dit.vae", str(root / "vae" / "checkpoint"), *data, *size, *run]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VAE and a DiT trained for a minute on two real clips of different sizes."""
    root = tmp_path_factory.mktemp("real")
    real_footage.write_folder(root / "clips")
    for name in ("carphone_distorted.mp4", "bikes.mp4"):
        (root / "clips" / name).unlink()
    data = ["--data", str(root / "clips"), "--data.max-tokens", "48", "--data.max-seconds", "0.7"]
    vae = [RECIPE, "--stage", "vae", "--run", str(root / "vae"), *data]
    assert train([*vae, "--run.steps", "30", "--vae.width", "16", "--vae.batch-clips", "2"]) == 0
    assert train(dit_command(root)) == 0
    return root / "dit"


def test_each_caption_gives_back_its_own_clip_and_no_other(run_dir: Path) -> None:
    names, rows = real_overfit.table(run_dir)
    for i, row in enumerate(rows):
        others = [value for j, value in enumerate(row) if j != i]
        assert row[i] > max(others) + 3, f"{names[i]}: {row}"


def test_the_command_makes_a_clip_from_the_trained_folder_and_makes_it_again(run_dir: Path, tmp_path: Path) -> None:
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


def test_the_same_training_command_finds_the_run_complete(run_dir: Path) -> None:
    again = [sys.executable, "train.py", *dit_command(run_dir.parent)]
    done = subprocess.run(again, capture_output=True, text=True, check=True)
    assert "resuming" in done.stderr
    assert done.stdout.strip().endswith("checkpoint")


@pytest.mark.slow
def test_the_recipe_learns_all_four_real_clips_by_heart(tmp_path: Path) -> None:
    real_footage.write_folder(tmp_path / "clips")
    data = ["--data", str(tmp_path / "clips")]
    stage = ["--stage", "vae", "--run", str(tmp_path / "vae"), "--run.steps", "300", "--optim.lr", "3e-4"]
    assert train([RECIPE, *stage, *data]) == 0
    vae = str(tmp_path / "vae" / "checkpoint")
    assert train([RECIPE, "--run", str(tmp_path / "dit"), "--dit.vae", vae, *data]) == 0
    names, rows = real_overfit.table(tmp_path / "dit")
    for i, row in enumerate(rows):
        # The distorted carphone clip is the pristine one after a hard compression: they are each other's nearest.
        others = [value for j, value in enumerate(row) if j != i]
        assert row[i] == max(row), f"{names[i]}: {row}"
        assert row[i] > sorted(others)[-2] + 3, f"{names[i]}: {row}"
