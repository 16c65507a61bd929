"""LoRA training on diffusers' Wan folders: only the adapter is trained and saved, and diffusers loads it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_wan_lora_to_diffusers
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from tests.conftest import assert_same_state, elsewhere, fit, state_of, tiny_recipe
from tests.test_wan_pipeline import PROMPT, SETTINGS, assert_same_latents, latents_of
from tests.wan_folders import save
from videogen.config.train import DitConfig, TrainConfig
from videogen.data.files import MANIFEST
from videogen.sampling.pipeline import ClipRequest, VideoPipeline
from videogen.training.dit_stage import DitStage
from videogen.training.dry_run import plan_folder
from videogen.training.frozen_models import load_frozen
from videogen.training.lora import add_lora, save_lora
from videogen.training.memory import OVERHEAD, StepMemory, count_activations, count_trained
from videogen.training.stages import make_stage
from videogen.training.trainer import Trainer

SIZES = {"num_attention_heads": 3, "attention_head_dim": 12, "ffn_dim": 40, "num_layers": 2}
FILE = "run.safetensors"  # named after the run


def lora_recipe(folder: Path, clips: Path, run_dir: Path, **dit: object) -> TrainConfig:
    recipe = tiny_recipe("dit", clips, folder, run_dir, sample_every=8, sample_prompts=("a cat",))
    options = {"init": folder, "lora_rank": 2, "known": {"nothing": 1.0}, "gradient_checkpointing": True} | dit
    return replace(
        recipe,
        dit=DitConfig(**options),  # type: ignore[arg-type]
        optim=replace(recipe.optim, lr=2e-2),
        sample=replace(SETTINGS, size="32x48", frames=5, steps=2),
    )


@pytest.fixture(scope="module")
def trained(clips_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Train a LoRA for eight steps on a folder that diffusers saved."""
    folder = tmp_path_factory.mktemp("wan")
    save("T2V 2.1", folder / "T2V 2.1")
    recipe = lora_recipe(folder / "T2V 2.1", clips_folder, folder / "run")
    assert fit(recipe)
    return recipe


def test_a_trained_lora_samples_the_same_latents_here_and_in_diffusers(trained: TrainConfig) -> None:
    assert trained.dit.init is not None
    checkpoint = trained.run.dir / "checkpoint"
    assert {path.name for path in checkpoint.iterdir()} == {FILE, MANIFEST, "README.md"}
    wan = WanPipeline.from_pretrained(str(trained.dit.init))
    wan.set_progress_bar_config(disable=True)
    without_lora = latents_of(wan, SETTINGS)
    wan.load_lora_weights(str(checkpoint))
    with_lora = latents_of(wan, SETTINGS)
    pipeline = VideoPipeline.load(trained.dit.init)
    pipeline.add_loras([str(checkpoint)])
    assert_same_latents(pipeline.sample([ClipRequest(PROMPT, 5)], SETTINGS)[0], with_lora)
    assert (with_lora - without_lora).abs().max() > 0.01


def test_the_checkpoint_holds_the_first_average_of_the_adapter(trained: TrainConfig) -> None:
    exported = load_file(trained.run.dir / "checkpoint" / FILE)
    average = load_file(trained.run.dir / "step_000008" / "ema_0.safetensors")
    converted = _convert_non_diffusers_wan_lora_to_diffusers(dict(exported))
    assert {name.replace("transformer.", "").replace(".weight", ".default.weight"): value.shape
            for name, value in converted.items()} == {name: value.shape for name, value in average.items()}  # fmt: skip
    for name, value in converted.items():
        key = name.removeprefix("transformer.").replace(".weight", ".default.weight")
        assert torch.equal(value, average[key])


