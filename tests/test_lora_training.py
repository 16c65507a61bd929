"""LoRAs trained here on diffusers' Wan folders: the adapter alone is trained and kept, and it opens there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline
from safetensors.torch import load_file
from torch import Tensor

from tests.conftest import assert_same_state, elsewhere, fit, state_of, tiny_recipe
from tests.test_wan_pipeline import PROMPT, SETTINGS, assert_same_latents, latents_of
from tests.wan_folders import save
from videogen.config.train import DitConfig, TrainConfig
from videogen.sampling.cost import training_memory
from videogen.sampling.pipeline import ClipRequest, VideoPipeline
from videogen.training.dit_stage import DitStage
from videogen.training.dry_run import plan_folder
from videogen.training.frozen_models import frozen_parts
from videogen.training.stages import make_stage
from videogen.training.trainer import Trainer

SIZES = {"num_attention_heads": 3, "attention_head_dim": 12, "ffn_dim": 40, "num_layers": 2}
FILE = "pytorch_lora_weights.safetensors"


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
    """Eight steps on a folder that diffusers saved."""
    folder = tmp_path_factory.mktemp("wan")
    save("T2V 2.1", folder / "T2V 2.1")
    recipe = lora_recipe(folder / "T2V 2.1", clips_folder, folder / "run")
    assert fit(recipe)
    return recipe


def test_a_lora_trained_here_makes_the_same_clip_in_diffusers(trained: TrainConfig) -> None:
    assert trained.dit.init is not None
    checkpoint = trained.run.dir / "checkpoint"
    assert [path.name for path in checkpoint.iterdir()] == [FILE]
    theirs = WanPipeline.from_pretrained(str(trained.dit.init))
    theirs.set_progress_bar_config(disable=True)
    plain = latents_of(theirs, SETTINGS)
    theirs.load_lora_weights(str(checkpoint))
    wanted = latents_of(theirs, SETTINGS)
    ours = VideoPipeline.load(trained.dit.init)
    ours.add_loras([str(checkpoint)])
    assert_same_latents(ours.sample([ClipRequest(PROMPT, 5)], SETTINGS)[0], wanted)
    assert (wanted - plain).abs().max() > 0.01


def test_the_file_is_the_average_that_was_trained(trained: TrainConfig) -> None:
    """The checkpoint holds the first average, as other runs' do."""
    kept = load_file(trained.run.dir / "checkpoint" / FILE)
    average = load_file(trained.run.dir / "step_000008" / "ema_0.safetensors")
    assert {name.replace("transformer.", "").replace(".weight", ".default.weight"): value.shape
            for name, value in kept.items()} == {name: value.shape for name, value in average.items()}  # fmt: skip
    for name, value in kept.items():
        key = name.removeprefix("transformer.").replace(".weight", ".default.weight")
        assert torch.equal(value, average[key])


def test_only_the_adapter_is_trained_and_kept(trained: TrainConfig) -> None:
    stage = make_stage(trained)
    assert isinstance(stage, DitStage)
    state = state_of(trained.run.dir, 8)
    kept = {name.removeprefix("model.") for name in state if name.startswith("model.")}
    assert kept == {name for name, p in stage.model.named_parameters() if p.requires_grad}
    assert all(".lora_" in name for name in kept)
    assert {name.split(".lora_")[0].split(".", 2)[2] for name in kept} == {
        *(f"attn{i}.{x}" for i in (1, 2) for x in ("to_q", "to_k", "to_v", "to_out.0")), "ffn.net.0.proj", "ffn.net.2",
    }  # fmt: skip
    before = {name: p.clone() for name, p in stage.model.named_parameters() if not p.requires_grad}
    trainer = Trainer(stage, trained)
    moved = {name: p for name, p in stage.model.named_parameters() if p.requires_grad and ".lora_B" in name}
    assert all(p.abs().max() > 0 for p in moved.values())
    trainer.train_step(next(trainer.batches()), trainer.step)
    for name, p in stage.model.named_parameters():
        if name in before:
            assert torch.equal(p, before[name]), name


