"""run.mixed_precision: products in half the bits, everything that is kept in all of them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import CHANNELS, STAGES, assert_same_state, draw_texts, elsewhere, fit, seeded, tiny_dit
from videogen.config.train import TrainConfig
from videogen.models import attention
from videogen.models.attention import attend, attend_text, text_keys
from videogen.packing.noise import per_clip
from videogen.packing.packs import pack
from videogen.training import trainer
from videogen.training.stages import make_stage
from videogen.training.trainer import Trainer

LENGTHS = (6, 6, 3)


def in_half(recipe: TrainConfig, run_dir: Path, **changes: object) -> TrainConfig:
    return elsewhere(recipe, run_dir, mixed_precision="bf16", **changes)


def gradients(recipe: TrainConfig) -> dict[str, torch.Tensor]:
    """Of the first step, from the same weights."""
    torch.manual_seed(11)
    trainer = Trainer(make_stage(recipe), recipe)  # type: ignore[arg-type]
    trainer.gradient(next(trainer.batches()), 0)
    return {name: p.grad for name, p in trainer.stage.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_in_half_the_bits_goes_where_the_whole_one_goes(
    stage: str, finished: dict[str, TrainConfig], tmp_path: Path
) -> None:
    recipe = finished[stage]
    whole = gradients(elsewhere(recipe, tmp_path / "whole"))
    half = gradients(in_half(recipe, tmp_path / "half"))
    assert whole.keys() == half.keys()
    flat = [torch.cat([grad.flatten() for grad in grads.values()]) for grads in (whole, half)]
    assert not torch.equal(*flat)
    assert torch.cosine_similarity(*flat, dim=0) > 0.999


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_kept_stays_in_float32(stage: str, finished: dict[str, TrainConfig], tmp_path: Path) -> None:
    recipe = in_half(finished[stage], tmp_path / "run", steps=1)
    assert fit(recipe)
    for path in (recipe.run.dir / "step_000001").glob("*.safetensors"):
        assert {value.dtype for value in load_file(path).values()} == {torch.float32}


def test_a_run_in_half_the_bits_resumes_bit_for_bit(finished: dict[str, TrainConfig], tmp_path: Path) -> None:
    straight = in_half(finished["dit"], tmp_path / "straight")
    torch.manual_seed(11)
    assert fit(straight)
    stopped = in_half(finished["dit"], tmp_path / "stopped", minutes=1e-6)
    torch.manual_seed(11)
    assert not fit(stopped)
    assert fit(replace(stopped, run=replace(stopped.run, minutes=None)))
    assert_same_state(stopped.run.dir, straight.run.dir, 8)


@pytest.mark.parametrize("most", [0, attention.MOST_LOGITS], ids=("kernel", "products"))
def test_attention_in_half_the_bits(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few logits by products in half the bits, many by the kernel in all of them: both are attention."""
    monkeypatch.setattr(attention, "MOST_LOGITS", most)
    keys = text_keys((4, 2, 5), torch.rand(11, generator=seeded(9)) + 0.5)
    found: dict[bool, list[torch.Tensor]] = {}
    for half in (False, True):
        q, k, v = (torch.randn(sum(LENGTHS), 2, 16, generator=seeded(i)).requires_grad_() for i in range(3))
        own_k, own_v = (torch.randn(3, 2, 5, 16, generator=seeded(i)).requires_grad_() for i in range(2))
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            within, across = attend(q, k, v, LENGTHS), attend_text(q, own_k, own_v, LENGTHS, keys)
        assert within.dtype == across.dtype == (torch.bfloat16 if half else torch.float32)
        total = within.float().square().sum() + across.float().square().sum()
        grads = torch.autograd.grad(total, (q, k, v, own_k, own_v))
        found[half] = [within, across, *grads]
    for whole, halved in zip(*found.values(), strict=True):
        torch.testing.assert_close(halved.float(), whole, rtol=0, atol=0.03 * float(whole.detach().abs().max()))


def test_the_residual_stream_keeps_its_bits() -> None:
    """Only products are halved: what a block adds little to is not rounded with it."""
    model, seen = tiny_dit(extra_patch_sizes=[[1, 4, 4]]), set[torch.dtype]()
    for block in model.blocks:
        block.register_forward_hook(lambda _module, _args, out: seen.add(out.dtype))
    latents = [torch.randn(CHANNELS, 2, 4, 8, generator=seeded(i)) for i in range(2)]
    for patch in model.patches:
        video = pack(latents, patch)
        levels = per_clip(torch.tensor([0.3, 0.8]), video.lengths)
        with torch.autocast("cpu", torch.bfloat16):
            model(video, levels, draw_texts((3, 5)))
    assert seen == {torch.float32}


def test_a_cpu_without_the_instructions_is_told(
    finished: dict[str, TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = in_half(finished["dit"], tmp_path / "run")
    for has, said in ((True, 0), (False, 1)):
        found = {"architecture": "x86_64", "avx512_bf16": has, "amx_bf16": False}
        monkeypatch.setattr(trainer.torch.cpu, "get_capabilities", lambda found=found: found)
        Trainer(make_stage(recipe), recipe)  # type: ignore[arg-type]
        assert caplog.text.count("no bf16 instructions") == said
