"""The DiT: the names and predictions of Wan's transformer, on packs in which no clip sees another."""

import json
from inspect import signature
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from einops import rearrange
from peft import LoraConfig
from torch import Tensor

from tests.conftest import CHANNELS, TEXT_DIM, draw_texts, seeded, tiny_dit
from videogen.models.dit import VideoDiT
from videogen.models.rope import rotary, rotate
from videogen.packing.noise import NoiseLevels, levels_per_clip, levels_per_frame, shared_level
from videogen.packing.packs import Lengths, PackedText, pack, pack_texts, patch_positions, patchify, unpack
from videogen.packing.patch_schedule import Patch

SHAPES = [(CHANNELS, 1, 4, 4), (CHANNELS, 3, 4, 8), (CHANNELS, 3, 8, 4), (CHANNELS, 2, 6, 6), (CHANNELS, 5, 4, 4)]
TEXT_LENGTHS = (3, 1, 7, 3, 12)
SIGMAS = torch.tensor([0.9, 0.1, 0.5, 0.0, 1.0])


def latents() -> list[Tensor]:
    return [torch.randn(shape, generator=seeded(i)) for i, shape in enumerate(SHAPES)]


def text_embeddings() -> list[Tensor]:
    return split_texts(draw_texts(TEXT_LENGTHS))


def split_texts(text: PackedText) -> list[Tensor]:
    return list(text.tokens.split(text.lengths))


@torch.no_grad()
def predict(dit: VideoDiT, clips: list[Tensor], texts: list[Tensor], sigmas: Tensor) -> list[Tensor]:
    video = pack(clips, dit.base_patch)
    return unpack(video._replace(tokens=dit(video, levels_per_clip(sigmas, video.lengths), pack_texts(texts))))


# --- promise 1


def test_a_clip_does_not_see_its_neighbours(dit: VideoDiT) -> None:
    clips, texts = latents(), text_embeddings()
    for i, packed in enumerate(predict(dit, clips, texts, SIGMAS)):
        (alone,) = predict(dit, [clips[i]], [texts[i]], SIGMAS[i : i + 1])
        torch.testing.assert_close(alone, packed, atol=5e-6, rtol=0)  # float32, only the order of sums differs


@pytest.mark.parametrize("order", [(4, 3, 2, 1, 0), (2, 0, 4, 1, 3)])
def test_a_clip_does_not_see_its_place_in_the_pack(dit: VideoDiT, order: Lengths) -> None:
    clips, texts = latents(), text_embeddings()
    in_order = predict(dit, clips, texts, SIGMAS)
    shuffled = predict(dit, [clips[i] for i in order], [texts[i] for i in order], SIGMAS[list(order)])
    for i, clip in zip(order, shuffled, strict=True):
        torch.testing.assert_close(clip, in_order[i], atol=5e-6, rtol=0)  # float32, only the order of sums differs


def test_neighbours_get_no_gradient_from_a_clip(dit: VideoDiT) -> None:
    clips = [clip.requires_grad_() for clip in latents()]
    video = pack(clips, dit.base_patch)
    out = dit(video, levels_per_clip(SIGMAS, video.lengths), draw_texts(TEXT_LENGTHS))
    gradients = torch.autograd.grad(out.split(video.lengths)[2].square().sum(), clips)
    assert [bool(gradient.any()) for gradient in gradients] == [False, False, True, False, False]


# --- promise 3


@torch.no_grad()
def test_noise_levels_may_differ_from_token_to_token(dit: VideoDiT) -> None:
    """Modulation gathered from the distinct levels equals one row per token."""
    video, text = pack(latents(), dit.base_patch), draw_texts(TEXT_LENGTHS)
    sigmas = torch.rand(len(video.tokens), generator=seeded()).mul(4).round() / 4  # five levels, in any order
    gathered = dit(video, NoiseLevels(*sigmas.unique(return_inverse=True)), text)
    expected = dit(video, NoiseLevels(sigmas, torch.arange(len(sigmas))), text)
    torch.testing.assert_close(gathered, expected, atol=5e-6, rtol=0)  # float32, only the order of sums differs