def test_a_lora_learns(trained: TrainConfig, tmp_path: Path) -> None:
    recipe = elsewhere(trained, tmp_path / "run", steps=40, sample_every=0, val_every=40, save_every=40)
    stage = make_stage(recipe)
    assert isinstance(stage, DitStage)
    trainer = Trainer(stage, recipe)
    before = stage.validate()["loss"]
    assert trainer.fit()
    assert stage.validate()["loss"] < 0.95 * before


def test_a_lora_run_that_was_stopped_equals_one_that_was_not(trained: TrainConfig, tmp_path: Path) -> None:
    recipe = elsewhere(trained, tmp_path / "run", steps=8, minutes=1e-9)
    torch.manual_seed(99)
    for _ in range(7):
        assert not fit(recipe)  # one step a session
    assert fit(recipe)
    assert_same_state(recipe.run.dir, trained.run.dir, 8)
    one, other = (load_file(r.run.dir / "checkpoint" / FILE) for r in (recipe, trained))
    assert all(torch.equal(one[name], other[name]) for name in one.keys() | other.keys())


def count(weights: Iterable[Tensor]) -> int:
    return sum(weight.numel() for weight in weights)


def test_its_plan_counts_what_is_trained_and_what_stays(trained: TrainConfig) -> None:
    """A LoRA's weights are few; those of the model, the VAE and the text encoder are in memory all the same."""
    stage = make_stage(trained)
    assert isinstance(stage, DitStage)
    beside = [*stage.vae.parameters(), *stage.text_encoder.parameters()]
    learned = [p for p in stage.model.parameters() if p.requires_grad]
    kept = [*beside, *(p for p in stage.model.parameters() if not p.requires_grad)]
    small = plan_folder(trained)
    assert (small.weights, small.frozen_weights) == (count(learned), count(kept))
    assert sum(p.nbytes for p in kept) == 4 * count(kept)  # float32, as training_memory takes them
    assert count(beside) > count(stage.model.parameters()) > 10 * count(learned)
    memory = training_memory(
        SIZES, trained.data.token_budget, count(learned), frozen=count(kept), averages=len(trained.optim.ema),
        recompute=True,
    )  # fmt: skip
    assert small.memory_gb == round(memory, 2)


def test_the_plan_of_a_whole_model_counts_the_parts_of_its_own_folders(trained: TrainConfig) -> None:
    recipe = replace(trained, dit=replace(trained.dit, lora_rank=0))
    vae, _, text_encoder, _ = frozen_parts(recipe.dit)
    whole, small = plan_folder(recipe), plan_folder(trained)
    assert trained.dit.init is not None
    model = VideoPipeline.load(trained.dit.init).transformer
    assert whole.weights == count(model.parameters())
    assert whole.frozen_weights == count(vae.parameters()) + count(text_encoder.parameters())
    assert whole.tokens == small.tokens
    later = replace(recipe, dit=replace(recipe.dit, vae=Path("made") / "later" / "vae"))
    assert plan_folder(later).frozen_weights == count(text_encoder.parameters())


def test_frozen_weights_take_four_bytes_each() -> None:
    assert training_memory({**SIZES}, 100, 10**6, frozen=10**9, recompute=True) == pytest.approx(
        training_memory({**SIZES}, 100, 10**6, recompute=True) + 4
    )


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("T2V A14B", {}, "has two transformers; training takes models of one"),
        ("TI2V 5B", {}, "has cells of 16 pixels; training takes models of 8"),
        ("I2V 2.1", {}, "begins with an image, and training has none beside a clip; give a T2V model"),
        ("T2V 2.1", {"lora_layers": ("to_x",)}, "lora_layers must be names of the transformer's layers, got to_x"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    kind: str, changes: dict[str, object], said: str, clips_folder: Path, tmp_path: Path
) -> None:
    save(kind, tmp_path / "wan")
    with pytest.raises(ValueError, match=said):
        make_stage(lora_recipe(tmp_path / "wan", clips_folder, tmp_path / "run", **changes))


def test_a_lora_of_nothing_is_refused() -> None:
    with pytest.raises(
        ValueError, match="lora_rank = 4 needs weights to adapt"
    ):
        DitConfig(lora_rank=4)