def test_only_the_adapter_is_trained_and_saved(trained: TrainConfig) -> None:
    stage = make_stage(trained)
    assert isinstance(stage, DitStage)
    state = state_of(trained.run.dir, 8)
    saved = {name.removeprefix("model.") for name in state if name.startswith("model.")}
    assert saved == {name for name, p in stage.model.named_parameters() if p.requires_grad}
    assert all(".lora_" in name for name in saved)
    assert {name.split(".lora_")[0].split(".", 2)[2] for name in saved} == {
        *(f"attn{i}.{x}" for i in (1, 2) for x in ("to_q", "to_k", "to_v", "to_out.0")), "ffn.net.0.proj", "ffn.net.2",
    }  # fmt: skip
    frozen = {name: p.clone() for name, p in stage.model.named_parameters() if not p.requires_grad}
    trainer = Trainer(stage, trained)
    lora_b = {name: p for name, p in stage.model.named_parameters() if p.requires_grad and ".lora_B" in name}
    assert all(p.abs().max() > 0 for p in lora_b.values())  # they start at zero
    trainer.train_step(next(trainer.batches()), trainer.step)
    for name, p in stage.model.named_parameters():
        if name in frozen:
            assert torch.equal(p, frozen[name]), name


def test_training_a_lora_lowers_the_validation_loss(trained: TrainConfig, tmp_path: Path) -> None:
    recipe = elsewhere(trained, tmp_path / "run", steps=40, sample_every=0, val_every=40, save_every=40)
    stage = make_stage(recipe)
    assert isinstance(stage, DitStage)
    trainer = Trainer(stage, recipe)
    before = stage.validate()["loss"]
    assert trainer.fit()
    assert stage.validate()["loss"] < 0.95 * before


def test_a_lora_run_that_is_stopped_and_resumed_equals_an_uninterrupted_one(
    trained: TrainConfig, tmp_path: Path
) -> None:
    recipe = elsewhere(trained, tmp_path / "run", steps=8, minutes=1e-9)
    torch.manual_seed(99)
    for _ in range(7):
        assert not fit(recipe)  # one step a session
    assert fit(recipe)
    assert_same_state(recipe.run.dir, trained.run.dir, 8)
    resumed, uninterrupted = (load_file(r.run.dir / "checkpoint" / FILE) for r in (recipe, trained))
    assert all(torch.equal(resumed[name], uninterrupted[name]) for name in resumed.keys() | uninterrupted.keys())


def count_weights(weights: Iterable[Tensor]) -> int:
    return sum(weight.numel() for weight in weights)


def test_a_dry_run_counts_the_trained_and_the_frozen_weights_of_a_lora(trained: TrainConfig) -> None:
    """A LoRA's weights are few, but those of the model, the VAE and the text encoder are in memory too."""
    stage = make_stage(trained)
    assert isinstance(stage, DitStage)
    vae_and_text_encoder = [*stage.vae.parameters(), *stage.text_encoder.parameters()]
    adapter = [p for p in stage.model.parameters() if p.requires_grad]
    base = [p for p in stage.model.parameters() if not p.requires_grad]
    frozen = [*vae_and_text_encoder, *base]
    plan = plan_folder(trained)
    assert (plan.weights, plan.frozen_weights) == (count_weights(adapter), count_weights(frozen))
    assert sum(p.nbytes for p in frozen) == 4 * count_weights(frozen)  # the estimate assumes float32
    assert count_weights(vae_and_text_encoder) > count_weights(stage.model.parameters()) > 10 * count_weights(adapter)
    memory = StepMemory(
        *(4 * count_weights(model) for model in (base, stage.vae.parameters(), stage.text_encoder.parameters())),
        *count_trained(count_weights(adapter), "adamw", len(trained.optim.ema)),
        count_activations(SIZES, trained.data.token_budget, recompute=True),
    )
    assert plan.memory_mb == {name: round(num_bytes / 1e6) for name, num_bytes in memory._asdict().items()}
    assert plan.memory_gb == round(memory.total(encoder_waits=False) / 1e9, 2)
    assert memory.total(encoder_waits=False) == sum(memory) + OVERHEAD
    assert memory.total(encoder_waits=True) == sum(memory) + OVERHEAD - min(memory.text_encoder, memory.activations)


