"""A checkpoint of one patch size learns another: what it said before stays, and the new size starts as the old one."""

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
from videogen.packing.noise import NoiseLevels, per_clip, shared_level
from videogen.packing.packs import PackedVideo, pack
from videogen.packing.patch_schedule import Patch
from videogen.toybox.token_labels import FACTS
from videogen.training.dit_stage import DitStage
from videogen.training.dry_run import network_config
from videogen.training.stages import make_stage

COARSE: Patch = (1, 4, 4)
PREDICTIONS = ("velocity", "clean", "preconditioned")


def levels_of(video: PackedVideo) -> NoiseLevels:
    return per_clip(torch.linspace(0.9, 0.3, len(video.grids)), video.lengths)


@torch.no_grad()
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_what_the_model_said_before_it_says_again_to_the_bit(prediction: str) -> None:
    dit = tiny_dit(prediction=prediction)
    more = dit.extended([COARSE])
    assert more.patches == [(1, 2, 2), COARSE]
    assert dit.patches == [(1, 2, 2)]
    video = pack([torch.randn(CHANNELS, 3, 4, 8), torch.randn(CHANNELS, 1, 8, 4)], (1, 2, 2))
    args = video, levels_of(video), draw_texts((3, 5))
    assert torch.equal(more(*args), dit(*args))


def test_a_patch_that_is_known_changes_nothing() -> None:
    dit = tiny_dit(extra_patch_sizes=[COARSE])
    assert dit.extended([COARSE]) is dit
    assert dit.extended([(1, 2, 2)]) is dit


@torch.no_grad()
def test_patch_sizes_that_were_trained_already_stay_as_they_are() -> None:
    dit = tiny_dit(extra_patch_sizes=[COARSE])
    more = dit.extended([(2, 2, 2)])
    assert more.patches == [(1, 2, 2), COARSE, (2, 2, 2)]
    video = pack([torch.randn(CHANNELS, 2, 8, 8)], COARSE)
    args = video, levels_of(video), draw_texts((3,))
    assert torch.equal(more(*args), dit(*args))


@torch.no_grad()
@pytest.mark.parametrize("prediction", ["velocity", "clean"])
@pytest.mark.parametrize("patch", [COARSE, (2, 2, 2), (2, 4, 4)])
def test_one_coarse_token_is_answered_as_the_fine_one_that_it_is_the_upscaled_of(prediction: str, patch: Patch) -> None:
    """Alone, a token's place does not matter: the pseudo-inverse resize makes the whole network agree."""
    more, fine = tiny_dit(prediction=prediction).extended([patch]), torch.randn(CHANNELS, 1, 2, 2)

    def upscale(clip: Tensor) -> Tensor:
        return F.interpolate(clip[None], size=patch, mode="trilinear", align_corners=False)[0]

    def answer(clip: Tensor, cut: Patch) -> Tensor:
        video = pack([clip], cut)
        return more(video, shared_level(torch.tensor([0.6]), 1), draw_texts((4,))).reshape(clip.shape)

    torch.testing.assert_close(answer(upscale(fine), patch), upscale(answer(fine, (1, 2, 2))), atol=2e-5, rtol=0)


@pytest.fixture
def recipe(clips_folder: Path, checkpoint: Path, tmp_path: Path) -> TrainConfig:
    """Five steps from a checkpoint of one patch size, two of them in coarse patches."""
    made = tiny_recipe("dit", clips_folder, checkpoint, tmp_path / "run", steps=5, save_every=5, val_every=5)
    data = DataConfig(toybox=24, toybox_sizes=("64x64",), toybox_lengths=(5, 1), token_budget=96, val_clips=4)
    dit = replace(made.dit, init=checkpoint, patches={"1x4x4": 0.4})
    return replace(made, data=data, dit=dit)


def test_a_checkpoint_of_one_patch_size_is_trained_in_two(recipe: TrainConfig) -> None:
    stage = make_stage(recipe)
    assert isinstance(stage, DitStage)
    before = {name: p.detach().clone() for name, p in stage.model.named_parameters()}
    found = stage.validate()
    assert math.isfinite(found["loss"])
    assert math.isfinite(found["loss_1x4x4"])
    assert fit(recipe)
    folder = recipe.run.dir / "checkpoint"
    assert list(read_checkpoint_info(folder).patches) == [(1, 2, 2), COARSE]
    trained = dict(VideoDiT.from_pretrained(folder, subfolder="transformer").named_parameters())
    assert trained.keys() == before.keys()
    new = [name for name in before if name.startswith("extra_patches.1x4x4.")]
    assert len(new) == 5
    assert all(not torch.equal(trained[name], before[name]) for name in new)


def test_a_dry_run_knows_the_added_patch(recipe: TrainConfig) -> None:
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
    ("more", "named"),
    [
        ({"patches": {"1x4x4": 0.4}}, r"dit\.patches"),
        ({"nearby": True, "facts": 0.1}, r"dit\.nearby, dit\.facts"),
    ],
)
def test_a_lora_adds_nothing_but_itself(more: dict[str, object], named: str, checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=f"a LoRA stands beside a model as it is; leave {named} out, or set dit.lora"):
        DitConfig(init=checkpoint, lora_rank=4, **more)  # type: ignore[arg-type]
