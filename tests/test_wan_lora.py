"""LoRAs of diffusers and PEFT change the same clips here as in diffusers, and LoRAs trained here do so there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.conftest import seeded
from tests.test_wan_pipeline import PROMPT, SETTINGS, assert_same_latents, images_for, latents_of
from tests.test_wan_pipeline import without_ftfy as without_ftfy
from tests.wan_folders import save
from videogen.cli.main import sample
from videogen.sampling.pipeline import ClipRequest, VideoPipeline

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
EVERYWHERE = [
    *ATTENTION, "ffn.net.0.proj", "ffn.net.2", "patch_embedding", "proj_out", "time_proj", "text_embedder.linear_1",
    "time_embedder.linear_2",
]  # fmt: skip
Folder = tuple[Path, WanPipeline]


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    folder = tmp_path_factory.mktemp("wan") / "T2V 2.1"
    return folder, save("T2V 2.1", folder)


@torch.no_grad()
def add_random_adapter(model: nn.Module, targets: list[str], seed: int, name: str = "default") -> None:
    """Add a LoRA whose two matrices are both random, as after training."""
    model.add_adapter(LoraConfig(r=2, lora_alpha=3, target_modules=targets), adapter_name=name)  # type: ignore
    for key, weight in model.named_parameters():
        if f".{name}." in key:
            weight.copy_(0.2 * torch.randn(weight.shape, generator=seeded(seed)))


def save_lora(pipeline: type, model: nn.Module, folder: Path) -> Path:
    """Save a LoRA as diffusers' training scripts do."""
    pipeline.save_lora_weights(  # type: ignore[attr-defined]
        str(folder), transformer_lora_layers=get_peft_model_state_dict(model), transformer_lora_adapter_metadata=None
    )
    return folder


