"""Memory that does not hold a pack: it is computed in parts, and the run is the run that never failed."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import elsewhere, state_of
from videogen.config.train import TrainConfig
from videogen.training import trainer
from videogen.training.dit_stage import DitStage
from videogen.training.stages import make_stage
from videogen.training.trainer import Trainer
from videogen.training.vae_stage import VaeStage


def run_out_of_memory(stage: VaeStage | DitStage, most_tokens: int, error: Exception) -> list[int]:
    """From now on the model's blocks hold at most so many tokens; returns what they were given."""
    seen: list[int] = []

    def check(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(len(args[0]))
        if torch.is_grad_enabled() and len(args[0]) > most_tokens:
            raise error

    stage.model.blocks[-1].register_forward_pre_hook(check)  # type: ignore[union-attr,index]
    return seen


CPU_ERROR = RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), CPU_ERROR, MemoryError()], ids=type)
def test_a_run_whose_packs_do_not_fit_in_memory_ends_with_the_weights_of_one_whose_packs_do(
    error: Exception, finished: dict[str, TrainConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = elsewhere(finished["dit"], tmp_path / "run")
    stage = make_stage(recipe)
    seen = run_out_of_memory(stage, 110, error)
    trainer = Trainer(stage, recipe)
    assert trainer.fit()
    assert max(seen) > 110
    assert trainer.pass_tokens < 240
    assert caplog.text.count(f"packs are computed {trainer.pass_tokens} tokens at a time, to the same result") == 1
    ours, theirs = (state_of(one.run.dir, 8) for one in (recipe, finished["dit"]))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        # float32, only the order of sums differs; AdamW divides by moments that are near 0 in the first steps
        torch.testing.assert_close(ours[name], value, atol=2e-5, rtol=1e-4, msg=name)


def test_a_run_that_ran_out_of_memory_in_the_middle_of_a_gradient_begins_that_step_again(
    finished: dict[str, TrainConfig], tmp_path: Path
) -> None:
    recipe = elsewhere(finished["dit"], tmp_path / "run", steps=1)
    stages = make_stage(recipe), make_stage(recipe)
    trainers = [Trainer(stage, elsewhere(recipe, tmp_path / str(i))) for i, stage in enumerate(stages)]
    batch, failures = next(trainers[0].batches()), [True]
    trainers[1].pass_tokens = 120

    def fail(_: Tensor) -> None:
        if failures:
            failures.pop()
            raise torch.OutOfMemoryError("CUDA out of memory.")

    next(iter(stages[1].model.blocks[0].parameters())).register_hook(fail)  # type: ignore[union-attr,index]
    numbers = [trainer.gradient(batch, 0) for trainer in trainers]  # type: ignore[arg-type]
    assert failures == []
    assert trainers[1].pass_tokens == 60
    assert numbers[1] == pytest.approx(numbers[0], rel=1e-5)
    for one, other in zip(*(stage.model.parameters() for stage in stages), strict=True):
        # float32, only the order of sums differs
        torch.testing.assert_close(one.grad, other.grad, atol=1e-6, rtol=1e-4)


def test_a_cpu_computes_a_pack_in_parts_to_the_same_gradient(
    finished: dict[str, TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many tokens at once as it does fastest; the VAE's crops, and packs below that, are computed as they are."""
    recipe = elsewhere(finished["dit"], tmp_path / "run", steps=1)
    stages = make_stage(recipe), make_stage(recipe)
    whole = Trainer(stages[0], elsewhere(recipe, tmp_path / "whole"))
    assert whole.pass_tokens == recipe.data.token_budget == 240
    monkeypatch.setattr(trainer, "CPU_PASS_TOKENS", 100)
    parts = Trainer(stages[1], elsewhere(recipe, tmp_path / "parts"))
    assert parts.pass_tokens == 100
    assert Trainer(make_stage(finished["vae"]), elsewhere(finished["vae"], tmp_path / "vae")).pass_tokens == 240
    batch = next(whole.batches())
    numbers = [trainer.gradient(batch, 0) for trainer in (whole, parts)]  # type: ignore[arg-type]
    assert numbers[1] == pytest.approx(numbers[0], rel=1e-5)
    for one, other in zip(*(stage.model.parameters() for stage in stages), strict=True):
        # float32, only the order of sums differs
        torch.testing.assert_close(one.grad, other.grad, atol=1e-6, rtol=1e-4)


def test_a_run_that_ran_out_of_memory_resumes_and_runs_out_again(
    finished: dict[str, TrainConfig], tmp_path: Path
) -> None:
    recipe = elsewhere(finished["dit"], tmp_path / "run", minutes=1e-6)
    for resumed in (recipe, elsewhere(recipe, recipe.run.dir, minutes=None)):
        stage = make_stage(resumed)
        run_out_of_memory(stage, 110, CPU_ERROR)
        complete = Trainer(stage, resumed).fit()
    assert complete
    ours, theirs = (state_of(one.run.dir, 8) for one in (recipe, finished["dit"]))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, atol=2e-5, rtol=1e-4, msg=name)  # as above


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory."),
            r"no memory for one clip; lower data\.max_tokens or set dit\.gradient_checkpointing",
        ),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "shapes cannot be multiplied"),
    ],
    ids=["not one clip fits", "another error of torch"],
)
def test_what_smaller_parts_cannot_mend_is_said(
    error: RuntimeError, message: str, finished: dict[str, TrainConfig], tmp_path: Path
) -> None:
    recipe = elsewhere(finished["dit"], tmp_path / "run")
    stage = make_stage(recipe)
    seen = run_out_of_memory(stage, 0, error)
    trainer = Trainer(stage, recipe)
    with pytest.raises(RuntimeError, match=message):
        trainer.fit()
    longest = stage.longest(next(stage.batches(0)))  # type: ignore[arg-type]
    assert trainer.pass_tokens >= longest  # what is smaller than a clip is not tried
    assert len(seen) <= 1 + math.ceil(math.log2(recipe.data.token_budget / longest))


def test_a_vae_that_runs_out_of_memory_says_which_settings_take_it(
    finished: dict[str, TrainConfig], tmp_path: Path
) -> None:
    recipe = elsewhere(finished["vae"], tmp_path / "run")
    stage = make_stage(recipe)
    stage.loss = lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory."))  # type: ignore[method-assign,assignment]
    with pytest.raises(ValueError, match=r"vae\.batch_clips = 2 and vae\.crops = 2; .* lower one of them"):
        Trainer(stage, recipe).fit()


def test_over_processes_a_loss_counts_as_much_as_its_clips_weigh(
    finished: dict[str, TrainConfig], tmp_path: Path
) -> None:
    """Two processes with packs of weights 3 and 1: three quarters and one quarter of the mean, doubled by the 1/2."""
    recipe = elsewhere(finished["dit"], tmp_path / "run")
    trainer = Trainer(make_stage(recipe), recipe)
    assert trainer.share(torch.tensor(3.0)) == 1.0

    class Two:
        num_processes = 2

        def reduce(self, weight: Tensor, reduction: str) -> Tensor:
            assert reduction == "mean"
            return torch.tensor(2.0)

    trainer.accelerator = Two()  # type: ignore[assignment]
    assert [float(trainer.share(torch.tensor(weight))) for weight in (3.0, 1.0)] == [1.5, 0.5]
