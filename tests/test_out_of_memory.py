"""After out-of-memory a pack is computed in smaller passes, and the run ends with the same weights."""

import math
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tests.conftest import elsewhere, state_of
from videogen.config.train import TrainConfig
from videogen.training import trainer
from videogen.training.dit_stage import DitStage
from videogen.training.stages import make_stage
from videogen.training.trainer import Trainer
from videogen.training.vae_stage import VaeStage


def limit_memory(stage: VaeStage | DitStage, max_tokens: int, error: Exception) -> list[int]:
    """Make the model raise the error for more than max_tokens tokens; return a list that records each call's tokens."""
    num_tokens: list[int] = []

    def check(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        num_tokens.append(len(args[0]))
        if torch.is_grad_enabled() and len(args[0]) > max_tokens:
            raise error

    stage.model.blocks[-1].register_forward_pre_hook(check)  # type: ignore[union-attr,index]
    return num_tokens


CPU_ERROR = RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), CPU_ERROR, MemoryError()], ids=type)
def test_a_run_with_too_little_memory_for_a_pack_ends_with_the_same_weights(
    error: Exception, finished: dict[str, TrainConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = elsewhere(finished["dit"], tmp_path / "run")
    stage = make_stage(recipe)
    num_tokens = limit_memory(stage, 110, error)
    trainer = Trainer(stage, recipe)
    assert trainer.fit()
    assert max(num_tokens) > 110
    assert trainer.max_tokens_per_pass < 240
    warning = f"packs are computed {trainer.max_tokens_per_pass} tokens at a time, to the same result"
    assert caplog.text.count(warning) == 1
    state, expected = state_of(recipe.run.dir, 8), state_of(finished["dit"].run.dir, 8)
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        # float32, only the order of sums differs; AdamW divides by moments that are near 0 in the first steps
        torch.testing.assert_close(state[name], value, atol=2e-5, rtol=1e-4, msg=name)


def test_out_of_memory_during_the_backward_pass_starts_the_step_over(
    finished: dict[str, TrainConfig], tmp_path: Path
) -> None:
    recipe = elsewhere(finished["dit"], tmp_path / "run", steps=1)
    stages = make_stage(recipe), make_stage(recipe)
    trainers = [Trainer(stage, elsewhere(recipe, tmp_path / str(i))) for i, stage in enumerate(stages)]
    batch, failures = next(trainers[0].batches()), [True]
    trainers[1].max_tokens_per_pass = 120

    def fail(_: Tensor) -> None:
        if failures:
            failures.pop()
            raise torch.OutOfMemoryError("CUDA out of memory.")

    next(iter(stages[1].model.blocks[0].parameters())).register_hook(fail)  # type: ignore[union-attr,index]
    losses = [trainer.compute_gradient(batch, 0) for trainer in trainers]  # type: ignore[arg-type]
    assert failures == []
    assert trainers[1].max_tokens_per_pass == 60
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert_same_gradient(*stages)


def assert_same_gradient(first: VaeStage | DitStage, second: VaeStage | DitStage) -> None:
    for p, q in zip(first.model.parameters(), second.model.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-6, rtol=1e-4)  # float32, only the order of sums differs


def test_a_cpu_computes_a_pack_in_several_passes_to_the_same_gradient(
    finished: dict[str, TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Larger packs are computed CPU_PASS_TOKENS at a time; smaller ones, and the VAE's crops, in one pass."""
    recipe = elsewhere(finished["dit"], tmp_path / "run", steps=1)
    stages = make_stage(recipe), make_stage(recipe)
    whole = Trainer(stages[0], elsewhere(recipe, tmp_path / "whole"))
    assert whole.max_tokens_per_pass == recipe.data.token_budget == 240
    monkeypatch.setattr(trainer, "CPU_PASS_TOKENS", 100)
    split = Trainer(stages[1], elsewhere(recipe, tmp_path / "split"))
    assert split.max_tokens_per_pass == 100
    assert Trainer(make_stage(finished["vae"]), elsewhere(finished["vae"], tmp_path / "vae")).max_tokens_per_pass == 240
    batch = next(whole.batches())
    losses = [trainer.compute_gradient(batch, 0) for trainer in (whole, split)]  # type: ignore[arg-type]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert_same_gradient(*stages)


def test_a_run_that_ran_out_of_memory_resumes_to_the_same_weights(
    finished: dict[str, TrainConfig], tmp_path: Path
) -> None:
    recipe = elsewhere(finished["dit"], tmp_path / "run", minutes=1e-6)
    for resumed in (recipe, elsewhere(recipe, recipe.run.dir, minutes=None)):
        stage = make_stage(resumed)
        limit_memory(stage, 110, CPU_ERROR)
        complete = Trainer(stage, resumed).fit()
    assert complete
    state = state_of(recipe.run.dir, 8)
    for name, value in state_of(finished["dit"].run.dir, 8).items():
        torch.testing.assert_close(state[name], value, atol=2e-5, rtol=1e-4, msg=name)  # as in the first test


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory."),
            r"no memory for one clip; lower data\.max_tokens or set dit\.gradient_checkpointing",
        ),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "shapes cannot be multiplied"),
    ],
    ids=["a single clip does not fit", "an error that is not out-of-memory"],
)
def test_errors_that_smaller_passes_cannot_avoid_are_raised(
    error: RuntimeError, message: str, finished: dict[str, TrainConfig], tmp_path: Path
) -> None:
    recipe = elsewhere(finished["dit"], tmp_path / "run")
    stage = make_stage(recipe)
    num_tokens = limit_memory(stage, 0, error)
    trainer = Trainer(stage, recipe)
    with pytest.raises(RuntimeError, match=message):
        trainer.fit()
    longest = stage.longest_clip(next(stage.batches(0)))  # type: ignore[arg-type]
    assert trainer.max_tokens_per_pass >= longest  # no pass smaller than a clip is tried
    assert len(num_tokens) <= 1 + math.ceil(math.log2(recipe.data.token_budget / longest))