@torch.no_grad()
def test_a_shared_noise_level_equals_the_same_level_for_each_clip(dit: VideoDiT) -> None:
    video, text = pack(latents(), dit.base_patch), draw_texts(TEXT_LENGTHS)
    shared = dit(video, shared_level(torch.tensor([0.4]), len(video.tokens)), text)
    separate = dit(video, levels_per_clip(torch.full((5,), 0.4), video.lengths), text)
    torch.testing.assert_close(shared, separate, atol=5e-6, rtol=0)  # float32, only the order of sums differs


@torch.no_grad()
def test_noise_levels_read_beforehand_change_no_bit(dit: VideoDiT) -> None:
    video, text = pack(latents(), dit.base_patch), draw_texts(TEXT_LENGTHS)
    for levels in (shared_level(torch.tensor([0.4]), len(video.tokens)), levels_per_clip(SIGMAS, video.lengths)):
        with torch.enable_grad():  # Each block then adds its own table, as in training.
            in_blocks = dit.project_levels(levels, dit.base_patch)
        assert torch.equal(dit(video, in_blocks, text), dit(video, levels, text))


# --- promise 4: parity with diffusers

WAN: dict[str, dict[str, object]] = {
    "odd heads of 44": {"num_attention_heads": 3, "attention_head_dim": 44},
    "one head of 24": {"num_attention_heads": 1, "attention_head_dim": 24},
    "heads of 32, deep": {"num_attention_heads": 5, "attention_head_dim": 32, "num_layers": 4, "ffn_dim": 20},
    "no cross norm": {"num_attention_heads": 2, "attention_head_dim": 26, "cross_attn_norm": False},
    "more channels in than out": {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 6, "eps": 1e-3},
    "other widths": {"num_attention_heads": 2, "attention_head_dim": 16, "text_dim": 20, "freq_dim": 24},
}
KEYS_BEYOND_WAN = {"prediction", "extra_patch_sizes", "num_facts", "nearby"}
VIDEOS = {"image": (1, 1, 4, 4), "wide": (2, 3, 4, 10), "tall": (3, 2, 12, 4), "long": (1, 13, 2, 4)}


def diffusers_copy(dit: VideoDiT) -> WanTransformer3DModel:
    config = {key: value for key, value in dit.config.items() if not key.startswith("_") and key not in KEYS_BEYOND_WAN}
    wan = WanTransformer3DModel(**config).eval()
    wan.load_state_dict(dit.state_dict())
    return wan


@torch.no_grad()
def predict_with_both(
    dit: VideoDiT, wan: WanTransformer3DModel, shape: tuple[int, ...], *, per_frame_levels: bool = False
) -> tuple[Tensor, Tensor]:
    """Return our prediction and diffusers', for a batch (b, t, h, w) with texts of 9 rows."""
    batch, *sides = shape
    clips = torch.randn(batch, dit.config["in_channels"], *sides)
    text = draw_texts((9,) * batch, dit.config["text_dim"], seed=7)
    video = pack(list(clips), dit.base_patch)
    if per_frame_levels:
        frames = torch.rand(batch, video.grids[0][0])
        levels = levels_per_frame(list(frames), video.grids)
        timestep = 1000 * levels.per_token().reshape(batch, -1)
    else:
        sigmas = torch.rand(batch)
        levels, timestep = levels_per_clip(sigmas, video.lengths), 1000 * sigmas
    ours = torch.stack(unpack(video._replace(tokens=dit(video, levels, text))))
    theirs = wan(clips, timestep, text.tokens.reshape(batch, 9, -1), return_dict=False)[0]
    return ours, theirs


@pytest.mark.parametrize("config", WAN.values(), ids=WAN)
@pytest.mark.parametrize("video", VIDEOS.values(), ids=VIDEOS)
def test_the_prediction_is_that_of_diffusers(config: dict[str, object], video: tuple[int, ...]) -> None:
    dit = tiny_dit(**config)
    ours, theirs = predict_with_both(dit, diffusers_copy(dit), video)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)  # float32, only the order of sums differs
    assert theirs.std() > 0.01


@pytest.mark.parametrize("video", VIDEOS.values(), ids=VIDEOS)
def test_the_prediction_at_a_noise_level_per_frame_is_that_of_diffusers(dit: VideoDiT, video: tuple[int, ...]) -> None:
    """Wan 2.2 TI2V gives every token its timestep."""
    ours, theirs = predict_with_both(dit, diffusers_copy(dit), video, per_frame_levels=True)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)  # float32, only the order of sums differs


