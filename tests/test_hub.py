"""Checkpoints by Hub id that the Hugging Face cache holds: nothing is downloaded for them."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import tiny_recipe
from tests.test_cli import QUICK, refused
from videogen.cli.main import main, sample
from videogen.cli.sample import parse_args
from videogen.cli.sweep import make_plan
from videogen.cli.train import train
from videogen.data.video_io import read_settings
from videogen.models.hub import checkpoint_id, find_checkpoint, look_up_checkpoint
from videogen.sampling.pipeline import VideoPipeline
from videogen.training.dit_stage import DitStage
from videogen.training.dry_run import plan_folder
from videogen.training.frozen_models import resolve_checkpoints
from videogen.training.stages import make_stage

ID, COMMIT, LATER = "someone/tiny-model", "0123456789abcdef" * 2 + "01234567", "f" * 40


def add_snapshot(cache: Path, folder: Path, commit: str, ref: str) -> Path:
    """Copy a folder into the cache as one commit; its files are links to blobs, as the Hub's client stores them."""
    repo = cache / "models--someone--tiny-model"
    snapshot, blobs = Path(shutil.copytree(folder, repo / "snapshots" / commit)), repo / "blobs"
    blobs.mkdir(exist_ok=True)
    for path in [path for path in snapshot.rglob("*") if path.is_file()]:
        blob = blobs / f"{commit}-{'-'.join(path.relative_to(snapshot).parts)}"
        path.rename(blob)
        path.symlink_to(os.path.relpath(blob, path.parent))
    (repo / "refs").mkdir(exist_ok=True)
    (repo / "refs" / ref).write_text(commit, encoding="utf-8")
    return snapshot


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache, no network, and an empty working folder, in which no path equals a Hub id."""

    def connect(*_: object) -> None:
        raise AssertionError("a network connection was opened")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(socket.socket, "connect", connect)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "hub"


@pytest.fixture
def snapshot(cache: Path, checkpoint: Path) -> Path:
    """The snapshot of the tiny checkpoint under the Hub id someone/tiny-model."""
    return add_snapshot(cache, checkpoint, COMMIT, "main")


def test_a_hub_id_resolves_to_the_snapshot_of_its_revision(cache: Path, snapshot: Path, checkpoint: Path) -> None:
    older = add_snapshot(cache, checkpoint, LATER, "v1.0")
    for name in (ID, Path(ID), f"{ID}@main", f"{ID}@{COMMIT}"):
        assert find_checkpoint(name) == look_up_checkpoint(name) == snapshot
    assert find_checkpoint(f"{ID}@v1.0") == find_checkpoint(ID, revision="v1.0") == older
    assert find_checkpoint(f"{ID}@main", revision="v1.0") == snapshot


def test_a_local_folder_takes_precedence_over_a_hub_id(snapshot: Path) -> None:
    Path(ID).mkdir(parents=True)
    assert find_checkpoint(ID) == Path(ID)
    assert find_checkpoint(f"{ID}@main") == snapshot


def test_cache_dir_chooses_another_cache(cache: Path, snapshot: Path, tmp_path: Path) -> None:
    cache.rename(tmp_path / "elsewhere")
    assert look_up_checkpoint(ID) is None
    moved = find_checkpoint(ID, cache_dir=str(tmp_path / "elsewhere"))
    assert moved == tmp_path / "elsewhere" / snapshot.relative_to(cache)


@pytest.mark.parametrize("name", ["/no/where", "nowhere", "a/b/c", "../b", "a b/c", "a/b@"])
def test_a_name_that_cannot_be_a_hub_id_is_returned_as_a_path(name: str, cache: Path) -> None:
    assert look_up_checkpoint(name) is None
    assert find_checkpoint(name) == Path(name)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("someone/other", "hf download someone/other"),
        ("a/b--c", "hf download a/b--c"),  # The Hub allows no name with two hyphens in a row.
        (f"{ID}@v2", f"hf download {ID} --revision v2"),
        (f"{ID}@{LATER}", f"hf download {ID} --revision {LATER}"),
    ],
)
def test_every_command_refuses_an_uncached_hub_id_with_its_download_command(
    name: str, command: str, snapshot: Path, clips_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    messages = (f"{name} is neither a folder nor in the Hugging Face cache", command)
    refused(capsys, sample(["x", "--model", name, *QUICK]), *messages)
    refused(capsys, sample(["x", "--model", name, "--sweep", "steps=1,2", *QUICK]), *messages)
    refused(capsys, main(["judge", name, *QUICK]), *messages)
    refused(capsys, main(["judge", "--vae", name]), *messages)
    recipe = [str(Path(__file__).parents[1] / "configs" / "folder-dit.toml"), "--data", str(clips_folder)]
    for flag in ("--dit.init", "--dit.vae", "--dit.text"):
        refused(capsys, train([*recipe, flag, name]), *messages)
    for load in (VideoPipeline.load, VideoPipeline.from_pretrained):
        with pytest.raises(ValueError, match="is neither a folder nor in the Hugging Face cache"):
            load(name)
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("load", [VideoPipeline.load, VideoPipeline.from_pretrained], ids=["load", "from_pretrained"])
def test_a_pipeline_loaded_by_hub_id_equals_the_one_of_its_folder(
    load: Callable[[str], VideoPipeline], snapshot: Path, pipeline: VideoPipeline
) -> None:
    loaded = load(ID)
    for (name, weight), (_, expected) in zip(
        loaded.transformer.named_parameters(), pipeline.transformer.named_parameters(), strict=True
    ):
        assert torch.equal(weight, expected), name
    assert loaded.defaults == pipeline.defaults


def test_from_pretrained_takes_revision_and_cache_dir_as_diffusers_does(
    cache: Path, checkpoint: Path, tmp_path: Path
) -> None:
    add_snapshot(cache, checkpoint, COMMIT, "v1.0")
    with pytest.raises(ValueError, match=f"hf download {ID}"):
        VideoPipeline.from_pretrained(ID)
    loaded = VideoPipeline.from_pretrained(pretrained_model_name_or_path=ID, revision="v1.0", dtype=torch.bfloat16)
    assert loaded.vae.dtype == torch.bfloat16
    cache.rename(tmp_path / "elsewhere")
    VideoPipeline.from_pretrained(ID, revision="v1.0", cache_dir=tmp_path / "elsewhere")


def test_a_snapshot_without_weights_is_refused_with_the_missing_part(
    snapshot: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    next((snapshot / "transformer").glob("*.safetensors")).unlink()
    refused(capsys, sample(["x", "--model", ID, *QUICK]), "transformer holds no .safetensors weights")


def test_a_snapshot_may_lack_files_that_no_pipeline_reads(cache: Path, snapshot: Path) -> None:
    """The Hub's client refuses such a snapshot where it has stored a list of all files of the repository."""
    listing = cache / "models--someone--tiny-model" / "trees" / f"{COMMIT}.json"
    listing.parent.mkdir()
    files = {name: {"size": 1, "blob_id": "0"} for name in ("model_index.json", "assets/logo.png")}
    listing.write_text(json.dumps({"format_version": 1, "files": files}), encoding="utf-8")
    assert find_checkpoint(ID) == snapshot


