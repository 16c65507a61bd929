"""A widened network computes what the narrow one did, and its copied features can be trained apart."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.conftest import CHANNELS, draw_texts, fit, tiny_dit, tiny_recipe
from videogen.config.train import DitConfig
from videogen.models.dit import VideoDiT
from videogen.packing.noise import levels_per_clip
from videogen.packing.packs import pack
from videogen.training.dit_stage import DitStage
from videogen.training.dry_run import network_config
from videogen.training.stages import make_stage
from videogen.training.widen import feature_origins, widen_model

SIZES = ((3, 4, 8), (1, 8, 4), (2, 4, 4))
OPTIONS = {
    "wan": {},
    "ours": {
        "prediction": "preconditioned", "extra_patch_sizes": [(1, 1, 1)], "num_facts": 3, "nearby": True,
    },
}  # fmt: skip


def predict(dit: VideoDiT, patch: tuple[int, int, int] = (1, 2, 2)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    video = pack([torch.randn(CHANNELS, *size, generator=generator) for size in SIZES], patch)
    velocity = dit(video, levels_per_clip(torch.tensor([0.9, 0.5, 0.2]), video.lengths), draw_texts((3, 5, 2)))
    assert isinstance(velocity, torch.Tensor)
    return velocity


@torch.no_grad()
@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize(("heads", "ffn_dim"), [(4, 96), (4, 72), (6, 48), (2, 64)])
def test_a_widened_network_predicts_what_the_narrow_one_predicts(kind: str, heads: int, ffn_dim: int) -> None:
    narrow = tiny_dit(**OPTIONS[kind])
    wide = widen_model(narrow, heads=heads, ffn_dim=ffn_dim)
    assert (wide.config["num_attention_heads"], wide.config["ffn_dim"]) == (heads, ffn_dim)
    assert wide.head_size == narrow.head_size
    for patch in narrow.patches:
        torch.testing.assert_close(predict(wide, patch), predict(narrow, patch), atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_widened_weights_have_the_variance_of_the_new_width() -> None:
    narrow = tiny_dit(num_attention_heads=4, attention_head_dim=32, ffn_dim=256)
    wide = widen_model(narrow, heads=8, ffn_dim=512)
    for name, weight in narrow.state_dict().items():
        if name.endswith("to_v.weight"):
            ratio = wide.state_dict()[name].square().mean() / weight.square().mean()
            assert ratio.item() == pytest.approx(0.5, rel=0.05)  # each output sums over twice as many inputs


def test_copies_of_a_feature_get_different_gradients() -> None:
    wide = widen_model(tiny_dit(), heads=4, ffn_dim=96)
    predict(wide).square().mean().backward()
    width = 24
    for name in ("blocks.0.attn1.to_v.weight", "blocks.1.ffn.net.0.proj.weight", "patch_embedding.weight"):
        gradient = wide.get_parameter(name).grad
        assert gradient is not None
        first, second = gradient.chunk(2)
        assert len(first) in (width, 48)
        assert (first - second).norm() > 0.1 * first.norm()


def test_features_are_copied_within_their_own_chunk() -> None:
    assert feature_origins(6, 12, num_chunks=3).tolist() == [0, 1, 0, 1, 2, 3, 2, 3, 4, 5, 4, 5]
    assert feature_origins(4, 6).tolist() == [0, 1, 2, 3, 0, 1]


def test_heads_that_are_no_multiple_and_a_smaller_ffn_dim_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got 3 and 48; give dit.num_attention_heads = 2, 4, 6, .* of at least 48"):
        widen_model(tiny_dit(), heads=3, ffn_dim=48)
    with pytest.raises(ValueError, match=r"got 4 and 24; give .* a dit.ffn_dim of at least 48"):
        widen_model(tiny_dit(), heads=4, ffn_dim=24)


def test_widening_without_dit_init_or_with_a_lora_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dit.widen makes the network of dit.init wider; give dit.init"):
        DitConfig(widen=True)
    with pytest.raises(ValueError, match=r"so dit\.widen cannot be set; remove it, or set dit\.lora_rank to 0"):
        DitConfig(init=Path("x"), widen=True, lora_rank=4)


def test_a_recipe_widens_and_trains_a_checkpoint(checkpoint: Path, clips_folder: Path, tmp_path: Path) -> None:
    old = VideoDiT.from_pretrained(checkpoint, subfolder="transformer")
    heads, ffn_dim = 2 * old.config["num_attention_heads"], 3 * old.config["ffn_dim"] // 2
    recipe = tiny_recipe("dit", clips_folder, checkpoint, tmp_path / "run", steps=2, save_every=2, val_every=2)
    dit = replace(recipe.dit, init=checkpoint, widen=True, num_attention_heads=heads, ffn_dim=ffn_dim)
    recipe = replace(recipe, dit=dit)
    stage = make_stage(recipe)
    assert isinstance(stage, DitStage)
    narrow = DitStage(replace(recipe, dit=replace(dit, widen=False)))
    assert stage.validate()["loss"] == pytest.approx(narrow.validate()["loss"], rel=1e-4)
    assert fit(recipe)
    trained = VideoDiT.from_pretrained(recipe.run.dir / "checkpoint", subfolder="transformer")
    planned = network_config(dit)
    assert planned is not None
    for name in ("num_attention_heads", "ffn_dim"):
        assert trained.config[name] == planned[name] == getattr(dit, name)
