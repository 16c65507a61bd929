"""A LoRA file is applied whole or refused: none of its tensors is dropped in silence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.conftest import seeded
from tests.test_wan_lora import ATTENTION, add_random_adapter, save_lora
from tests.test_wan_pipeline import PROMPT, SETTINGS, assert_same_latents, latents_of
from tests.test_wan_pipeline import without_ftfy as without_ftfy
from tests.wan_folders import save
from videogen.cli.main import sample
from videogen.data.manifest import write_manifest
from videogen.sampling.pipeline import ClipRequest, VideoPipeline

LAYERS = {"q": 36, "k": 36, "v": 36, "o": 36}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    save("T2V 2.1", path := tmp_path_factory.mktemp("wan") / "T2V 2.1")
    return path


@pytest.fixture
def lora(folder: Path, tmp_path: Path) -> Path:
    """Save a LoRA on the attention with diffusers; return its file."""
    model = WanPipeline.from_pretrained(str(folder)).transformer
    add_random_adapter(model, ATTENTION, 0)
    return save_lora(WanPipeline, model, tmp_path / "lora") / "pytorch_lora_weights.safetensors"


def random(*shape: int, seed: int = 0) -> Tensor:
    return 0.2 * torch.randn(*shape, generator=seeded(seed))


def other_trainer(num_blocks: int = 2) -> dict[str, Tensor]:
    """Make the LoRA of a trainer in Wan's own names, with alphas, as most that are shared have them."""
    tensors: dict[str, Tensor] = {}
    for block in range(num_blocks):
        for part in ("self_attn", "cross_attn"):
            for number, (layer, width) in enumerate(LAYERS.items()):
                name = f"diffusion_model.blocks.{block}.{part}.{layer}"
                tensors[f"{name}.lora_down.weight"] = random(2, width, seed=number)
                tensors[f"{name}.lora_up.weight"] = random(width, 2, seed=number + 9)
                tensors[f"{name}.alpha"] = torch.tensor(1.0)
    return tensors


def write(path: Path, tensors: dict[str, Tensor]) -> Path:
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
    return path


def refusal(folder: Path, path: Path) -> str:
    with pytest.raises(ValueError, match=r"is no LoRA|used in part") as error:
        VideoPipeline.from_pretrained(folder).add_loras([str(path)])
    return str(error.value)


def sample_with(folder: Path, path: Path) -> Tensor:
    pipeline = VideoPipeline.from_pretrained(folder)
    pipeline.add_loras([str(path)])
    return pipeline.sample([ClipRequest(PROMPT, 5)], SETTINGS)[0]


def test_a_whole_lora_of_another_trainer_is_applied_as_in_diffusers(folder: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "whole.safetensors", other_trainer())
    theirs = WanPipeline.from_pretrained(str(folder))
    theirs.set_progress_bar_config(disable=True)
    theirs.load_lora_weights(str(path))
    assert_same_latents(sample_with(folder, path), latents_of(theirs, SETTINGS))


DIFFERENCES = {
    "blocks.0.norm3.diff": "blocks.0.norm2.weight", "blocks.1.norm3.diff_b": "blocks.1.norm2.bias",
    "blocks.0.self_attn.norm_q.diff": "blocks.0.attn1.norm_q.weight",
    "blocks.0.self_attn.q.diff_b": "blocks.0.attn1.to_q.bias", "blocks.1.ffn.2.diff": "blocks.1.ffn.net.2.weight",
    "time_projection.1.diff_b": "condition_embedder.time_proj.bias", "patch_embedding.diff": "patch_embedding.weight",
    "text_embedding.0.diff_b": "condition_embedder.text_embedder.linear_1.bias", "head.head.diff": "proj_out.weight",
}  # fmt: skip


@pytest.mark.parametrize("kind", ["without a prefix", "of an adapter", "of PEFT"])
def test_names_without_a_prefix_or_of_an_adapter_are_read(kind: str, folder: Path, tmp_path: Path) -> None:
    whole = {name: tensor for name, tensor in other_trainer().items() if "alpha" not in name}
    whole = {name.replace("lora_down", "lora_A").replace("lora_up", "lora_B"): w for name, w in whole.items()}
    renamed = {
        "without a prefix": lambda name: name.removeprefix("diffusion_model."),
        "of an adapter": lambda name: name.replace(".weight", ".default.weight"),
        "of PEFT": lambda name: "base_model.model." + name.removeprefix("diffusion_model.").replace("A.", "A.default."),
    }[kind]
    path = write(tmp_path / "renamed.safetensors", {renamed(name): tensor for name, tensor in whole.items()})
    latent = sample_with(folder, path)
    assert torch.equal(latent, sample_with(folder, write(tmp_path / "whole.safetensors", whole)))
    assert not torch.equal(latent, VideoPipeline.from_pretrained(folder).sample([ClipRequest(PROMPT, 5)], SETTINGS)[0])


