"""Attention within each clip of a pack and to its text, and the rotary embedding."""

import math

import pytest
import torch
import torch.nn.functional as F
from einops import repeat
from torch import Tensor

from videogen.models.attention import attend, attend_by_runs, attend_text, equal_length_runs, gather_text, text_keys
from videogen.models.rope import Rotary, axis_sizes, rotary, rotate
from videogen.packing.packs import Lengths

RAGGED: list[Lengths] = [(1,), (7,), (5, 5, 5), (3, 1, 4, 4, 4, 2, 9), (1, 1, 1), (2, 3, 2, 3)]
HEADS, SIZE = 3, 8


def attend_reference(q: Tensor, k: Tensor, v: Tensor, lengths: Lengths) -> Tensor:
    """Compute attention under a dense block-diagonal mask: slow and plain, and what every kernel must equal."""
    clip = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)).to(q.device)
    logits = torch.einsum("n h e, m h e -> h n m", q, k) / math.sqrt(q.shape[-1])
    same_clip = repeat(clip[:, None] == clip[None, :], "n m -> h n m", h=q.shape[1])
    return torch.einsum("h n m, m h e -> n h e", logits.masked_fill(~same_clip, -math.inf).softmax(-1), v)


def qkv(num: int, *, heads: int = HEADS, size: int = SIZE) -> list[Tensor]:
    return [torch.randn(num, heads, size) for _ in range(3)]


@pytest.mark.parametrize("lengths", RAGGED)
def test_attention_by_runs_equals_the_reference(lengths: Lengths) -> None:
    q, k, v = qkv(sum(lengths))
    out = attend_by_runs(q, k, v, lengths)
    # float32, only the order of sums differs
    torch.testing.assert_close(out, attend_reference(q, k, v, lengths), atol=1e-6, rtol=0)


@pytest.mark.parametrize("lengths", RAGGED)
def test_the_gradient_by_runs_equals_the_reference(lengths: Lengths) -> None:
    inputs, upstream = [x.requires_grad_() for x in qkv(sum(lengths))], torch.randn(sum(lengths), HEADS, SIZE)
    ours = torch.autograd.grad(attend_by_runs(*inputs, lengths), inputs, upstream)
    reference = torch.autograd.grad(attend_reference(*inputs, lengths), inputs, upstream)
    for gradient, expected in zip(ours, reference, strict=True):
        torch.testing.assert_close(gradient, expected, atol=5e-6, rtol=0)  # float32, only the order of sums differs


def test_the_reference_is_softmax_attention_of_each_clip_alone() -> None:
    lengths = (4, 6, 1)
    q, k, v = qkv(11)
    clips = []
    for clip_q, clip_k, clip_v in zip(*(x.split(lengths) for x in (q, k, v)), strict=True):
        logits = torch.einsum("nhe,mhe->hnm", clip_q, clip_k) / SIZE**0.5
        clips.append(torch.einsum("hnm,mhe->nhe", logits.softmax(-1), clip_v))
    torch.testing.assert_close(attend_reference(q, k, v, lengths), torch.cat(clips), atol=1e-6, rtol=0)


def test_attend_equals_the_reference_on_this_device() -> None:
    q, k, v = qkv(28)
    lengths = (10, 9, 9)
    torch.testing.assert_close(attend(q, k, v, lengths), attend_reference(q, k, v, lengths), atol=1e-6, rtol=0)


def test_clips_of_one_length_are_neither_split_nor_concatenated() -> None:
    """A pack of one length costs what a batch costs."""
    q, k, v = (x.requires_grad_() for x in qkv(12))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        attend_by_runs(q, k, v, (4, 4, 4)).sum().backward()
    assert not {"aten::cat", "aten::split_with_sizes"} & {event.key for event in profile.key_averages()}


def test_runs_group_equally_long_neighbours_and_cover_every_clip() -> None:
    assert equal_length_runs((3, 3, 5, 3)) == [(2, 3), (1, 5), (1, 3)]


