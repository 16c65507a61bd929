"""Folders of Wan as diffusers and its converters write them in other forms open here too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from einops import rearrange
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, T5Config, T5EncoderModel

from tests.conftest import seeded
from tests.test_cli import refused
from tests.test_wan_pipeline import PROMPT, SETTINGS, assert_same_latents, images_for, latents_of
from tests.test_wan_pipeline import without_ftfy as without_ftfy
from tests.wan_folders import CLIP_WIDTH, DIT, TEXT_WIDTH, make_pipeline
from videogen.cli.main import sample
from videogen.data.video_io import read_settings
from videogen.models.dit import VideoDiT
from videogen.packing.noise import shared_level
from videogen.packing.packs import pack, pack_texts, pad_texts, unpack
from videogen.sampling.pipeline import ClipRequest, VideoPipeline


def test_an_image_encoder_with_a_projection_makes_the_latent_of_diffusers(tmp_path: Path) -> None:
    theirs = make_pipeline("I2V 2.1")
    config = CLIPVisionConfig(
        hidden_size=CLIP_WIDTH, intermediate_size=20, num_hidden_layers=3, num_attention_heads=2, image_size=24,
        patch_size=8,
    )  # fmt: skip
    theirs.register_modules(image_encoder=CLIPVisionModelWithProjection(config).eval())
    theirs.save_pretrained(tmp_path)
    images = images_for("I2V 2.1")
    (latent,) = VideoPipeline.load(tmp_path).sample([ClipRequest(PROMPT, 5, images)], SETTINGS)
    assert_same_latents(latent, latents_of(theirs, SETTINGS, images))


def test_a_t5_encoder_makes_the_latent_of_diffusers(tmp_path: Path) -> None:
    theirs = make_pipeline("T2V 2.1")
    config = T5Config(vocab_size=len(theirs.tokenizer), d_model=TEXT_WIDTH, d_kv=8, d_ff=24, num_layers=2, num_heads=2)
    theirs.register_modules(text_encoder=T5EncoderModel(config).eval())
    theirs.save_pretrained(tmp_path)
    (latent,) = VideoPipeline.load(tmp_path).sample([ClipRequest(PROMPT, 5)], SETTINGS)
    assert_same_latents(latent, latents_of(theirs, SETTINGS))


@pytest.mark.parametrize("in_every_part", [True, False])
def test_a_folder_of_a_variant_opens_by_its_name(in_every_part: bool, tmp_path: Path) -> None:
    theirs = make_pipeline("T2V 2.1")
    theirs.save_pretrained(tmp_path, variant="fp16")
    if not in_every_part:
        path = tmp_path / "text_encoder" / "model.fp16.safetensors"
        path.rename(path.with_name("model.safetensors"))
    ours = VideoPipeline.load(tmp_path, options={"variant": "fp16"})
    assert_same_latents(ours.sample([ClipRequest(PROMPT, 5)], SETTINGS)[0], latents_of(theirs, SETTINGS))


@pytest.mark.parametrize("options", [{"image_dim": 10}, {"added_kv_proj_dim": 36}], ids=str)
@torch.no_grad()
def test_image_layers_in_part_predict_as_in_diffusers(options: dict[str, int]) -> None:
    """With image_dim alone, the rows of an image stand among those of the text."""
    theirs = WanTransformer3DModel(**(DIT | options)).eval()  # type: ignore[arg-type]
    for weight in theirs.parameters():
        weight.copy_(0.3 * torch.randn(weight.shape, generator=seeded(weight.numel())))
    ours = VideoDiT(**(DIT | options)).eval()  # type: ignore[arg-type]
    ours.load_state_dict({name: value for name, value in theirs.state_dict().items() if "norm_added_q" not in name})
    latents = [torch.randn(4, 3, 4, 6, generator=seeded(i)) for i in range(2)]
    texts = [torch.randn(length, TEXT_WIDTH, generator=seeded(length)) for length in (3, 7)]
    images = torch.randn(2, 5, 10, generator=seeded(9)) if "image_dim" in options else None
    video = pack(latents, ours.base_patch)
    context = ours.project_text(pad_texts(texts, 512), None if images is None else pack_texts([*images]))
    out = ours(video, shared_level(torch.tensor([0.5]), len(video.tokens)), context)
    rows = torch.stack([torch.cat([text, text.new_zeros(512 - len(text), TEXT_WIDTH)]) for text in texts])
    expected = theirs(torch.stack(latents), torch.tensor([500, 500]), rows, encoder_hidden_states_image=images)[0]
    for clip, their_clip in zip(unpack(video._replace(tokens=out)), expected, strict=True):
        torch.testing.assert_close(clip, their_clip, atol=2e-4, rtol=1e-4)  # float32, a sum of other order
    assert rearrange(expected, "b c t h w -> b (c t h w)").std(1).min() > 1e-2


@pytest.mark.parametrize("present", ["transformer", "transformer_2"])
def test_one_expert_alone_makes_the_latent_of_diffusers(present: str, tmp_path: Path) -> None:
    theirs = make_pipeline("T2V A14B")
    theirs.register_modules(**{"transformer_2" if present == "transformer" else "transformer": None})
    theirs.register_to_config(boundary_ratio=None if present == "transformer" else 1.0)
    theirs.save_pretrained(tmp_path / "one")
    ours = VideoPipeline.load(tmp_path / "one")
    (latent,) = ours.sample([ClipRequest(PROMPT, 5)], SETTINGS)
    assert_same_latents(latent, latents_of(theirs, SETTINGS))
    ours.save_pretrained(tmp_path / "again")
    assert torch.equal(VideoPipeline.load(tmp_path / "again").sample([ClipRequest(PROMPT, 5)], SETTINGS)[0], latent)


@pytest.mark.parametrize(
    ("present", "ratio", "guidance"),
    [("transformer", None, 5.0), ("transformer", 0.0, 4.0), ("transformer_2", 1.0, 3.0)],
)
def test_one_expert_alone_is_opened_by_the_command_at_its_own_guidance(
    present: str, ratio: float | None, guidance: float, tmp_path: Path
) -> None:
    theirs = make_pipeline("T2V A14B")
    theirs.register_modules(**{"transformer_2" if present == "transformer" else "transformer": None})
    theirs.register_to_config(boundary_ratio=ratio)
    theirs.save_pretrained(tmp_path / "one")
    words = [PROMPT, "--model", str(tmp_path / "one"), "--size", "64x32", "--frames", "5", "--steps", "2"]
    assert sample([*words, "--dry-run"]) == 0
    assert sample([*words, "--out", str(tmp_path / "clip.mp4")]) == 0
    settings = read_settings(tmp_path / "clip.mp4")
    assert (settings["guidance"], settings.get("guidance_2")) == (guidance, None)


def test_a_folder_without_any_transformer_is_refused_by_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = make_pipeline("T2V A14B")
    theirs.register_modules(transformer=None, transformer_2=None)
    theirs.save_pretrained(tmp_path / "none")
    capsys.readouterr()
    refused(capsys, sample([PROMPT, "--model", str(tmp_path / "none")]), "names no transformer; the checkpoint is not")
