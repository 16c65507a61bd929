"""What is loaded is what was written: a damaged step, checkpoint or cache is noticed, and mended if it can be."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import STAGES, assert_same_state, elsewhere, fit
from videogen.config.train import TrainConfig
from videogen.data.files import MANIFEST, content_id
from videogen.data.manifest import check_manifest, load_hashed_tensors, save_hashed_tensors, write_manifest
from videogen.data.saved_latents import read_latent, save_latent
from videogen.models.checkpoint import load_vae
from videogen.models.vae import VideoVAE
from videogen.sampling.pipeline import VideoPipeline
from videogen.training.dit_stage import DitStage
from videogen.training.frozen_models import load_part
from videogen.training.run_checkpoints import newest_whole_step, saved_steps


def flip(path: Path) -> None:
    """Flip the last bit of a file, which lies in the values of its tensors or behind the JSON."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES = (flip, cut, empty, Path.unlink)


def copy_run(recipe: TrainConfig, run_dir: Path) -> TrainConfig:
    shutil.copytree(recipe.run.dir, run_dir)
    return elsewhere(recipe, run_dir)


# --- step folders


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["model", "ema_1", "optimizer"])
def test_a_damaged_step_is_noticed_and_the_last_whole_one_taken(
    name: str,
    damage: Callable[[Path], None],
    finished: dict[str, TrainConfig],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    recipe = copy_run(finished["dit"], tmp_path / "run")
    damage(recipe.run.dir / "step_000008" / f"{name}.safetensors")
    assert newest_whole_step(recipe.run.dir) == 4
    (record,) = caplog.records
    assert f"step_000008/{name}.safetensors is " in record.getMessage()
    assert record.getMessage().endswith("the run goes on from step 4, which is whole")


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_goes_on_from_the_last_whole_step_bit_for_bit(
    stage: str, finished: dict[str, TrainConfig], tmp_path: Path
) -> None:
    recipe = copy_run(finished[stage], tmp_path / "run")
    empty(recipe.run.dir / "step_000008" / "model.safetensors")
    assert fit(recipe)
    assert_same_state(recipe.run.dir, finished[stage].run.dir, 8)
    assert saved_steps(recipe.run.dir) == [4, 8]
    assert (recipe.run.dir / "step_000008.damaged").is_dir()  # for whoever wants to look


def test_a_stray_step_folder_is_left_aside(
    finished: dict[str, TrainConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = copy_run(finished["dit"], tmp_path / "run")
    for name in ("step_000099", "step_5", "step_backup"):
        (recipe.run.dir / name).mkdir()
    (recipe.run.dir / "step_000098").touch()
    assert newest_whole_step(recipe.run.dir) == 8
    (record,) = caplog.records
    assert "step_000099 is no step of this run and is left aside" in record.getMessage()


def test_a_run_without_a_whole_step_is_refused_and_not_begun_anew(
    finished: dict[str, TrainConfig], tmp_path: Path
) -> None:
    recipe = copy_run(finished["dit"], tmp_path / "run")
    for step in (4, 8):
        empty(recipe.run.dir / f"step_00000{step}" / "model.safetensors")
    with pytest.raises(ValueError, match=r"no step of .* is whole: .*step_000008/model.safetensors is damaged"):
        fit(recipe)


def test_a_step_without_a_manifest_is_resumed_from(finished: dict[str, TrainConfig], tmp_path: Path) -> None:
    """Earlier versions wrote none."""
    recipe = copy_run(finished["dit"], tmp_path / "run")
    for step in (4, 8):
        (recipe.run.dir / f"step_00000{step}" / MANIFEST).unlink()
    assert newest_whole_step(recipe.run.dir) == 8
    cut(recipe.run.dir / "step_000008" / "ema_0.safetensors")
    assert newest_whole_step(recipe.run.dir) == 4


# --- checkpoint folders


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [
    "transformer/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors", "transformer/config.json", "tokenizer/tokenizer.json",
])  # fmt: skip
def test_a_damaged_checkpoint_is_refused_by_the_name_of_its_file(
    name: str, damage: Callable[[Path], None], finished: dict[str, TrainConfig], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(finished["dit"].run.dir / "checkpoint", tmp_path / "checkpoint"))
    damage(folder / name)
    with pytest.raises(ValueError, match=rf"{name} is (damaged|missing)"):
        VideoPipeline.load(folder)


def test_a_checkpoint_that_was_changed_on_purpose_loads_without_its_manifest(
    finished: dict[str, TrainConfig], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(finished["dit"].run.dir / "checkpoint", tmp_path / "checkpoint"))
    before, index = content_id(folder), folder / "model_index.json"
    index.write_text(index.read_text(encoding="utf-8").replace('"steps": 2', '"steps": 3'), encoding="utf-8")
    with pytest.raises(ValueError, match=r"model_index.json is damaged: .*; .* or remove .*manifest.json"):
        VideoPipeline.load(folder)
    (folder / MANIFEST).unlink()
    assert VideoPipeline.load(folder).defaults.steps == 3
    assert content_id(folder) != before


def test_saving_over_a_checkpoint_takes_its_manifest_away(
    pipeline: VideoPipeline, finished: dict[str, TrainConfig], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(finished["dit"].run.dir / "checkpoint", tmp_path / "checkpoint"))
    pipeline.save_pretrained(folder)
    assert VideoPipeline.load(folder).defaults == pipeline.defaults


def test_a_manifest_does_not_change_what_a_checkpoint_is(own_checkpoint: Path) -> None:
    before = content_id(own_checkpoint)
    write_manifest(own_checkpoint)
    assert content_id(own_checkpoint) == before


def test_a_damaged_vae_is_refused_where_only_it_is_loaded_and_nothing_else_is_read(
    finished: dict[str, TrainConfig], tmp_path: Path
) -> None:
    weights = "diffusion_pytorch_model.safetensors"
    folder = Path(shutil.copytree(finished["dit"].run.dir / "checkpoint", tmp_path / "checkpoint"))
    flip(folder / "transformer" / weights)
    load_vae(folder)
    load_part(VideoVAE, folder, "vae")
    flip(folder / "vae" / weights)
    for load in (load_vae, lambda folder: load_part(VideoVAE, folder, "vae")):
        with pytest.raises(ValueError, match=rf"vae/{weights} is damaged"):
            load(folder)
    trained = Path(shutil.copytree(finished["vae"].run.dir / "checkpoint", tmp_path / "trained"))
    flip(trained / "vae" / weights)
    with pytest.raises(ValueError, match=rf"vae/{weights} is damaged"):
        load_part(VideoVAE, trained, "vae")


@pytest.mark.parametrize("text", ["", "[]", '{"files": []}', '{"files": {"a": 3}}', '{"files": {"a": {"bytes": "x"}}}'])
def test_a_damaged_manifest_is_refused_in_a_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"manifest.json is damaged"):
        check_manifest(tmp_path)


# --- caches and latents


def test_damaged_caches_are_made_again(finished: dict[str, TrainConfig], tmp_path: Path) -> None:
    recipe = copy_run(finished["dit"], tmp_path / "run")
    files = list((recipe.run.dir / "texts").glob("*.safetensors"))
    whole = {path: {k: v.clone() for k, v in load_hashed_tensors(path).items()} for path in files}  # not its mapping
    assert files
    (shard,) = (recipe.run.dir / "latents").glob("*.shard")
    for path in (shard, *files):
        flip(path)
    shutil.rmtree(recipe.run.dir / "step_000004")
    shutil.rmtree(recipe.run.dir / "step_000008")
    torch.manual_seed(11)
    assert fit(recipe)
    assert_same_state(recipe.run.dir, finished["dit"].run.dir, 8)
    stage = DitStage(recipe)
    prompt = stage.folder.caption(0, 0)
    (embedding,) = stage.texts.read([prompt])
    name = stage.texts.embedding_name(prompt)
    assert any(torch.equal(tensors[name], embedding) for tensors in whole.values() if name in tensors)


def test_hashed_tensors_without_their_hash_are_loaded(tmp_path: Path) -> None:
    """Earlier versions wrote none; every type that a cache holds has one."""
    from safetensors.torch import save_file

    save_file({"x": torch.arange(3)}, tmp_path / "old.safetensors")
    assert load_hashed_tensors(tmp_path / "old.safetensors")["x"].tolist() == [0, 1, 2]
    tensors = {"a": torch.zeros(2, 0), "b": torch.tensor(1.5).bfloat16(), "c": torch.ones(3, 2).half()[:, 1]}
    save_hashed_tensors(tensors, tmp_path / "new.safetensors")
    loaded = load_hashed_tensors(tmp_path / "new.safetensors")
    assert all(torch.equal(loaded[name], value) for name, value in tensors.items())


def test_a_damaged_latent_is_refused_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "clip.safetensors"
    save_latent(path, torch.ones(4, 1, 2, 2), {"prompt": "a cat"})
    flip(path)
    with pytest.raises(ValueError, match=r"clip.safetensors is damaged: .*; remove it and sample the clip again"):
        read_latent(path)


def test_a_manifest_lists_every_file(finished: dict[str, TrainConfig]) -> None:
    for folder in (finished["dit"].run.dir / "checkpoint", finished["dit"].run.dir / "step_000008"):
        listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        assert set(listed) == files - {MANIFEST, "README.md"}  # a card is there to be edited