@pytest.mark.parametrize("head_size", [12, 24, 32, 44, 64, 128])
def test_the_channels_of_a_head_are_divided_among_the_axes_as_in_wan(head_size: int) -> None:
    sizes = axis_sizes(head_size)
    assert sum(sizes) == head_size
    assert all(size % 2 == 0 for size in sizes)
    assert sizes[1] == sizes[2] == 2 * (head_size // 6)


@pytest.mark.parametrize("head_size", [12, 32, 44])
def test_rotary_attention_depends_on_position_differences_only(head_size: int) -> None:
    """The logits of a small grid are those of the same grid anywhere inside a larger one."""
    device = torch.device("cpu")
    large, small = (rotary((grid,), (1, 2, 2), head_size, device) for grid in ((5, 7, 6), (2, 3, 2)))
    rows = torch.arange(5 * 7 * 6).reshape(5, 7, 6)
    q, k = torch.randn(2, 12, 2, head_size)

    def logits(table: Rotary) -> Tensor:
        return torch.einsum("nhe,mhe->hnm", rotate(q, table), rotate(k, table))

    at_origin = logits(small)
    for f, r, c in ((0, 0, 0), (3, 4, 4), (1, 2, 3)):
        inside = rows[f : f + 2, r : r + 3, c : c + 2].flatten()
        moved = logits(Rotary(*(part[inside] for part in large)))
        torch.testing.assert_close(moved, at_origin, atol=2e-5, rtol=0)  # tables are rounded to float32


def test_rotation_keeps_norms_and_depends_on_every_axis() -> None:
    table = rotary(((2, 2, 2),), (1, 2, 2), 12, torch.device("cpu"))
    x = torch.randn(1, 2, 12).expand(8, -1, -1)
    rotated = rotate(x, table)
    torch.testing.assert_close(rotated.norm(dim=-1), x.norm(dim=-1), atol=1e-5, rtol=0)
    assert torch.equal(rotated[0], x[0])  # The angles of the first position are 0.
    assert torch.cdist(rotated.flatten(1), rotated.flatten(1)).add(torch.eye(8)).min() > 1e-3


def test_a_rotated_query_keeps_its_dtype() -> None:
    table = rotary(((1, 1, 2),), (1, 2, 2), 12, torch.device("cpu"))
    assert rotate(torch.randn(2, 1, 12).bfloat16(), table).dtype == torch.bfloat16


def cross_attend(q: Tensor, k: Tensor, v: Tensor, lengths: Lengths, text_lengths: Lengths, weights: Tensor) -> Tensor:
    keys = text_keys(text_lengths, weights)
    return attend_text(q, gather_text(k, keys, HEADS), gather_text(v, keys, HEADS), lengths, keys)


@pytest.mark.parametrize("weight", [2, 7, 500])
def test_one_text_row_of_weight_w_equals_w_equal_rows(weight: int) -> None:
    """So one row stands for Wan's hundreds of equal pad rows."""
    q = torch.randn(9, HEADS, SIZE)
    k, v = torch.randn(2, 5, HEADS * SIZE)
    counts = torch.tensor([1, 1, 1, weight, 1])
    repeated = [x.double().repeat_interleave(counts, dim=0) for x in (k, v)]  # 500 sums in float32 are off by 7e-6
    lengths = (4, 5)
    collapsed = cross_attend(q, k, v, lengths, (2, 3), counts.float())
    expected = cross_attend(q.double(), *repeated, lengths, (2, weight + 2), torch.ones(weight + 4))
    torch.testing.assert_close(collapsed, expected.float(), atol=1e-6, rtol=0)  # float32 rounding of the collapsed one


def test_a_clip_attends_to_its_own_text_only() -> None:
    lengths, text_lengths = (4, 4, 2, 6), (3, 1, 5, 2)
    q = torch.randn(16, HEADS, SIZE)
    k, v = torch.randn(2, 11, HEADS * SIZE)
    together = cross_attend(q, k, v, lengths, text_lengths, torch.ones(11))
    clips = zip(q.split(lengths), k.split(text_lengths), v.split(text_lengths), strict=True)
    for (clip_q, clip_k, clip_v), out in zip(clips, together.split(lengths), strict=True):
        clip_k, clip_v = (x.reshape(-1, HEADS, SIZE).transpose(0, 1) for x in (clip_k, clip_v))
        alone = F.scaled_dot_product_attention(clip_q.transpose(0, 1), clip_k, clip_v)
        torch.testing.assert_close(out, alone.transpose(0, 1), atol=1e-6, rtol=0)  # only the order of sums differs


def test_texts_of_one_length_and_weight_need_no_bias() -> None:
    assert text_keys((3, 3), torch.ones(6)).bias_for(slice(0, 2)) is None
    assert text_keys((3, 2), torch.ones(5)).bias_for(slice(0, 2)) is not None
    assert text_keys((2, 2), torch.tensor([1.0, 1.0, 2.0, 1.0])).bias_for(slice(0, 2)) is not None


def test_a_run_of_clips_has_no_padding_up_to_the_texts_of_other_runs() -> None:
    keys = text_keys((3, 7, 2, 2), torch.tensor([1.0] * 12 + [1.0, 4.0]))
    assert keys.bias_for(slice(0, 1)) is None
    assert keys.bias_for(slice(2, 3)) is None
    padded, weighted = keys.bias_for(slice(0, 2)), keys.bias_for(slice(3, 4))
    assert padded is not None
    assert padded.shape == (2, 1, 1, 7)
    assert padded[0].isfinite().sum() == 3
    assert weighted is not None
    assert weighted.flatten().tolist() == [0.0, pytest.approx(math.log(4))]
    taken = keys.take([3, 0])
    assert (taken.lengths, taken.weighted, taken.rows.shape) == ((2, 3), (True, False), (2, 3))
    assert torch.equal(taken.bias[0, ..., :2], keys.bias[3, ..., :2])
