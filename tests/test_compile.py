"""--compile and run.compile: one block is compiled once, for clips of any size and packs of any clips."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from tests.conftest import CHANNELS, draw_texts, elsewhere, seeded, state_of, tiny_dit
from videogen.config.train import TrainConfig
from videogen.models.dit import VideoDiT
from videogen.packing.noise import per_clip
from videogen.packing.packs import pack
from videogen.packing.patch_schedule import Patch
from videogen.training.flow_matching import draw_levels, draw_task, flow_error
from videogen.training.stages import make_stage
from videogen.training.trainer import Trainer

SIZES = [(3, 4, 6), (1, 8, 6), (5, 8, 8), (7, 2, 4)]


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_other_sizes_lengths_and_prompts_compile_nothing_more() -> None:
    """And the answer is that of the model as it is."""
    torch.compiler.reset()
    counter, plain, compiled = CompileCounter(), tiny_dit(), tiny_dit()
    compiled.compile_repeated_blocks(backend=counter, dynamic=True)
    counts = []
    for i, size in enumerate([(2, 4, 4), *SIZES]):
        latents = [torch.randn(CHANNELS, *size, generator=seeded(i + j)) for j in range(2)]  # two guidance branches
        video = pack(latents, plain.base_patch)
        asked = video, per_clip(torch.tensor([0.5, 0.5]), video.lengths), draw_texts((3 + i, 2))
        torch.testing.assert_close(compiled(*asked), plain(*asked), atol=1e-5, rtol=0)
        counts.append(counter.frame_count)
    torch.compiler.reset()
    assert counts[0] > 0
    assert set(counts) == {counts[0]}


@pytest.mark.filterwarnings("ignore")
def test_packs_of_other_clips_patches_and_levels_compile_nothing_more_in_training() -> None:
    """And have the gradient of the model as it is."""
    torch.compiler.reset()
    counter = CompileCounter()
    options = {"extra_patch_sizes": ((1, 1, 1),), "nearby": True, "prediction": "preconditioned"}
    plain, compiled = tiny_dit(**options), tiny_dit(**options)
    compiled.load_state_dict(plain.state_dict())
    compiled.compile_repeated_blocks(backend=counter, dynamic=True)
    packs: list[tuple[Patch, int, int]] = [((1, 1, 1), 3, 4), ((1, 1, 1), 5, 2), ((1, 2, 2), 6, 0), ((1, 2, 2), 1, 7)]
    counts = []
    for number, (patch, clips, images) in enumerate(packs):
        sizes = [(CHANNELS, 3, 4, 4)] * clips + [(CHANNELS, 1, 4, 4)] * images
        clean = pack([torch.randn(size, generator=seeded(number)) for size in sizes], patch)
        mixture = {"nothing": 0.5, "per_frame": 0.5}
        levels = draw_levels(clean, mixture, base_tokens=12, uniform=0.1, generator=seeded(number))
        texts = draw_texts(tuple(2 + i % 3 for i in range(len(sizes))))
        task = draw_task(clean, texts, levels, base_tokens=12, generator=seeded(number))
        for model in (plain, compiled):
            model.zero_grad()
            flow_error(model, task).backward()
        for one, other in zip(compiled.parameters(), plain.parameters(), strict=True):
            assert (one.grad is None) == (other.grad is None)
            if one.grad is not None:
                torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-4)
        counts.append(counter.frame_count)
    torch.compiler.reset()
    assert counts[0] > 0
    assert set(counts) == {counts[0]}


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_run_ends_with_the_weights_of_one_that_is_not(
    finished: dict[str, TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its held-out loss and samples compile nothing."""
    torch.compiler.reset()
    counter, made = CompileCounter(), VideoDiT.compile_repeated_blocks
    monkeypatch.setattr(VideoDiT, "compile_repeated_blocks", lambda self, **how: made(self, backend=counter, **how))
    recipe = elsewhere(finished["dit"], tmp_path / "run")
    trainer = Trainer(make_stage(recipe), replace(recipe, run=replace(recipe.run, compile=True)))
    assert trainer.fit()
    compiled = counter.frame_count
    assert compiled > 0
    trainer.milestones(None, leaving=True, interrupted=False)
    assert counter.frame_count == compiled
    torch.compiler.reset()
    ours, theirs = (state_of(one.run.dir, 8) for one in (recipe, finished["dit"]))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, atol=2e-5, rtol=1e-4, msg=name)  # float32, other sums