def test_a_clip_records_the_hub_id_and_is_repeated_byte_for_byte(
    snapshot: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, again = Path("clip.mp4"), Path("again.mp4")
    assert sample(["a red circle", "--model", ID, "--out", str(clip), *QUICK]) == 0
    sha256 = checkpoint_id(checkpoint)["sha256"]
    assert read_settings(clip)["checkpoint"] == checkpoint_id(snapshot) == {"name": ID, "sha256": sha256}
    assert sample(["--from", str(clip), "--model", f"{ID}@{COMMIT}", "--out", str(again)]) == 0
    assert again.read_bytes() == clip.read_bytes()
    capsys.readouterr()
    refused(capsys, sample(["--from", str(clip), "--out", "third.mp4"]), f"made by checkpoint {{'name': '{ID}'")


def test_a_sweep_records_the_commit_so_that_its_commands_survive_an_update(
    cache: Path, snapshot: Path, checkpoint: Path
) -> None:
    plan = make_plan(*parse_args(["x", "--model", ID, "--sweep", "steps=1,2", *QUICK]))
    words = shlex.split(plan.command(plan.runs()[0]))[2:]
    assert words[words.index("--model") + 1] == f"{ID}@{COMMIT}"
    newer = add_snapshot(cache, checkpoint, LATER, "main")
    assert parse_args(["x", "--model", ID])[0].model == newer
    assert parse_args(words)[0].model == snapshot


def test_a_sweep_records_a_snapshot_of_another_cache_by_its_path(cache: Path, snapshot: Path, tmp_path: Path) -> None:
    cache.rename(tmp_path / "elsewhere")
    moved = tmp_path / "elsewhere" / snapshot.relative_to(cache)
    plan = make_plan(*parse_args(["x", "--model", str(moved), "--sweep", "steps=1,2", *QUICK]))
    assert plan.model == str(moved)


def test_the_judge_takes_a_hub_id(snapshot: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The checkpoint's settings are the defaults of the flags, wherever among them its id stands."""
    words = ["--clips", "1", "--seeds", "1", "--json", "--out", "scores/it.json", ID, "--vae", ID]
    assert main(["judge", *words, "--size", "48x48", "--frames", "5"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["judged"] == f"{ID}@{COMMIT}"
    assert result["checkpoint"] == {"name": ID, "sha256": checkpoint_id(checkpoint)["sha256"]}
    assert next(iter(result["scores"])) == "clips"


def test_training_takes_its_frozen_models_by_hub_id(snapshot: Path, clips_folder: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe("dit", clips_folder, Path(ID), tmp_path / "run")
    assert plan_folder(recipe).memory_gb is not None
    stage = make_stage(recipe)
    assert isinstance(stage, DitStage)
    assert (stage.config.dit.vae, stage.config.dit.text) == (snapshot, snapshot)
    assert stage.config.dit == resolve_checkpoints(recipe.dit)
