"""The local convolution over the tokens of a frame: it stays within its frame, starts at zero, and is saved."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.conftest import CHANNELS, TEXT_DIM, draw_texts, tiny_dit
from videogen.models.block_cache import Blocks
from videogen.models.dit import VideoDiT
from videogen.models.dit_blocks import LocalConv
from videogen.packing.noise import levels_per_clip, shared_level
from videogen.packing.packs import PackLayout, pack, pack_texts

SHAPES = ((CHANNELS, 3, 4, 8), (CHANNELS, 1, 8, 4), (CHANNELS, 2, 8, 4), (CHANNELS, 3, 4, 8))


@torch.no_grad()
def with_random_convs(model: VideoDiT) -> VideoDiT:
    """Draw the weights of the local convolutions, which start at zero."""
    for name, weight in model.named_parameters():
        if "nearby" in name:
            weight.normal_(std=0.3)
    return model


@torch.no_grad()
def test_a_token_is_convolved_with_the_eight_around_it_in_its_frame_only() -> None:
    layer, grids = LocalConv(2), ((2, 3, 4), (1, 4, 3), (1, 3, 4))
    layer.weight.fill_(1.0)
    clips = [torch.randn(2, *grid) for grid in grids]
    tokens = torch.cat([clip.flatten(1).T for clip in clips])
    outputs = layer(tokens, PackLayout(grids)).split([24, 12, 12])
    for clip, out, (t, h, w) in zip(clips, outputs, grids, strict=True):
        for frame in range(t):
            for row in range(h):
                for column in range(w):
                    window = clip[:, frame, max(0, row - 1) : row + 2, max(0, column - 1) : column + 2]
                    token = out[(frame * h + row) * w + column]
                    torch.testing.assert_close(token, window.sum((1, 2)), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_clip_in_a_pack_is_the_clip_alone() -> None:
    dit, texts = with_random_convs(tiny_dit(nearby=True)), [torch.randn(3, TEXT_DIM) for _ in SHAPES]
    clips, sigmas = [torch.randn(shape) for shape in SHAPES], torch.linspace(0.9, 0.3, len(SHAPES))

    def predict(numbers: Sequence[int]) -> Tensor:
        video = pack([clips[i] for i in numbers], (1, 2, 2))
        return dit(
            video, levels_per_clip(sigmas[list(numbers)], video.lengths), pack_texts([texts[i] for i in numbers])
        )

    alone = torch.cat([predict([i]) for i in range(len(SHAPES))])
    torch.testing.assert_close(predict(range(len(SHAPES))), alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_model_extended_with_convolutions_predicts_the_same_bit_for_bit() -> None:
    dit = tiny_dit()
    extended = dit.extended(nearby=True)
    assert extended.config["nearby"]
    assert not extended.is_wan
    assert extended.extended(nearby=True) is extended
    assert extended.extended([(1, 4, 4)]).config["nearby"]
    video = pack([torch.randn(shape) for shape in SHAPES], (1, 2, 2))
    args = video, shared_level(torch.tensor([0.6]), len(video.tokens)), draw_texts((3, 5, 2, 4))
    assert torch.equal(extended(*args), dit(*args))
    assert not torch.equal(with_random_convs(extended)(*args), dit(*args))


def test_the_convolutions_have_gradients() -> None:
    dit = tiny_dit(nearby=True)
    video = pack([torch.randn(SHAPES[0])], (1, 2, 2))
    level = shared_level(torch.tensor([0.6]), len(video.tokens))
    with_random_convs(dit)(video, level, draw_texts((3,))).square().mean().backward()
    gradients = [p.grad for name, p in dit.named_parameters() if "nearby" in name]
    assert len(gradients) == len(dit.blocks)
    assert all(grad is not None and bool(grad.any()) for grad in gradients)


@torch.no_grad()
def test_the_convolutions_are_saved_with_the_other_weights(tmp_path: Path) -> None:
    dit = with_random_convs(tiny_dit(nearby=True))
    dit.save_pretrained(tmp_path)
    loaded = VideoDiT.from_pretrained(tmp_path).state_dict()
    for name, weight in dit.state_dict().items():
        assert torch.equal(loaded[name], weight)


@torch.no_grad()
@pytest.mark.parametrize("clips", [(0, 1, 2, 3), (1, 2)])
def test_running_the_blocks_on_some_clips_equals_running_them_on_the_pack(clips: tuple[int, ...]) -> None:
    """A block cache runs them so (block_cache.py)."""
    dit = with_random_convs(tiny_dit(nearby=True))
    latents, texts = [torch.randn(shape) for shape in SHAPES], [torch.randn(3, TEXT_DIM) for _ in SHAPES]

    def run_blocks(x: Tensor, lengths: tuple[int, ...], blocks: Blocks) -> Tensor:
        tokens = list(x.split(lengths))
        out = blocks(torch.cat([tokens[i] for i in clips]), slice(None), clips)
        for i, clip in zip(clips, out.split([lengths[i] for i in clips]), strict=True):
            tokens[i] = clip
        return torch.cat(tokens)

    video = pack(latents, (1, 2, 2))
    args = video, shared_level(torch.tensor([0.6]), len(video.tokens)), pack_texts(texts)
    rows = torch.cat([torch.full((n,), i in clips) for i, n in enumerate(video.lengths)])
    torch.testing.assert_close(dit(*args, run_blocks=run_blocks)[rows], dit(*args)[rows], atol=1e-5, rtol=0)