def test_a_lora_that_diffusers_saved_of_the_transformer_alone_keeps_its_alpha(folder: Path, tmp_path: Path) -> None:
    theirs = WanPipeline.from_pretrained(str(folder))
    theirs.set_progress_bar_config(disable=True)
    theirs.transformer.add_adapter(LoraConfig(r=2, lora_alpha=5, target_modules=ATTENTION), adapter_name="default")
    with torch.no_grad():
        for key, weight in theirs.transformer.named_parameters():
            if "lora_" in key:
                weight.copy_(random(*weight.shape))
    theirs.transformer.save_lora_adapter(str(tmp_path), adapter_name="default")
    (path,) = tmp_path.glob("*.safetensors")
    assert all(name.startswith("blocks.") for name in load_file(path))
    assert_same_latents(sample_with(folder, path), latents_of(theirs, SETTINGS))


def test_a_lora_of_another_width_is_refused_in_one_sentence_with_both(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = {name: torch.zeros(2, 40) if "down" in name else tensor for name, tensor in other_trainer().items()}
    path = write(tmp_path / "wide.safetensors", wide)
    words = [PROMPT, "--model", str(folder), "--size", "32x64", "--frames", "9", "--out", str(tmp_path / "a.mp4")]
    assert sample([*words, "--lora", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"error: {path} is no LoRA for this model: it is of width 40 and this model of 36 (diffusion_"
    )


def test_matrices_of_other_kinds_are_refused_whole_with_their_count(folder: Path, tmp_path: Path) -> None:
    layer = "diffusion_model.blocks.0.ffn.0"
    for kind, more in {
        "LoKr": {f"{layer}.lokr_w1": random(6, 6), f"{layer}.lokr_w2": random(6, 6)},
        "LoHa": {f"{layer}.hada_w{i}_{side}": random(2, 2) for i in (1, 2) for side in "ab"},
    }.items():
        path = write(tmp_path / f"{kind}.safetensors", other_trainer() | more)
        assert f"{len(more)} of its {48 + len(more)} tensors are {kind}, which is not read" in refusal(folder, path)


def test_differences_of_weights_are_added_to_the_weights_at_the_scale(folder: Path, tmp_path: Path) -> None:
    by_hand = VideoPipeline.from_pretrained(folder)
    weights, differences = dict(by_hand.transformer.named_parameters()), dict[str, Tensor]()
    with torch.no_grad():
        for seed, (name, target) in enumerate(DIFFERENCES.items()):
            differences[f"diffusion_model.{name}"] = difference = random(*weights[target].shape, seed=seed)
            weights[target] += 0.5 * difference
    by_hand.add_loras([f"{write(tmp_path / 'matrices.safetensors', other_trainer())}=0.5"])
    path = write(tmp_path / "all.safetensors", other_trainer() | differences)
    pipeline = VideoPipeline.from_pretrained(folder)
    pipeline.add_loras([f"{path}=0.5"])
    latents = [p.sample([ClipRequest(PROMPT, 5)], SETTINGS)[0] for p in (pipeline, by_hand)]
    assert torch.equal(*latents)
    assert not torch.equal(latents[0], sample_with(folder, tmp_path / "matrices.safetensors"))


def test_differences_of_biases_change_a_clip_as_in_diffusers(folder: Path, tmp_path: Path) -> None:
    layers = [name.removesuffix(".alpha") for name in other_trainer() if name.endswith(".alpha")]
    biases = {f"{layer}.diff_b": random(36, seed=seed) for seed, layer in enumerate(layers)}
    path = write(tmp_path / "biases.safetensors", other_trainer() | biases)
    theirs = WanPipeline.from_pretrained(str(folder))
    theirs.set_progress_bar_config(disable=True)
    theirs.load_lora_weights(str(path))
    assert_same_latents(sample_with(folder, path), latents_of(theirs, SETTINGS))


@pytest.mark.parametrize(
    ("name", "width"), [("blocks.0.norm3.diff", 35), ("blocks.7.norm3.diff", 36), ("blocks.0.norm1.diff", 36)]
)
def test_a_difference_that_has_no_weight_is_refused_unless_it_is_zero(
    name: str, width: int, folder: Path, tmp_path: Path
) -> None:
    tensors, name = other_trainer(), f"diffusion_model.{name}"
    path = write(tmp_path / "part.safetensors", tensors | {name: random(width)})
    assert refusal(folder, path).startswith(f"{path} would be used in part: 1 of its 49 tensors have no place")
    assert f"({name})" in refusal(folder, path)
    zero = write(tmp_path / "zero.safetensors", tensors | {name: torch.zeros(width)})
    assert torch.equal(sample_with(folder, zero), sample_with(folder, write(tmp_path / "a.safetensors", tensors)))


def test_layers_that_the_model_lacks_are_refused(folder: Path, lora: Path, tmp_path: Path) -> None:
    state = load_file(lora)
    more = {name.replace("blocks.1.", "blocks.7."): value for name, value in state.items() if ".blocks.1." in name}
    message = refusal(folder, write(tmp_path / "more.safetensors", state | more))
    assert f"would be used in part: {len(more)} of its {len(state) + len(more)} tensors have no place" in message
    assert "blocks.7.attn1.to_k.lora_A.weight, " in message
    text = {"text_encoder.block.0.q.lora_A.weight": random(2, 4), "text_encoder.block.0.q.lora_B.weight": random(4, 2)}
    assert "2 of its" in refusal(folder, write(tmp_path / "text.safetensors", state | text))
    deeper = write(tmp_path / "deeper.safetensors", other_trainer(3))
    assert "16 of its 72 tensors" in refusal(folder, deeper)  # two matrices of eight layers


def test_dora_scales_of_other_programs_are_refused(folder: Path, lora: Path, tmp_path: Path) -> None:
    scale = {"transformer.blocks.0.attn1.to_q.dora_scale": random(36)}
    message = refusal(folder, write(tmp_path / "theirs.safetensors", load_file(lora) | scale))
    assert f"1 of its {len(load_file(lora)) + 1} tensors have no place in this model ({next(iter(scale))})" in message
    scale = {"diffusion_model.blocks.0.self_attn.q.dora_scale": random(36)}
    path = write(tmp_path / "wan.safetensors", other_trainer() | scale)
    message = refusal(folder, path)
    assert message.startswith(
        f"{path} is no LoRA for this model: 1 of its 49 tensors are of no kind that is read (blocks.0."
    )
    assert "self_attn.q.dora_scale" in message


def test_a_dora_of_peft_is_applied_whole(folder: Path, tmp_path: Path) -> None:
    model = WanPipeline.from_pretrained(str(folder)).transformer
    model.add_adapter(LoraConfig(r=2, lora_alpha=3, target_modules=ATTENTION, use_dora=True), adapter_name="default")
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if ".default" in key:
                weight.add_(random(*weight.shape))
    path = save_lora(WanPipeline, model, tmp_path / "dora")
    assert any("magnitude" in name for name in load_file(path / "pytorch_lora_weights.safetensors"))
    theirs = WanPipeline.from_pretrained(str(folder))
    theirs.set_progress_bar_config(disable=True)
    theirs.load_lora_weights(str(path))
    assert_same_latents(sample_with(folder, path), latents_of(theirs, SETTINGS))


def test_the_command_refuses_in_one_sentence_and_a_damaged_lora_is_named(
    folder: Path, lora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [PROMPT, "--model", str(folder), "--size", "32x64", "--frames", "9", "--out", str(tmp_path / "a.mp4")]
    path = write(tmp_path / "part.safetensors", other_trainer() | {"diffusion_model.blocks.0.norm1.diff": random(36)})
    assert sample([*words, "--lora", str(path)]) == 2
    assert "used in part: 1 of its 49 tensors" in capsys.readouterr().err
    write_manifest(lora.parent)
    data = bytearray(lora.read_bytes())
    data[-1] ^= 1
    lora.write_bytes(data)
    assert sample([*words, "--lora", str(lora.parent)]) == 2
    assert f"{lora} is damaged: its content is not what was written" in capsys.readouterr().err
    lora.write_bytes(data[: len(data) // 2])
    assert sample([*words, "--lora", str(lora)]) == 2
    assert f"{lora} is no LoRA for this model: the file is not whole" in capsys.readouterr().err
    (tmp_path / "two").mkdir()
    for name in "ab":
        write(tmp_path / "two" / f"{name}.safetensors", other_trainer())
    assert sample([*words, "--lora", str(tmp_path / "two")]) == 2
    assert "holds 2 .safetensors files; name the one that is the LoRA" in capsys.readouterr().err
    assert not (tmp_path / "a.mp4").exists()
    assert json.loads((lora.parent / "manifest.json").read_text(encoding="utf-8"))