@pytest.fixture(scope="module")
def loras(wan: Folder, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Save two LoRAs with diffusers: one on the attention, one on every kind of layer."""
    folders = []
    for i, targets in enumerate((ATTENTION, EVERYWHERE)):
        model = WanPipeline.from_pretrained(str(wan[0])).transformer
        add_random_adapter(model, targets, i)
        folders.append(save_lora(WanPipeline, model, tmp_path_factory.mktemp("lora") / str(i)))
    return folders


def load_both(wan: Folder) -> tuple[VideoPipeline, WanPipeline]:
    theirs = WanPipeline.from_pretrained(str(wan[0]))
    theirs.set_progress_bar_config(disable=True)
    return VideoPipeline.from_pretrained(wan[0]), theirs


def sample_latent(ours: VideoPipeline) -> Tensor:
    return ours.sample([ClipRequest(PROMPT, 5)], SETTINGS)[0]


@pytest.mark.parametrize("index", [0, 1], ids=["attention", "every kind of layer"])
def test_a_lora_changes_a_clip_as_in_diffusers(wan: Folder, loras: list[Path], index: int) -> None:
    plain = latents_of(wan[1], SETTINGS)
    pipelines = load_both(wan)
    for pipeline in pipelines:
        pipeline.load_lora_weights(str(loras[index]))
    their_latent = latents_of(pipelines[1], SETTINGS)
    assert_same_latents(sample_latent(pipelines[0]), their_latent)
    assert (their_latent - plain).abs().max() > 0.01


def test_loras_are_scaled_selected_and_unloaded_as_in_diffusers(wan: Folder, loras: list[Path]) -> None:
    pipelines = load_both(wan)
    for pipeline in pipelines:
        for i, path in enumerate(loras):
            pipeline.load_lora_weights(str(path), adapter_name=f"n{i}")
        pipeline.set_adapters(["n0", "n1"], [0.7, -0.4])
    assert_same_latents(sample_latent(pipelines[0]), latents_of(pipelines[1], SETTINGS))
    for pipeline in pipelines:
        pipeline.set_adapters(["n1"], [0.5])
    assert_same_latents(sample_latent(pipelines[0]), latents_of(pipelines[1], SETTINGS))
    for pipeline in pipelines:
        pipeline.unload_lora_weights()
    assert_same_latents(sample_latent(pipelines[0]), latents_of(wan[1], SETTINGS))


def test_a_fused_lora_makes_the_latent_of_the_adapter(wan: Folder, loras: list[Path], tmp_path: Path) -> None:
    ours, theirs = load_both(wan)
    ours.load_lora_weights(str(loras[0]))
    adapted = sample_latent(ours)
    ours.fuse_lora(lora_scale=1.0)
    ours.unload_lora_weights()
    merged = sample_latent(ours)
    torch.testing.assert_close(merged, adapted, atol=1e-3, rtol=0)  # x(W + BA) against xW + xBA, over the steps
    theirs.load_lora_weights(str(loras[0]))
    theirs.fuse_lora(lora_scale=1.0)
    theirs.unload_lora_weights()
    assert_same_latents(merged, latents_of(theirs, SETTINGS))
    ours.save_pretrained(tmp_path)  # the checkpoint names no adapter
    assert_same_latents(latents_of(WanPipeline.from_pretrained(str(tmp_path)), SETTINGS), merged)


def test_a_lora_saved_here_loads_in_diffusers(wan: Folder, tmp_path: Path) -> None:
    ours, theirs = load_both(wan)
    add_random_adapter(ours.transformer, EVERYWHERE, 3)
    latent = sample_latent(ours)
    theirs.load_lora_weights(str(save_lora(VideoPipeline, ours.transformer, tmp_path / "by pipeline")))
    # PEFT scales by alpha / r; without metadata diffusers takes alpha to be r.
    reloaded = VideoPipeline.from_pretrained(wan[0])
    reloaded.load_lora_weights(str(tmp_path / "by pipeline"))
    assert_same_latents(sample_latent(reloaded), latents_of(theirs, SETTINGS))
    ours.transformer.save_lora_adapter(str(tmp_path / "by model"))
    other = load_both(wan)[1]
    file = "pytorch_lora_weights.safetensors"
    other.transformer.load_lora_adapter(str(tmp_path / "by model"), prefix=None, weight_name=file)
    assert_same_latents(latent, latents_of(other, SETTINGS))


def test_a_lora_in_wans_own_names_loads_as_in_diffusers(wan: Folder, tmp_path: Path) -> None:
    """The community's trainers write these names, with an alpha."""
    d, ffn = 36, 40
    sizes = {f"self_attn.{x}": (d, d) for x in "qkvo"} | {f"cross_attn.{x}": (d, d) for x in "qkvo"}
    sizes |= {"ffn.0": (d, ffn), "ffn.2": (ffn, d)}
    weights: dict[str, Tensor] = {}
    for i in range(2):
        for name, (n_in, n_out) in sizes.items():
            prefix = f"diffusion_model.blocks.{i}.{name}"
            weights[f"{prefix}.lora_down.weight"] = 0.3 * torch.randn(2, n_in)
            weights[f"{prefix}.lora_up.weight"] = 0.3 * torch.randn(n_out, 2)
            weights[f"{prefix}.alpha"] = torch.tensor(1.0)
    save_file(weights, tmp_path / "lora.safetensors")
    pipelines = load_both(wan)
    for pipeline in pipelines:
        pipeline.load_lora_weights(str(tmp_path / "lora.safetensors"))
    their_latent = latents_of(pipelines[1], SETTINGS)
    assert_same_latents(sample_latent(pipelines[0]), their_latent)
    assert (their_latent - latents_of(wan[1], SETTINGS)).abs().max() > 0.01


def test_a_lora_of_a_text_to_video_model_loads_into_an_image_to_video_model(loras: list[Path], tmp_path: Path) -> None:
    theirs = save("I2V 2.1", tmp_path)
    ours = VideoPipeline.from_pretrained(tmp_path)
    for pipeline in (ours, theirs):
        pipeline.load_lora_weights(str(loras[0]))
    images = images_for("I2V 2.1")
    (latent,) = ours.sample([ClipRequest(PROMPT, 5, images)], SETTINGS)
    assert_same_latents(latent, latents_of(theirs, SETTINGS, images))


def test_the_second_expert_takes_a_lora_of_its_own(loras: list[Path], tmp_path: Path) -> None:
    theirs = save("T2V A14B", tmp_path)
    ours = VideoPipeline.from_pretrained(tmp_path)
    plain = sample_latent(ours)
    for pipeline in (ours, theirs):
        pipeline.load_lora_weights(str(loras[0]), adapter_name="high")
        pipeline.load_lora_weights(str(loras[1]), adapter_name="low", load_into_transformer_2=True)
    their_latent = latents_of(theirs, SETTINGS)
    assert_same_latents(sample_latent(ours), their_latent)
    assert (their_latent - plain).abs().max() > 0.01


def test_each_expert_takes_the_loras_that_name_it(
    loras: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = save("T2V A14B", tmp_path)
    theirs.load_lora_weights(str(loras[0]), adapter_name="high")
    theirs.load_lora_weights(str(loras[1]), adapter_name="low", load_into_transformer_2=True)
    theirs.transformer.set_adapters(["high"], [0.7])
    ours = VideoPipeline.from_pretrained(tmp_path)
    ours.add_loras([f"high:{loras[0]}=0.7", f"low:{loras[1]}"])
    assert_same_latents(sample_latent(ours), latents_of(theirs, SETTINGS))
    words = [PROMPT, "--model", str(tmp_path), "--size", "32x64", "--frames", "9", "--out", str(tmp_path / "a.mp4")]
    assert sample([*words, "--lora", str(loras[0])]) == 2
    assert f"this model has two experts: say --lora high:{loras[0]} or low:" in capsys.readouterr().err


def test_a_lora_that_does_not_fit_the_model_is_refused(
    wan: Folder, loras: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    matrix = torch.zeros(2, 2)
    kinds = {
        "kohya": {f"lora_unet_down_blocks_0_attn.lora_{direction}.weight": matrix for direction in ("down", "up")},
        "flux": {f"diffusion_model.double_blocks.0.img_attn.qkv.lora_{side}.weight": matrix for side in "AB"},
        "peft": {f"base_model.model.blocks.0.attn1.to_q.lora_{side}.weight": matrix for side in "AB"},
    }
    words = [PROMPT, "--model", str(wan[0]), "--size", "32x64", "--frames", "9", "--out", str(tmp_path / "a.mp4")]
    for kind, weights in kinds.items():
        save_file({name: value.clone() for name, value in weights.items()}, path := tmp_path / f"{kind}.safetensors")
        assert sample([*words, "--lora", str(path)]) == 2, kind
        message = capsys.readouterr().err
        assert f"{path} is no LoRA for this model: " in message, (kind, message)
    assert sample([*words, "--lora", f"low:{loras[0]}"]) == 2
    assert "this model has one transformer; leave low: out" in capsys.readouterr().err


def test_the_command_applies_loras_and_from_applies_them_again(
    wan: Folder, loras: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [PROMPT, "--model", str(wan[0]), "--seed", "5", "--size", "32x64", "--frames", "9", "--steps", "4"]
    words += ["--guidance", "4", "--negative", SETTINGS.negative, "--save-latents"]
    lora_words = ["--lora", f"{loras[0]}=0.7", str(loras[1])]
    assert sample([*words, "--out", str(tmp_path / "a.mp4"), *lora_words]) == 0
    theirs = load_both(wan)[1]
    for i, path in enumerate(loras):
        theirs.load_lora_weights(str(path), adapter_name=f"n{i}")
    theirs.set_adapters(["n0", "n1"], [0.7, 1.0])
    assert_same_latents(load_file(tmp_path / "a.safetensors")["latent"], latents_of(theirs, SETTINGS))
    assert sample(["--from", str(tmp_path / "a.mp4"), "--model", str(wan[0]), "--out", str(tmp_path / "b.mp4")]) == 0
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert sample([*words, "--out", str(tmp_path / "c.mp4"), "--lora", "nowhere.safetensors=2"]) == 2
    assert "there is no LoRA nowhere.safetensors; give" in capsys.readouterr().err
