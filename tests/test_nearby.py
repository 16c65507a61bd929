"""Convolutions over the tokens of a frame: in one frame of one clip, nothing to begin with, saved with the rest."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.conftest import CHANNELS, TEXT_DIM, draw_texts, tiny_dit
from videogen.models.dit import VideoDiT
from videogen.models.dit_blocks import Nearby
from videogen.packing.noise import per_clip, shared_level
from videogen.packing.packs import Layout, pack, pack_texts

SHAPES = ((CHANNELS, 3, 4, 8), (CHANNELS, 1, 8, 4), (CHANNELS, 2, 8, 4), (CHANNELS, 3, 4, 8))


@torch.no_grad()
def stirred(model: VideoDiT) -> VideoDiT:
    """With convolutions that are no longer nothing."""
    for name, weight in model.named_parameters():
        if "nearby" in name:
            weight.normal_(std=0.3)
    return model


@torch.no_grad()
def test_a_token_hears_the_eight_around_it_in_its_frame_and_no_other() -> None:
    layer, grids = Nearby(2), ((2, 3, 4), (1, 4, 3), (1, 3, 4))
    layer.weight.fill_(1.0)
    cells = [torch.randn(2, *grid) for grid in grids]
    rows = torch.cat([cell.flatten(1).T for cell in cells])
    found = layer(rows, Layout(grids)).split([24, 12, 12])
    for cell, got, (t, h, w) in zip(cells, found, grids, strict=True):
        for frame in range(t):
            for row in range(h):
                for column in range(w):
                    near = cell[:, frame, max(0, row - 1) : row + 2, max(0, column - 1) : column + 2]
                    token = got[(frame * h + row) * w + column]
                    torch.testing.assert_close(token, near.sum((1, 2)), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_clip_in_a_pack_is_the_clip_alone() -> None:
    dit, texts = stirred(tiny_dit(nearby=True)), [torch.randn(3, TEXT_DIM) for _ in SHAPES]
    clips, sigmas = [torch.randn(shape) for shape in SHAPES], torch.linspace(0.9, 0.3, len(SHAPES))

    def answer(which: Sequence[int]) -> Tensor:
        video = pack([clips[i] for i in which], (1, 2, 2))
        return dit(video, per_clip(sigmas[list(which)], video.lengths), pack_texts([texts[i] for i in which]))

    together = answer(range(len(SHAPES)))
    torch.testing.assert_close(together, torch.cat([answer([i]) for i in range(len(SHAPES))]), atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_model_that_gains_them_says_what_it_said_to_the_bit() -> None:
    dit = tiny_dit()
    more = dit.extended(nearby=True)
    assert more.config["nearby"]
    assert not more.is_wan
    assert more.extended(nearby=True) is more
    assert more.extended([(1, 4, 4)]).config["nearby"]
    video = pack([torch.randn(shape) for shape in SHAPES], (1, 2, 2))
    args = video, shared_level(torch.tensor([0.6]), len(video.tokens)), draw_texts((3, 5, 2, 4))
    assert torch.equal(more(*args), dit(*args))
    assert not torch.equal(stirred(more)(*args), dit(*args))


def test_they_are_trained() -> None:
    dit = tiny_dit(nearby=True)
    video = pack([torch.randn(SHAPES[0])], (1, 2, 2))
    level = shared_level(torch.tensor([0.6]), len(video.tokens))
    stirred(dit)(video, level, draw_texts((3,))).square().mean().backward()
    gradients = [p.grad for name, p in dit.named_parameters() if "nearby" in name]
    assert len(gradients) == len(dit.blocks)
    assert all(grad is not None and bool(grad.any()) for grad in gradients)


@torch.no_grad()
def test_they_are_saved_with_the_rest(tmp_path: Path) -> None:
    dit = stirred(tiny_dit(nearby=True))
    dit.save_pretrained(tmp_path)
    again = VideoDiT.from_pretrained(tmp_path)
    for name, weight in dit.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)


@torch.no_grad()
@pytest.mark.parametrize("clips", [(0, 1, 2, 3), (1, 2)])
def test_some_blocks_of_some_clips_are_those_of_the_whole(clips: tuple[int, ...]) -> None:
    """What approximate reuse asks for (caching.py)."""
    dit = stirred(tiny_dit(nearby=True))
    latents, texts = [torch.randn(shape) for shape in SHAPES], [torch.randn(3, TEXT_DIM) for _ in SHAPES]

    def around(x: Tensor, lengths: tuple[int, ...], run: Callable[[Tensor, slice, Sequence[int]], Tensor]) -> Tensor:
        parts = list(x.split(lengths))
        for i, part in zip(clips, run(torch.cat([parts[i] for i in clips]), slice(None), clips).split(
            [lengths[i] for i in clips]), strict=True):  # fmt: skip
            parts[i] = part
        return torch.cat(parts)

    video = pack(latents, (1, 2, 2))
    args = video, shared_level(torch.tensor([0.6]), len(video.tokens)), pack_texts(texts)
    rows = torch.cat([torch.full((n,), i in clips) for i, n in enumerate(video.lengths)])
    torch.testing.assert_close(dit(*args, around=around)[rows], dit(*args)[rows], atol=1e-5, rtol=0)