@pytest.mark.parametrize("patch", [(1, 1, 1), (2, 2, 2), (1, 4, 4)])
def test_the_prediction_with_another_base_patch_is_that_of_diffusers(patch: Patch) -> None:
    dit = tiny_dit(patch_size=patch)
    ours, theirs = predict_with_both(dit, diffusers_copy(dit), (2, 4, 8, 12))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)  # float32, only the order of sums differs


def test_config_keys_and_parameter_names_are_those_of_diffusers(dit: VideoDiT) -> None:
    wan = diffusers_copy(dit)
    ours, theirs = ({key for key in model.config if key[0] != "_"} for model in (dit, wan))
    assert ours - theirs == KEYS_BEYOND_WAN
    assert theirs <= ours
    shapes = ({name: p.shape for name, p in model.named_parameters()} for model in (dit, wan))
    assert next(shapes) == next(shapes)


def test_the_defaults_of_the_config_are_those_of_diffusers() -> None:
    ours, theirs = (signature(cls.__init__).parameters for cls in (VideoDiT, WanTransformer3DModel))
    assert {key: ours[key].default for key in theirs} == {key: theirs[key].default for key in theirs}


@torch.no_grad()
def test_a_saved_checkpoint_loads_in_diffusers_and_predicts_the_same(dit: VideoDiT, tmp_path: Path) -> None:
    dit.save_pretrained(tmp_path)
    assert [path.suffix for path in tmp_path.iterdir() if path.name != "config.json"] == [".safetensors"]
    wan, missing = WanTransformer3DModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(missing.values())
    ours, theirs = predict_with_both(dit, wan.eval(), (2, 3, 4, 6))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)  # float32, only the order of sums differs


@torch.no_grad()
def test_a_checkpoint_of_diffusers_loads_here_and_predicts_the_same(dit: VideoDiT, tmp_path: Path) -> None:
    diffusers_copy(dit).save_pretrained(tmp_path)
    loaded = VideoDiT.from_pretrained(tmp_path).eval()
    assert loaded.config["prediction"] == "velocity"
    args = latents()[:2], split_texts(draw_texts((2, 3))), SIGMAS[:2]
    assert predict(loaded, *args)[1].equal(predict(dit, *args)[1])


def test_another_norm_of_queries_and_keys_is_refused() -> None:
    with pytest.raises(ValueError, match="qk_norm must be 'rms_norm_across_heads', got None"):
        tiny_dit(qk_norm=None)


# --- promise 5


@torch.no_grad()
def test_texts_projected_beforehand_equal_texts_passed_to_forward(dit: VideoDiT) -> None:
    video, text = pack(latents(), dit.base_patch), draw_texts(TEXT_LENGTHS)
    levels = levels_per_clip(SIGMAS, video.lengths)
    assert torch.equal(dit(video, levels, dit.project_text(text)), dit(video, levels, text))


@torch.no_grad()
def test_one_weighted_text_row_replaces_equal_rows(dit: VideoDiT) -> None:
    """Wan's 512 text rows are mostly padding: one row with their number as its weight is the same prompt."""
    video = pack(latents()[1:2], dit.base_patch)
    levels = levels_per_clip(SIGMAS[:1], video.lengths)
    rows = torch.randn(4, TEXT_DIM)
    padded = PackedText(torch.cat([rows, rows[-1:].expand(200, -1)]), (204,), torch.ones(204))
    collapsed = PackedText(rows, (4,), torch.tensor([1.0, 1.0, 1.0, 201.0]))
    # float32, a sum of 201 equal terms against one product
    torch.testing.assert_close(dit(video, levels, collapsed), dit(video, levels, padded), atol=1e-5, rtol=0)


# --- weights and training


@torch.no_grad()
def test_a_new_model_predicts_zero_and_every_block_is_the_identity() -> None:
    dit = tiny_dit(extra_patch_sizes=[(1, 4, 4)])
    dit.init_weights()
    inputs_and_outputs: list[tuple[Tensor, Tensor]] = []
    for block in dit.blocks:
        block.register_forward_hook(lambda _, args, out: inputs_and_outputs.append((args[0], out)))
    for patch in dit.patches:
        video = pack([torch.randn(CHANNELS, 2, 4, 8)], patch)
        assert not dit(video, shared_level(torch.tensor([0.7]), len(video.tokens)), draw_texts((3,))).any()
    assert len(inputs_and_outputs) == 2 * len(dit.blocks)
    assert all(torch.equal(before, after) for before, after in inputs_and_outputs)


