"""The prompt as a whole beside the noise level: of a clip's own prompt alone, nothing to begin with, saved."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.conftest import CHANNELS, TEXT_DIM, draw_texts, tiny_dit
from videogen.dit import VideoDiT
from videogen.packing import NoiseLevels, by_clip, pack, per_clip, per_frame, shared_level
from videogen.text import PackedText, pack_texts, pad_texts

SHAPES = ((CHANNELS, 3, 4, 8), (CHANNELS, 1, 8, 4), (CHANNELS, 2, 8, 4), (CHANNELS, 3, 4, 8))


@pytest.fixture(scope="module")
def pooling() -> VideoDiT:
    return tiny_dit(pooled_text=True)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["one level", "a level a clip", "a level a frame"])
def test_a_clip_in_a_pack_is_the_clip_alone(pooling: VideoDiT, kind: str) -> None:
    clips, texts = [torch.randn(shape) for shape in SHAPES], [torch.randn(3 + i, TEXT_DIM) for i in range(len(SHAPES))]

    def answer(which: Sequence[int]) -> Tensor:
        video = pack([clips[i] for i in which], (1, 2, 2))
        levels = {
            "one level": shared_level(torch.tensor([0.6]), len(video.tokens)),
            "a level a clip": per_clip(torch.linspace(0.9, 0.3, len(SHAPES))[list(which)], video.lengths),
            "a level a frame": per_frame([torch.linspace(0, 0.8, grid[0]) for grid in video.grids], video.grids),
        }[kind]
        return pooling(video, levels, pack_texts([texts[i] for i in which]))

    together = answer(range(len(SHAPES)))
    torch.testing.assert_close(together, torch.cat([answer([i]) for i in range(len(SHAPES))]), atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_prompt_reaches_a_clip_without_cross_attention(pooling: VideoDiT) -> None:
    """With the mean of its rows: their order says nothing to it."""
    video = pack([torch.randn(SHAPES[0]), torch.randn(SHAPES[1])], (1, 2, 2))
    levels = shared_level(torch.tensor([0.6]), len(video.tokens))
    rows = torch.randn(2, 4, TEXT_DIM)

    def answer(first: Tensor, second: Tensor) -> tuple[Tensor, ...]:
        pooled = pooling.read_text(pack_texts([first, second])).pooled
        context = pooling.read_text(draw_texts((4, 4)))._replace(pooled=pooled)
        return pooling(video, levels, context).split(video.lengths)

    before, turned, other = answer(rows[0], rows[1]), answer(rows[0].flip(0), rows[1]), answer(rows[0], 2 * rows[1])
    torch.testing.assert_close(turned, before, atol=1e-5, rtol=0)
    assert torch.equal(other[0], before[0])
    assert not torch.allclose(other[1], before[1], atol=1e-3)


@torch.no_grad()
def test_a_row_counts_for_as_many_as_it_stands_for(pooling: VideoDiT) -> None:
    texts = [torch.randn(2, TEXT_DIM), torch.randn(5, TEXT_DIM)]
    few = pooling.condition_embedder.pool(pad_texts(texts, 9))
    spelt = [torch.cat([text, text.new_zeros(9 - len(text), TEXT_DIM)]) for text in texts]
    all_rows = pooling.condition_embedder.pool(PackedText(torch.cat(spelt), (9, 9), torch.ones(18)))
    assert few is not None
    torch.testing.assert_close(few, all_rows)


def test_pairs_of_levels_and_clips_are_those_of_the_tokens() -> None:
    lengths, levels = (3, 2, 1), NoiseLevels(torch.tensor([0.0, 0.5, 0.9]), torch.tensor([1, 0, 1, 2, 0, 2]))
    level, clip, index = by_clip(levels.index, lengths, 3)
    assert torch.equal(level[index], levels.index)
    assert clip[index].tolist() == [0, 0, 0, 1, 1, 2]
    assert len(level) == 5  # (0, 0), (1, 0), (0, 1), (2, 1), (2, 2): no pair twice
    level, clip, index = by_clip(torch.zeros(6, dtype=torch.long), lengths, 1)
    assert (level.tolist(), clip.tolist(), index.tolist()) == ([0, 0, 0], [0, 1, 2], [0, 0, 0, 1, 1, 2])


@torch.no_grad()
def test_texts_are_taken_with_what_they_say_as_a_whole(pooling: VideoDiT) -> None:
    context = pooling.read_text(draw_texts((3, 5, 2)))
    taken = context.take([2, 0, 2])
    assert context.pooled is not None
    assert taken.pooled is not None
    assert torch.equal(taken.pooled, context.pooled[[2, 0, 2]])


@torch.no_grad()
def test_a_model_that_gains_it_says_what_it_said_and_learns_more(tmp_path: Path) -> None:
    dit = tiny_dit()
    more = dit.extended(pooled_text=True)
    assert more.config["pooled_text"]
    assert not more.is_wan
    assert more.extended(pooled_text=True) is more
    video = pack([torch.randn(shape) for shape in SHAPES], (1, 2, 2))
    args = video, shared_level(torch.tensor([0.6]), len(video.tokens)), draw_texts((3, 5, 2, 4))
    # one level a pack is modulated in one pass, one a clip in three: only roundings differ
    torch.testing.assert_close(more(*args), dit(*args), atol=1e-5, rtol=0)
    with torch.enable_grad():
        more(*args).square().mean().backward()
    pooler = more.condition_embedder.text_pooler
    assert pooler is not None
    assert pooler.linear_2.weight.grad is not None
    assert bool(pooler.linear_2.weight.grad.any())
    more.save_pretrained(tmp_path)
    again = VideoDiT.from_pretrained(tmp_path)
    assert again.state_dict().keys() == more.state_dict().keys()
    for name, weight in more.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)
