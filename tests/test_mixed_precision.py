"""run.mixed_precision = "bf16": products in bfloat16, weights, residual stream and saved state in float32."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import CHANNELS, STAGES, assert_same_state, draw_texts, elsewhere, fit, seeded, tiny_dit
from videogen.config.train import TrainConfig
from videogen.models import attention, precision
from videogen.models.attention import attend, attend_text, text_keys
from videogen.packing.noise import levels_per_clip
from videogen.packing.packs import pack
from videogen.training.stages import make_stage
from videogen.training.trainer import Trainer

LENGTHS = (6, 6, 3)


def with_bf16(recipe: TrainConfig, run_dir: Path, **changes: object) -> TrainConfig:
    return elsewhere(recipe, run_dir, mixed_precision="bf16", **changes)


def gradients(recipe: TrainConfig) -> dict[str, torch.Tensor]:
    """The gradient of the first step, from the same weights."""
    torch.manual_seed(11)
    trainer = Trainer(make_stage(recipe), recipe)  # type: ignore[arg-type]
    trainer.compute_gradient(next(trainer.batches()), 0)
    return {name: p.grad for name, p in trainer.stage.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("stage", STAGES)
def test_the_gradient_in_bf16_points_where_that_in_float32_does(
    stage: str, finished: dict[str, TrainConfig], tmp_path: Path
) -> None:
    recipe = finished[stage]
    float32 = gradients(elsewhere(recipe, tmp_path / "float32"))
    bf16 = gradients(with_bf16(recipe, tmp_path / "bf16"))
    assert float32.keys() == bf16.keys()
    flat = [torch.cat([grad.flatten() for grad in grads.values()]) for grads in (float32, bf16)]
    assert not torch.equal(*flat)
    assert torch.cosine_similarity(*flat, dim=0) > 0.99  # 0.996 for the VAE


@pytest.mark.parametrize("stage", STAGES)
def test_a_bf16_run_saves_its_state_in_float32(stage: str, finished: dict[str, TrainConfig], tmp_path: Path) -> None:
    recipe = with_bf16(finished[stage], tmp_path / "run", steps=1)
    assert fit(recipe)
    for path in (recipe.run.dir / "step_000001").glob("*.safetensors"):
        assert {value.dtype for value in load_file(path).values()} == {torch.float32}


def test_a_bf16_run_resumes_bit_for_bit(finished: dict[str, TrainConfig], tmp_path: Path) -> None:
    straight = with_bf16(finished["dit"], tmp_path / "straight")
    torch.manual_seed(11)
    assert fit(straight)
    stopped = with_bf16(finished["dit"], tmp_path / "stopped", minutes=1e-6)
    torch.manual_seed(11)
    assert not fit(stopped)
    assert fit(replace(stopped, run=replace(stopped.run, minutes=None)))
    assert_same_state(stopped.run.dir, straight.run.dir, 8)


@pytest.mark.parametrize("most", [0, attention.MAX_UNFUSED_LOGITS], ids=("kernel", "products"))
def test_attention_under_autocast_is_attention_within_bf16_precision(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few logits are computed by products in bf16, many by the kernel in float32."""
    monkeypatch.setattr(attention, "MAX_UNFUSED_LOGITS", most)
    keys = text_keys((4, 2, 5), torch.rand(11, generator=seeded(9)) + 0.5)
    outputs: list[list[torch.Tensor]] = []
    for use_bf16 in (False, True):
        q, k, v = (torch.randn(sum(LENGTHS), 2, 16, generator=seeded(i)).requires_grad_() for i in range(3))
        own_k, own_v = (torch.randn(3, 2, 5, 16, generator=seeded(i)).requires_grad_() for i in range(2))
        with torch.autocast("cpu", torch.bfloat16, enabled=use_bf16):
            within, across = attend(q, k, v, LENGTHS), attend_text(q, own_k, own_v, LENGTHS, keys)
        assert within.dtype == across.dtype == (torch.bfloat16 if use_bf16 else torch.float32)
        total = within.float().square().sum() + across.float().square().sum()
        grads = torch.autograd.grad(total, (q, k, v, own_k, own_v))
        outputs.append([within, across, *grads])
    for expected, value in zip(*outputs, strict=True):
        torch.testing.assert_close(value.float(), expected, rtol=0, atol=0.03 * float(expected.detach().abs().max()))


def test_the_residual_stream_stays_in_float32() -> None:
    """Only products are in bf16: rounding the stream would lose what a block adds to it."""
    model, dtypes = tiny_dit(extra_patch_sizes=[[1, 4, 4]]), set[torch.dtype]()
    for block in model.blocks:
        block.register_forward_hook(lambda _module, _args, out: dtypes.add(out.dtype))
    latents = [torch.randn(CHANNELS, 2, 4, 8, generator=seeded(i)) for i in range(2)]
    for patch in model.patches:
        video = pack(latents, patch)
        levels = levels_per_clip(torch.tensor([0.3, 0.8]), video.lengths)
        with torch.autocast("cpu", torch.bfloat16):
            model(video, levels, draw_texts((3, 5)))
    assert dtypes == {torch.float32}


def test_bf16_on_a_cpu_without_its_instructions_is_warned_of(
    finished: dict[str, TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = with_bf16(finished["dit"], tmp_path / "run")
    for has_bf16, num_warnings in ((True, 0), (False, 1)):
        monkeypatch.setattr(precision, "bf16_instructions", lambda has_bf16=has_bf16: has_bf16)
        Trainer(make_stage(recipe), recipe)  # type: ignore[arg-type]
        assert caplog.text.count("no bf16 instructions") == num_warnings
