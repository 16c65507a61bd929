"""A checkpoint of one patch size is extended by another, which starts from the base patch's weights."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.conftest import CHANNELS, draw_texts, fit, tiny_dit, tiny_recipe
from videogen.config.train import DataConfig, DitConfig, TrainConfig
from videogen.models.checkpoint_config import read_checkpoint_info
from videogen.models.dit import VideoDiT
from videogen.packing.noise import NoiseLevels, levels_per_clip, shared_level
from videogen.packing.packs import PackedVideo, pack
from videogen.packing.patch_schedule import Patch
from videogen.toybox.token_labels import FACTS
from videogen.training.dit_stage import DitStage
from videogen.training.dry_run import network_config
from videogen.training.stages import make_stage

COARSE: Patch = (1, 4, 4)
PREDICTIONS = ("velocity", "clean", "preconditioned")


def levels_of(video: PackedVideo) -> NoiseLevels:
    return levels_per_clip(torch.linspace(0.9, 0.3, len(video.grids)), video.lengths)


@torch.no_grad()
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_an_extended_model_predicts_the_same_at_its_base_patch_bit_for_bit(prediction: str) -> None:
    dit = tiny_dit(prediction=prediction)
    extended = dit.extended([COARSE])
    assert extended.patches == [(1, 2, 2), COARSE]
    assert dit.patches == [(1, 2, 2)]
    video = pack([torch.randn(CHANNELS, 3, 4, 8), torch.randn(CHANNELS, 1, 8, 4)], (1, 2, 2))
    args = video, levels_of(video), draw_texts((3, 5))
    assert torch.equal(extended(*args), dit(*args))


def test_extending_by_a_known_patch_size_returns_the_model_itself() -> None:
    dit = tiny_dit(extra_patch_sizes=[COARSE])
    assert dit.extended([COARSE]) is dit
    assert dit.extended([(1, 2, 2)]) is dit


@torch.no_grad()
def test_extending_keeps_the_weights_of_trained_patch_sizes() -> None:
    dit = tiny_dit(extra_patch_sizes=[COARSE])
    extended = dit.extended([(2, 2, 2)])
    assert extended.patches == [(1, 2, 2), COARSE, (2, 2, 2)]
    video = pack([torch.randn(CHANNELS, 2, 8, 8)], COARSE)
    args = video, levels_of(video), draw_texts((3,))
    assert torch.equal(extended(*args), dit(*args))


@torch.no_grad()
@pytest.mark.parametrize("prediction", ["velocity", "clean"])
@pytest.mark.parametrize("patch", [COARSE, (2, 2, 2), (2, 4, 4)])
def test_the_prediction_for_an_upscaled_token_is_the_upscaled_prediction(prediction: str, patch: Patch) -> None:
    """The position of a single token does not matter, so the pseudo-inverse resize holds for the whole network."""
    extended, fine = tiny_dit(prediction=prediction).extended([patch]), torch.randn(CHANNELS, 1, 2, 2)

    def upscale(clip: Tensor) -> Tensor:
        return F.interpolate(clip[None], size=patch, mode="trilinear", align_corners=False)[0]

    def predict(clip: Tensor, clip_patch: Patch) -> Tensor:
        video = pack([clip], clip_patch)
        return extended(video, shared_level(torch.tensor([0.6]), 1), draw_texts((4,))).reshape(clip.shape)

    torch.testing.assert_close(predict(upscale(fine), patch), upscale(predict(fine, (1, 2, 2))), atol=2e-5, rtol=0)


@pytest.fixture
def recipe(clips_folder: Path, checkpoint: Path, tmp_path: Path) -> TrainConfig:
    """Train five steps from a checkpoint of one patch size, two of them in coarse patches."""
    base = tiny_recipe("dit", clips_folder, checkpoint, tmp_path / "run", steps=5, save_every=5, val_every=5)
    data = DataConfig(toybox=24, toybox_sizes=("64x64",), toybox_lengths=(5, 1), token_budget=96, val_clips=4)
    dit = replace(base.dit, init=checkpoint, patches={"1x4x4": 0.4})
    return replace(base, data=data, dit=dit)


def test_a_checkpoint_of_one_patch_size_is_trained_in_two(recipe: TrainConfig) -> None:
    stage = make_stage(recipe)
    assert isinstance(stage, DitStage)
    before = {name: p.detach().clone() for name, p in stage.model.named_parameters()}
    losses = stage.validate()
    assert math.isfinite(losses["loss"])
    assert math.isfinite(losses["loss_1x4x4"])
    assert fit(recipe)
    folder = recipe.run.dir / "checkpoint"
    assert read_checkpoint_info(folder).patches == ((1, 2, 2), COARSE)
    trained = dict(VideoDiT.from_pretrained(folder, subfolder="transformer").named_parameters())
    assert trained.keys() == before.keys()
    extra = [name for name in before if name.startswith("extra_patches.1x4x4.")]
    assert len(extra) == 5
    assert all(not torch.equal(trained[name], before[name]) for name in extra)


def test_the_network_config_of_a_dry_run_has_the_added_patch(recipe: TrainConfig) -> None:
    assert recipe.dit.init is not None
    stored = json.loads((recipe.dit.init / "transformer" / "config.json").read_text())["extra_patch_sizes"]
    assert list(stored) == []
    network = network_config(recipe.dit)
    assert network is not None
    assert network["extra_patch_sizes"] == [list(COARSE)]
    assert not network["nearby"]
    assert not network["num_facts"]
    network = network_config(replace(recipe.dit, nearby=True, facts=0.1))
    assert network is not None
    assert network["nearby"]
    assert network["num_facts"] == len(FACTS)


@pytest.mark.parametrize(
    ("options", "names"),
    [({"patches": {"1x4x4": 0.4}}, r"dit\.patches"), ({"nearby": True, "facts": 0.1}, r"dit\.nearby, dit\.facts")],
)
def test_a_lora_cannot_be_combined_with_new_parts_of_the_model(
    options: dict[str, object], names: str, checkpoint: Path
) -> None:
    with pytest.raises(
        ValueError, match=f"on the unchanged model, so {names} cannot be set; remove it, or set dit.lora"
    ):
        DitConfig(init=checkpoint, lora_rank=4, **options)  # type: ignore[arg-type]