def test_a_vae_that_runs_out_of_memory_names_the_settings_to_lower(
    finished: dict[str, TrainConfig], tmp_path: Path
) -> None:
    recipe = elsewhere(finished["vae"], tmp_path / "run")
    stage = make_stage(recipe)
    stage.loss = lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory."))  # type: ignore[method-assign,assignment]
    with pytest.raises(ValueError, match=r"vae\.batch_clips = 2 and vae\.crops = 2; .* lower one of them"):
        Trainer(stage, recipe).fit()


def test_over_processes_a_loss_counts_in_proportion_to_its_weight(
    finished: dict[str, TrainConfig], tmp_path: Path
) -> None:
    """Where the mean weight is 2/3 of this process's, its gradient counts 3/2: half of that is its share of 3/4."""
    recipe = elsewhere(finished["dit"], tmp_path / "run")
    trainers = [Trainer(make_stage(recipe), recipe) for _ in range(2)]
    batches = next(trainers[0].batches())

    class TwoProcesses:
        num_processes = 2

        def __init__(self, accelerator: Accelerator) -> None:
            self.accelerator = accelerator

        def __getattr__(self, name: str) -> object:
            return getattr(self.accelerator, name)

        def reduce(self, weight: Tensor, reduction: str) -> Tensor:
            assert reduction == "mean"
            return weight * 2 / 3

    trainers[1].accelerator = TwoProcesses(trainers[1].accelerator)  # type: ignore[assignment]
    losses = [one.compute_gradient(batches, 0) for one in trainers]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    for p, q in zip(*(one.stage.model.parameters() for one in trainers), strict=True):
        if p.grad is not None:
            torch.testing.assert_close(1.5 * p.grad, q.grad, atol=1e-6, rtol=1e-4)