@torch.no_grad()
def test_the_first_heads_of_a_new_model_attend_locally_and_the_last_everywhere() -> None:
    """Attention of a token in the middle of 5 x 4 x 4: to its own place, to its neighbours, to all tokens."""
    dit = tiny_dit(num_attention_heads=3, attention_head_dim=64)
    dit.init_weights()
    attention, table = dit.blocks[0].attn1, rotary(((5, 4, 4),), (1, 2, 2), 64, torch.device("cpu"))
    x = torch.randn(80, 192)
    q, k = (
        rotate(rearrange(norm(linear(x)), "n (heads e) -> n heads e", heads=3), table)
        for norm, linear in ((attention.norm_q, attention.to_q), (attention.norm_k, attention.to_k))
    )
    weights = (torch.einsum("n h e, m h e -> h n m", q, k) / 8).softmax(-1)
    own_place, neighbourhood, uniform = rearrange(weights[:, 2 * 16 + 5], "h (t r c) -> h t r c", t=5, r=4)
    assert own_place[:, 1, 1].sum() > 0.4  # five tokens of eighty
    assert own_place[:, 1, 1].min() > 0.02  # in every frame
    assert neighbourhood[1:4, :3, :3].sum() > 0.9
    assert neighbourhood[2, 1, 1] == neighbourhood.max()
    assert uniform.max() < 0.1