def test_a_dry_run_without_a_lora_counts_the_models_of_dit_vae_and_dit_text(trained: TrainConfig) -> None:
    recipe = replace(trained, dit=replace(trained.dit, lora_rank=0))
    vae, _, text_encoder, _ = load_frozen(recipe.dit)
    plan, lora_plan = plan_folder(recipe), plan_folder(trained)
    assert trained.dit.init is not None
    model = VideoPipeline.load(trained.dit.init).transformer
    assert plan.weights == count_weights(model.parameters())
    assert plan.frozen_weights == count_weights(vae.parameters()) + count_weights(text_encoder.parameters())
    assert plan.tokens == lora_plan.tokens
    without_vae = replace(recipe, dit=replace(recipe.dit, vae=Path("made") / "later" / "vae"))
    assert plan_folder(without_vae).frozen_weights == count_weights(text_encoder.parameters())


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("T2V A14B", {}, "has two transformers; training takes models of one"),
        ("TI2V 5B", {}, "has cells of 16 pixels; training takes models of 8"),
        ("I2V 2.1", {}, "begins with an image, and training has none beside a clip; give a T2V model"),
        (
            "T2V 2.1",
            {"lora_layers": ("to_q", "to_kk")},
            "got to_kk; did you mean 'to_k'.*; it has .*to_q, to_k, to_v",
        ),
        ("T2V 2.1", {"lora_layers": ("to_x",)}, "lora_layers must be names of the transformer's layers, got to_x"),
    ],
)
def test_a_model_that_a_lora_cannot_train_is_refused(
    kind: str, changes: dict[str, object], message: str, clips_folder: Path, tmp_path: Path
) -> None:
    save(kind, tmp_path / "wan")
    with pytest.raises(ValueError, match=message):
        make_stage(lora_recipe(tmp_path / "wan", clips_folder, tmp_path / "run", **changes))


def test_a_lora_without_dit_init_is_refused() -> None:
    with pytest.raises(ValueError, match="lora_rank = 4 needs weights to adapt"):
        DitConfig(lora_rank=4)


# --- the file, as other programs read it


def comfyui_layers(num_blocks: int) -> set[str]:
    """List the names under which ComfyUI looks for a LoRA of Wan: each weight of its model, without .weight.

    Its model has Wan's own names, and it tries `diffusion_model.` before them with .lora_A.weight and .lora_B.weight.
    """
    attention = [f"{part}_attn.{layer}" for part in ("self", "cross") for layer in "qkvo"]
    return {
        f"diffusion_model.blocks.{block}.{layer}"
        for block in range(num_blocks)
        for layer in (*attention, "ffn.0", "ffn.2")
    }


def test_comfyui_finds_a_layer_for_every_tensor_of_a_trained_lora(trained: TrainConfig) -> None:
    names = load_file(trained.run.dir / "checkpoint" / FILE).keys()
    layers = {name.removesuffix(end) for name in names for end in (".lora_A.weight", ".lora_B.weight")}
    assert {layer for layer in layers if not layer.endswith(".weight")} == comfyui_layers(2)
    assert len(names) == 2 * len(comfyui_layers(2))


def test_a_lora_says_what_it_is(trained: TrainConfig) -> None:
    with safe_open(trained.run.dir / "checkpoint" / FILE, framework="pt") as file:
        metadata = file.metadata()
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"], metadata["ss_output_name"]) == ("2", "2", "run")
    assert metadata["ss_sd_model_name"] == str(trained.dit.init)
    adapter = json.loads(metadata["lora_adapter_metadata"])
    assert adapter["transformer.r"] == adapter["transformer.lora_alpha"] == 2


