"""--compile: one block is compiled once, for clips of any size."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from tests.conftest import CHANNELS, draw_texts, seeded, tiny_dit
from videogen.packing import pack, per_clip

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
