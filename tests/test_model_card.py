"""What is trained has a model card that the Hub reads and its author may edit, and goes to the Hub by push_to_hub."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from diffusers.utils import hub_utils
from huggingface_hub import ModelCard

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


def test_a_checkpoint_goes_to_the_hub_whole(finished: dict[str, TrainConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    sent: dict[str, set[str]] = {}

    def upload(repo_id: str, folder: Path, **_: object) -> None:
        root = Path(folder)
        sent[repo_id] = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}

    monkeypatch.setattr(hub_utils, "create_repo", lambda repo_id, **_: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr(
        hub_utils, "upload_folder", lambda *, repo_id, folder_path, **options: upload(repo_id, folder_path, **options)
    )
    VideoPipeline.load(finished["dit"].run.dir / "checkpoint").push_to_hub("me/toy")
    weights = {f"{part}/diffusion_pytorch_model.safetensors" for part in ("transformer", "vae")}
    assert weights | {"model_index.json", "tokenizer/tokenizer.json"} <= sent["me/toy"]
