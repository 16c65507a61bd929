"""--compile and run.compile compile one block once, for clips of any size and packs of any clips."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from tests.conftest import CHANNELS, draw_texts, elsewhere, seeded, state_of, tiny_dit
from videogen.config.train import TrainConfig
from videogen.models.dit import VideoDiT
from videogen.packing.noise import levels_per_clip
from videogen.packing.packs import pack
from videogen.packing.patch_schedule import Patch
from videogen.training.flow_matching import flow_loss, sample_levels, sample_task
from videogen.training.stages import make_stage
from videogen.training.trainer import Trainer

SIZES = [(3, 4, 6), (1, 8, 6), (5, 8, 8), (7, 2, 4)]


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_other_sizes_lengths_and_prompts_do_not_recompile() -> None:
    """The compiled model also predicts as the eager one."""
    torch.compiler.reset()
    counter, eager, compiled = CompileCounter(), tiny_dit(), tiny_dit()
    compiled.compile_repeated_blocks(backend=counter, dynamic=True)
    counts = []
    for i, size in enumerate([(2, 4, 4), *SIZES]):
        latents = [torch.randn(CHANNELS, *size, generator=seeded(i + j)) for j in range(2)]  # two guidance branches
        video = pack(latents, eager.base_patch)
        args = video, levels_per_clip(torch.tensor([0.5, 0.5]), video.lengths), draw_texts((3 + i, 2))
        torch.testing.assert_close(compiled(*args), eager(*args), atol=1e-5, rtol=0)
        counts.append(counter.frame_count)
    torch.compiler.reset()
    assert counts[0] > 0
    assert set(counts) == {counts[0]}


@pytest.mark.filterwarnings("ignore")
def test_other_clips_patches_and_noise_levels_do_not_recompile_in_training() -> None:
    """The compiled model also has the gradient of the eager one."""
    torch.compiler.reset()
    counter = CompileCounter()
    options = {"extra_patch_sizes": ((1, 1, 1),), "nearby": True, "prediction": "preconditioned"}
    eager, compiled = tiny_dit(**options), tiny_dit(**options)
    compiled.load_state_dict(eager.state_dict())
    compiled.compile_repeated_blocks(backend=counter, dynamic=True)
    packs: list[tuple[Patch, int, int]] = [((1, 1, 1), 3, 4), ((1, 1, 1), 5, 2), ((1, 2, 2), 6, 0), ((1, 2, 2), 1, 7)]
    counts = []
    for number, (patch, clips, images) in enumerate(packs):
        sizes = [(CHANNELS, 3, 4, 4)] * clips + [(CHANNELS, 1, 4, 4)] * images
        clean = pack([torch.randn(size, generator=seeded(number)) for size in sizes], patch)
        mixture = {"nothing": 0.5, "per_frame": 0.5}
        levels = sample_levels(clean, mixture, base_tokens=12, uniform=0.1, generator=seeded(number))
        texts = draw_texts(tuple(2 + i % 3 for i in range(len(sizes))))
        task = sample_task(clean, texts, levels, base_tokens=12, generator=seeded(number))
        for model in (eager, compiled):
            model.zero_grad()
            flow_loss(model, task).backward()
        for weight, expected in zip(compiled.parameters(), eager.parameters(), strict=True):
            assert (weight.grad is None) == (expected.grad is None)
            if weight.grad is not None:
                torch.testing.assert_close(weight.grad, expected.grad, atol=1e-5, rtol=1e-4)
        counts.append(counter.frame_count)
    torch.compiler.reset()
    assert counts[0] > 0
    assert set(counts) == {counts[0]}


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_run_ends_with_the_weights_of_an_eager_run(
    finished: dict[str, TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its validation loss and its samples also compile nothing more."""
    torch.compiler.reset()
    counter, compile_blocks = CompileCounter(), VideoDiT.compile_repeated_blocks
    monkeypatch.setattr(
        VideoDiT, "compile_repeated_blocks", lambda self, **options: compile_blocks(self, backend=counter, **options)
    )
    recipe = elsewhere(finished["dit"], tmp_path / "run")
    trainer = Trainer(make_stage(recipe), replace(recipe, run=replace(recipe.run, compile=True)))
    assert trainer.fit()
    num_compiled = counter.frame_count
    assert num_compiled > 0
    trainer.save_and_validate(leaving=True, interrupted=False)
    assert counter.frame_count == num_compiled
    torch.compiler.reset()
    compiled, eager = (state_of(config.run.dir, 8) for config in (recipe, finished["dit"]))
    for name, value in eager.items():
        # float32, only the order of sums differs
        torch.testing.assert_close(compiled[name], value, atol=2e-5, rtol=1e-4, msg=name)
