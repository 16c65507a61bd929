"""AdamW in 8 bits learns as AdamW does, in a quarter of its state, and resumes to the bit."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import assert_same_state, elsewhere, fit, state_of
from videogen.config.train import OptimConfig, TrainConfig
from videogen.sampling import gguf_files
from videogen.training.dry_run import plan_folder
from videogen.training.memory import count_trained
from videogen.training.optimizers import make_optimizer
from videogen.training.stages import make_stage
from videogen.training.trainer import Trainer


def in_8_bits(recipe: TrainConfig, run_dir: Path, optimizer: str = "adamw8bit", **run: object) -> TrainConfig:
    """Widen the DiT until its matrices are kept in 8 bits: those of fewer than 4096 values are not."""
    recipe = elsewhere(recipe, run_dir, **run)
    dit = replace(recipe.dit, num_attention_heads=4, attention_head_dim=16, ffn_dim=128)
    return replace(recipe, dit=dit, optim=replace(recipe.optim, optimizer=optimizer))


@pytest.fixture(scope="module")
def trained(finished: dict[str, TrainConfig], tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    recipe = in_8_bits(finished["dit"], tmp_path_factory.mktemp("adamw8bit") / "run")
    assert fit(recipe)
    return recipe


def learn(optimizer: str, steps: int) -> tuple[list[float], list[Tensor]]:
    """Let two layers learn a rotation; return the losses and the weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 64))
    made = make_optimizer(model, OptimConfig(optimizer=optimizer, lr=3e-3))  # type: ignore[arg-type]
    target, losses = torch.linalg.qr(torch.randn(64, 64))[0], list[float]()
    for _ in range(steps):
        x = torch.randn(32, 64)
        loss = (model(x) - x @ target).square().mean()
        loss.backward()
        made.step()
        made.zero_grad()
        losses.append(loss.item())
    return losses, [p.detach() for p in model.parameters()]


def test_it_learns_as_adamw_does() -> None:
    exact, in_bits = learn("adamw", 200), learn("adamw8bit", 200)
    assert exact[0][-1] < 0.5 * exact[0][0]
    assert in_bits[0][-1] == pytest.approx(exact[0][-1], rel=0.1)
    assert any(not torch.equal(p, q) for p, q in zip(exact[1], in_bits[1], strict=True))


def test_the_moments_of_large_matrices_are_saved_in_a_byte_each(trained: TrainConfig) -> None:
    state = state_of(trained.run.dir, 8)
    dtypes = {value.dtype for name, value in state.items() if name.endswith((".state1", ".state2"))}
    assert dtypes == {torch.uint8, torch.float32}
    codes = [value for value in state.values() if value.dtype == torch.uint8]
    assert all(value.any() for value in codes)
    scales = [value for name, value in state.items() if name.endswith((".absmax1", ".absmax2"))]
    weights = sum(value.numel() for value in codes) // 2
    assert sum(value.nbytes for value in (*codes, *scales)) == count_trained(weights, "adamw8bit", 2)[1]


def test_a_run_that_is_stopped_and_resumed_equals_an_uninterrupted_one_bit_for_bit(
    trained: TrainConfig, tmp_path: Path
) -> None:
    recipe = elsewhere(trained, tmp_path / "run", minutes=1e-9)
    torch.manual_seed(99)
    for _ in range(7):
        assert not fit(recipe)
    assert fit(recipe)
    assert_same_state(recipe.run.dir, trained.run.dir, 8)


def test_a_run_of_adamw_goes_on_without_its_moments(
    finished: dict[str, TrainConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = in_8_bits(finished["dit"], tmp_path / "run", "adamw", minutes=1e-9)
    assert not fit(recipe)
    recipe = in_8_bits(recipe, tmp_path / "run", minutes=None)
    assert Trainer(make_stage(recipe), recipe).fit()
    assert "the state of adamw is left aside, and adamw8bit begins with none" in caplog.text


def test_a_dry_run_knows_its_memory(finished: dict[str, TrainConfig], tmp_path: Path) -> None:
    exact, in_bits = (plan_folder(in_8_bits(finished["dit"], tmp_path, name)) for name in ("adamw", "adamw8bit"))
    assert exact.weights == in_bits.weights
    assert exact.weights is not None
    assert count_trained(exact.weights, "adamw", 2)[1] == 8 * exact.weights
    assert count_trained(exact.weights, "adamw8bit", 2)[1] == round((2 + 2 * 4 / 256) * exact.weights)
    assert in_bits.memory_mb["optimizer"] == round(count_trained(exact.weights, "adamw8bit", 2)[1] / 1e6)


def test_it_is_refused_in_a_sentence_where_bitsandbytes_is_missing(
    finished: dict[str, TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_files, "find_spec", lambda name: None)
    assert importlib.util.find_spec("bitsandbytes") is not None
    message = r"optim.optimizer = 'adamw8bit' needs bitsandbytes, which is not installed: pip install bitsandbytes"
    with pytest.raises(ValueError, match=message):
        make_stage(in_8_bits(finished["dit"], tmp_path / "run"))
    with pytest.raises(ValueError, match="is for the DiT"):
        in_8_bits(finished["vae"], tmp_path / "run")