def test_trigger_words_of_the_captions_are_written_into_the_file_and_the_card(
    trained: TrainConfig, clips_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert trained.dit.init is not None
    stage = make_stage(lora_recipe(trained.dit.init, clips_folder, tmp_path / "mine", lora_trigger="on a"))
    (warning,) = [record.getMessage() for record in caplog.records if "lora_trigger" in record.getMessage()]
    assert re.fullmatch(r"dit.lora_trigger = 'on a' stands in [1-9] of 1?\d captions", warning)
    stage.export(tmp_path / "out")
    with safe_open(tmp_path / "out" / "mine.safetensors", framework="pt") as file:
        assert file.metadata()["modelspec.trigger_phrase"] == "on a"
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "Prompts call it by the words 'on a'." in card
    assert 'python sample.py "on a, a cat"' in card
    with safe_open(trained.run.dir / "checkpoint" / FILE, framework="pt") as file:
        assert "modelspec.trigger_phrase" not in file.metadata()


def test_trigger_words_that_call_nothing_are_refused(trained: TrainConfig, clips_folder: Path, tmp_path: Path) -> None:
    assert trained.dit.init is not None
    recipe = lora_recipe(trained.dit.init, clips_folder, tmp_path / "mine", lora_trigger="sks")
    with pytest.raises(ValueError, match=r"dit.lora_trigger = 'sks' stands in none of \d+ captions"):
        make_stage(recipe)
    with pytest.raises(ValueError, match=r"lora_trigger = 'sks' is that of a LoRA; give dit.lora_rank too"):
        DitConfig(lora_trigger="sks")


@pytest.mark.parametrize("layers", [("to_q", "proj_out", "time_proj"), ("to_q", "patch_embedding")], ids=str)
def test_an_alpha_and_any_layers_are_written_so_that_the_file_loads_as_it_was(
    layers: tuple[str, ...], trained: TrainConfig, tmp_path: Path
) -> None:
    """ComfyUI and diffusers name no patch embedding in Wan's names: such a file keeps diffusers' names."""
    assert trained.dit.init is not None
    model = VideoPipeline.load(trained.dit.init).transformer
    model.add_adapter(LoraConfig(r=2, lora_alpha=3, target_modules=list(layers)))
    for name, weight in model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(weight, std=0.2)
    base = VideoPipeline.load(trained.dit.init)
    parts = model, base.vae, base.text_encoder, base.tokenizer, base.scheduler
    expected = VideoPipeline(*parts).sample([ClipRequest(PROMPT, 5)], SETTINGS)[0]
    save_lora(model, tmp_path, name="mine")
    file = tmp_path / "mine.safetensors"
    prefix = "transformer." if "patch_embedding" in layers else "diffusion_model."
    assert all(name.startswith(prefix) for name in load_file(file))
    base.add_loras([str(file)])
    assert_same_latents(base.sample([ClipRequest(PROMPT, 5)], SETTINGS)[0], expected)
    wan = WanPipeline.from_pretrained(str(trained.dit.init))
    wan.set_progress_bar_config(disable=True)
    wan.load_lora_weights(str(tmp_path), weight_name="mine.safetensors")
    assert_same_latents(latents_of(wan, SETTINGS), expected)


def test_an_alpha_scales_the_lora_that_is_trained_and_needs_a_rank(trained: TrainConfig) -> None:
    assert trained.dit.init is not None
    model = add_lora(VideoPipeline.load(trained.dit.init).transformer, replace(trained.dit, lora_alpha=6.0), 0)
    assert model.blocks[0].attn1.to_q.scaling["default"] == 3.0  # type: ignore[index,union-attr]
    with pytest.raises(ValueError, match=r"dit.lora_alpha = 6 scales a LoRA and must be above 0; give dit.lora_rank"):
        DitConfig(lora_alpha=6.0)


def test_weights_are_readable_for_whom_the_umask_allows(trained: TrainConfig, tmp_path: Path) -> None:
    assert trained.dit.init is not None
    before = os.umask(0o022)
    try:
        VideoPipeline.load(trained.dit.init).save_pretrained(tmp_path / "saved")
    finally:
        os.umask(before)
    files = [*(tmp_path / "saved").rglob("*.safetensors")]
    assert len(files) == 3
    assert {path.stat().st_mode & 0o777 for path in files} == {0o644}