def test_every_parameter_of_a_new_model_has_a_gradient_within_four_steps() -> None:
    """The zeros of initialisation must not stay zero."""
    dit = tiny_dit()
    dit.init_weights()
    video, text = pack(latents(), dit.base_patch), draw_texts(TEXT_LENGTHS)
    optimizer = torch.optim.AdamW(dit.parameters(), lr=1e-2)
    for _ in range(4):
        optimizer.zero_grad()
        (dit(video, levels_per_clip(SIGMAS, video.lengths), text) - video.tokens).square().mean().backward()
        optimizer.step()
    assert [name for name, p in dit.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_gradient_checkpointing_changes_nothing() -> None:
    dit = tiny_dit().train()
    video, text = pack(latents(), dit.base_patch), draw_texts(TEXT_LENGTHS)

    def gradients() -> list[Tensor]:
        loss = dit(video, levels_per_clip(SIGMAS, video.lengths), text).square().mean()
        return list(torch.autograd.grad(loss, list(dit.parameters())))

    plain = gradients()
    dit.enable_gradient_checkpointing()
    assert dit.gradient_checkpointing
    for expected, gradient in zip(plain, gradients(), strict=True):
        assert torch.equal(gradient, expected)


def test_half_precision_is_near_float32(dit: VideoDiT) -> None:
    half = tiny_dit().to(torch.bfloat16)
    exact, rounded = (
        torch.cat([x.flatten() for x in predict(model, latents(), text_embeddings(), SIGMAS)]) for model in (dit, half)
    )
    assert rounded.isfinite().all()
    assert (rounded - exact).square().mean() < 0.02 * exact.square().mean()  # bfloat16 has 8 bits, two blocks deep


def test_a_new_lora_changes_nothing_and_a_trained_lora_can_be_fused() -> None:
    dit = tiny_dit()
    args = latents(), text_embeddings(), SIGMAS
    before = predict(dit, *args)
    dit.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    trained = {name: p for name, p in dit.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 4 * 2 * len(dit.blocks)  # A and B of four layers of two attentions a block
    assert all(map(torch.equal, before, predict(dit, *args)))
    for name, p in trained.items():
        if "lora_B" in name:
            torch.nn.init.normal_(p)
    with_lora = predict(dit, *args)
    assert not torch.allclose(with_lora[0], before[0], atol=1e-3)
    dit.fuse_lora()
    for fused, unfused in zip(predict(dit, *args), with_lora, strict=True):
        torch.testing.assert_close(fused, unfused, atol=2e-5, rtol=1e-5)  # x(W + BA) against xW + xBA


# --- promise 2: more patch sizes

EXTRA: list[Patch] = [(1, 4, 4), (2, 2, 2), (2, 4, 4)]


@torch.no_grad()
@pytest.mark.parametrize("patch", EXTRA)
def test_a_prediction_has_the_layout_of_its_tokens_at_every_patch_size(patch: Patch) -> None:
    dit = tiny_dit(extra_patch_sizes=EXTRA)
    video = pack([torch.randn(CHANNELS, 2, 8, 4), torch.randn(CHANNELS, 4, 4, 4)], patch)
    out = dit(video, levels_per_clip(SIGMAS[:2], video.lengths), draw_texts((2, 3)))
    assert out.shape == video.tokens.shape
    assert [clip.shape for clip in unpack(video._replace(tokens=out))] == [(CHANNELS, 2, 8, 4), (CHANNELS, 4, 4, 4)]


@torch.no_grad()
@pytest.mark.parametrize("patch", EXTRA)
def test_an_upscaled_patch_embeds_as_its_original(patch: Patch) -> None:
    dit = tiny_dit(extra_patch_sizes=EXTRA)
    dit.init_extra_patches()
    base = torch.randn(5, CHANNELS, *dit.base_patch)
    upscaled = torch.nn.functional.interpolate(base, size=patch, mode="trilinear", align_corners=False)
    small, large = pack(list(base), dit.base_patch), pack(list(upscaled), patch)
    # the pseudo-inverse is exact up to its own rounding
    torch.testing.assert_close(dit.embed(large), dit.embed(small), atol=2e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("patch", EXTRA)
def test_the_head_of_a_coarse_patch_predicts_the_upscaled_base_patch(patch: Patch) -> None:
    dit = tiny_dit(extra_patch_sizes=EXTRA)
    dit.init_extra_patches()
    x = torch.randn(5, 24)
    base = dit.unembed(x, dit.base_patch).reshape(5, CHANNELS, *dit.base_patch)
    upscaled = torch.nn.functional.interpolate(base, size=patch, mode="trilinear", align_corners=False)
    coarse = dit.unembed(x, patch).reshape(5, CHANNELS, *patch)
    torch.testing.assert_close(coarse, upscaled, atol=1e-5, rtol=0)  # float32, only the order of sums differs


def test_extra_patches_do_not_change_the_base_patch(dit: VideoDiT) -> None:
    extended = tiny_dit(extra_patch_sizes=EXTRA)
    extended.load_state_dict(dit.state_dict(), strict=False)
    args = latents(), text_embeddings(), SIGMAS
    assert all(map(torch.equal, predict(dit, *args), predict(extended, *args)))


def test_extra_patches_are_saved_and_loaded(tmp_path: Path) -> None:
    dit = tiny_dit(extra_patch_sizes=EXTRA)
    dit.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_bytes())["extra_patch_sizes"] == [list(patch) for patch in EXTRA]
    loaded = VideoDiT.from_pretrained(tmp_path)
    assert loaded.patches == [(1, 2, 2), *EXTRA]
    assert {k: v.shape for k, v in loaded.state_dict().items()} == {k: v.shape for k, v in dit.state_dict().items()}


def test_the_error_of_an_unknown_patch_size_lists_the_known_ones() -> None:
    dit = tiny_dit(extra_patch_sizes=[(1, 4, 4)])
    video = pack([torch.randn(CHANNELS, 2, 4, 4)], (2, 2, 2))
    with pytest.raises(ValueError, match="patch must be one of 1x2x2, 1x4x4, got 2x2x2"):
        dit(video, shared_level(torch.tensor([0.5]), 4), draw_texts((2,)))


def test_coarse_and_fine_patches_have_the_same_mean_position() -> None:
    fine = patch_positions([pack([torch.zeros(1, 4, 8, 8)], (1, 2, 2)).grids[0]], (1, 2, 2)).mean(0)
    for patch in EXTRA:
        assert torch.equal(patch_positions([pack([torch.zeros(1, 4, 8, 8)], patch).grids[0]], patch).mean(0), fine)


def test_the_patch_embedding_equals_the_convolution_of_wan(dit: VideoDiT) -> None:
    clip = torch.randn(CHANNELS, 2, 4, 6)
    embedded = dit.embed(pack([clip], dit.base_patch))
    layer = dit.patch_embedding
    convolved = F.conv3d(clip[None], layer.weight, layer.bias, stride=layer.stride)[0].flatten(1).T
    torch.testing.assert_close(embedded, convolved, atol=1e-5, rtol=0)  # float32, only the order of sums differs
    assert len(patchify(clip, dit.base_patch)) == len(embedded)
