"""What is trained has a model card that the Hub reads and its author may edit, and goes to the Hub with it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load

from tests.hub_server import ID, Hub, environment_of, files_of, serve
from videogen.config.train import TrainConfig
from videogen.data.manifest import find_fault
from videogen.models.checkpoint_config import read_checkpoint_info
from videogen.sampling.clip_sampler import load_clip_sampler
from videogen.sampling.pipeline import VideoPipeline


def test_a_checkpoint_has_a_card_that_may_be_edited(finished: dict[str, TrainConfig], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished["dit"].run.dir / "checkpoint", tmp_path / "mine"))
    card = ModelCard.load(folder / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("videogen", "text-to-video")
    assert card.data.license is None
    assert "num_layers = 2" in card.text  # of its recipe
    assert "8 steps" in card.text
    assert str(finished["dit"].run.dir.parent) not in card.content
    (folder / "README.md").write_text("my own words")
    assert find_fault(folder) == ""
    load_clip_sampler(read_checkpoint_info(folder))


PUSH = """
import sys
import videogen
from pathlib import Path
print(videogen.push_to_hub(Path(sys.argv[1]), sys.argv[2], private=True))
"""
PUSH_PIPELINE = """
import sys
from videogen import VideoPipeline
print(VideoPipeline.load(sys.argv[1]).push_to_hub(sys.argv[2], commit_message="mine"))
"""
SAVE_AND_PUSH = """
import sys
from videogen import VideoPipeline
VideoPipeline.load(sys.argv[1]).save_pretrained("saved", push_to_hub=True, repo_id=sys.argv[2])
"""


def push(program: str, folder: Path, home: Path, repo: str = ID, **environment: str) -> tuple[Hub, str]:
    """Push a folder to an empty Hub in a process of its own; return the Hub and what the process said last."""
    with serve({}) as hub:
        env = environment_of(hub, home) | environment
        words = [sys.executable, "-c", program, str(folder), repo]
        process = subprocess.run(words, capture_output=True, text=True, cwd=home, env=env)
    return hub, (process.stderr if process.returncode else process.stdout or " ").splitlines()[-1]


def test_what_training_writes_goes_to_the_hub_file_by_file(finished: dict[str, TrainConfig], tmp_path: Path) -> None:
    folder = finished["dit"].run.dir / "checkpoint"
    hub, said = push(PUSH, folder, tmp_path)
    assert hub.files == files_of(folder)
    assert {"README.md", "words.tsv", "model_index.json", "manifest.json"} <= hub.files.keys()
    assert hub.created[0]["visibility"] == "private"
    assert said == hub.commit_url


@pytest.mark.parametrize("program", [PUSH_PIPELINE, SAVE_AND_PUSH], ids=["push_to_hub", "save_pretrained"])
def test_a_pipeline_goes_to_the_hub_with_the_card_and_the_words_of_its_folder(
    program: str, finished: dict[str, TrainConfig], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(finished["dit"].run.dir / "checkpoint", tmp_path / "mine"))
    (folder / "README.md").write_text("my own words")
    hub, said = push(program, folder, tmp_path)
    mine = files_of(folder)
    assert hub.files["README.md"] == b"my own words", said
    assert hub.files["words.tsv"] == mine["words.tsv"]
    assert hub.files.keys() == mine.keys() - {"manifest.json"}  # which is of the files that it was written beside
    for part in ("transformer", "vae"):
        name = f"{part}/diffusion_pytorch_model.safetensors"
        pushed, own = load(hub.files[name]), load(mine[name])
        assert pushed.keys() == own.keys()
        assert all(torch.equal(value, own[key]) for key, value in pushed.items())


def test_a_pipeline_without_a_folder_goes_to_the_hub_with_a_card_that_says_how_to_run_it(
    pipeline: VideoPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDEOGEN_MAY_FETCH", "1")
    with serve({}) as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        pipeline.push_to_hub(ID, token="hf_test")
    card = ModelCard(hub.files["README.md"].decode())
    assert card.data.library_name == "videogen"
    assert "# tiny-model\n" in card.text
    assert "VideoPipeline.from_pretrained('FOLDER')" in card.text
    assert "words.tsv" not in hub.files


@pytest.mark.parametrize(
    ("folder", "repo", "environment", "message"),
    [
        ("empty", ID, {}, "holds no weights, neither model_index.json nor a .safetensors; give what training wrote"),
        ("mine", "name", {}, "a repository of the Hub is owner/name, got 'name'"),
        ("mine", f"{ID}@v2", {}, "a repository of the Hub is owner/name, got 'someone/tiny-model@v2'"),
        ("mine", ID, {"HF_HUB_OFFLINE": "1"}, f"HF_HUB_OFFLINE keeps this process offline; unset it to push to {ID}"),
        ("mine", "someone/else", {}, "mine cannot be pushed to someone/else: "),
    ],
)
def test_what_cannot_be_pushed_is_refused_in_a_sentence(
    folder: str, repo: str, environment: dict[str, str], message: str, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.safetensors").write_bytes(b"weights")
    hub, said = push(PUSH, tmp_path / folder, tmp_path, repo, **environment)
    assert said.startswith("ValueError: "), said
    assert message in said
    assert hub.files == {}


def test_a_vae_has_a_card_that_says_what_it_is_for(finished: dict[str, TrainConfig]) -> None:
    folder = finished["vae"].run.dir / "checkpoint"
    card = ModelCard.load(folder / "README.md")
    assert card.data.tags == ["text-to-video", "videogen", "vae"]
    assert "A video autoencoder" in card.text
    assert 'VideoVAE.from_pretrained("FOLDER", subfolder="vae")' in card.text
    assert str(finished["vae"].run.dir.parent) not in card.content
