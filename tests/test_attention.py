"""Attention: a clip sees itself, all of it, and nothing else; places matter by their differences."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from videogen.models.attention import (
    attend,
    attend_by_runs,
    attend_reference,
    attend_text,
    gather_text,
    runs_of,
    text_keys,
)
from videogen.models.rope import Rotary, axis_sizes, rotary, rotate
from videogen.packing.packs import Lengths

RAGGED: list[Lengths] = [(1,), (7,), (5, 5, 5), (3, 1, 4, 4, 4, 2, 9), (1, 1, 1), (2, 3, 2, 3)]
HEADS, SIZE = 3, 8


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
    for one, other in zip(ours, reference, strict=True):
        torch.testing.assert_close(one, other, atol=5e-6, rtol=0)  # float32, only the order of sums differs


def test_the_reference_is_softmax_attention_of_each_clip_alone() -> None:
    lengths = (4, 6, 1)
    q, k, v = qkv(11)
    parts = []
    for one in zip(*(x.split(lengths) for x in (q, k, v)), strict=True):
        logits = torch.einsum("nhe,mhe->hnm", one[0], one[1]) / SIZE**0.5
        parts.append(torch.einsum("hnm,mhe->nhe", logits.softmax(-1), one[2]))
    torch.testing.assert_close(attend_reference(q, k, v, lengths), torch.cat(parts), atol=1e-6, rtol=0)


def test_on_this_device_attend_is_exact() -> None:
    q, k, v = qkv(28)
    lengths = (10, 9, 9)
    torch.testing.assert_close(attend(q, k, v, lengths), attend_reference(q, k, v, lengths), atol=1e-6, rtol=0)


def test_clips_of_one_length_are_attended_without_a_copy_to_split_or_join_them() -> None:
    """A pack of one length costs what a batch costs."""
    q, k, v = (x.requires_grad_() for x in qkv(12))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        attend_by_runs(q, k, v, (4, 4, 4)).sum().backward()
    assert not {"aten::cat", "aten::split_with_sizes"} & {event.key for event in seen.key_averages()}


def test_runs_are_equal_neighbours_and_cover_every_clip() -> None:
    assert runs_of((3, 3, 5, 3)) == [(2, 3), (1, 5), (1, 3)]


@pytest.mark.parametrize("head_size", [12, 24, 32, 44, 64, 128])
def test_the_axes_share_a_head_as_in_wan(head_size: int) -> None:
    sizes = axis_sizes(head_size)
    assert sum(sizes) == head_size
    assert all(size % 2 == 0 for size in sizes)
    assert sizes[1] == sizes[2] == 2 * (head_size // 6)


@pytest.mark.parametrize("head_size", [12, 32, 44])
def test_rotary_depends_on_differences_of_places_only(head_size: int) -> None:
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
        moved = logits(Rotary(large.cos[inside], large.sin[inside]))
        torch.testing.assert_close(moved, at_origin, atol=2e-5, rtol=0)  # tables are rounded to float32


def test_rotary_keeps_lengths_and_turns_with_every_axis() -> None:
    table = rotary(((2, 2, 2),), (1, 2, 2), 12, torch.device("cpu"))
    x = torch.randn(1, 2, 12).expand(8, -1, -1)
    turned = rotate(x, table)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), atol=1e-5, rtol=0)
    assert torch.equal(turned[0], x[0])  # the first place does not turn
    assert torch.cdist(turned.flatten(1), turned.flatten(1)).add(torch.eye(8)).min() > 1e-3


def test_a_rotated_query_keeps_its_dtype() -> None:
    table = rotary(((1, 1, 2),), (1, 2, 2), 12, torch.device("cpu"))
    assert rotate(torch.randn(2, 1, 12).bfloat16(), table).dtype == torch.bfloat16


def read(q: Tensor, k: Tensor, v: Tensor, lengths: Lengths, text: Lengths, weights: Tensor) -> Tensor:
    keys = text_keys(text, weights)
    return attend_text(q, gather_text(k, keys, HEADS), gather_text(v, keys, HEADS), lengths, keys)


@pytest.mark.parametrize("weight", [2, 7, 500])
def test_one_text_row_of_weight_w_is_w_equal_rows(weight: int) -> None:
    """Wan's hundreds of equal pad rows are one row."""
    q = torch.randn(9, HEADS, SIZE)
    k, v = torch.randn(2, 5, HEADS * SIZE)
    counts = torch.tensor([1, 1, 1, weight, 1])
    repeated = [x.double().repeat_interleave(counts, dim=0) for x in (k, v)]  # 500 sums in float32 are off by 7e-6
    lengths, text = (4, 5), (2, 3)
    collapsed = read(q, k, v, lengths, text, counts.float())
    whole = read(q.double(), *repeated, lengths, (2, weight + 2), torch.ones(weight + 4))
    torch.testing.assert_close(collapsed, whole.float(), atol=1e-6, rtol=0)  # float32 rounding of the collapsed one


def test_a_clip_reads_its_own_text_only() -> None:
    lengths, text = (4, 4, 2, 6), (3, 1, 5, 2)
    q = torch.randn(16, HEADS, SIZE)
    k, v = torch.randn(2, 11, HEADS * SIZE)
    together = read(q, k, v, lengths, text, torch.ones(11))
    parts = zip(q.split(lengths), k.split(text), v.split(text), strict=True)
    for (one, keys, values), out in zip(parts, together.split(lengths), strict=True):
        alone = F.scaled_dot_product_attention(
            one.transpose(0, 1), *(x.reshape(-1, HEADS, SIZE).transpose(0, 1) for x in (keys, values))
        )
        torch.testing.assert_close(out, alone.transpose(0, 1), atol=1e-6, rtol=0)  # only the order of sums differs


def test_texts_of_one_length_and_weight_need_no_bias() -> None:
    assert text_keys((3, 3), torch.ones(6)).bias_of(slice(0, 2)) is None
    assert text_keys((3, 2), torch.ones(5)).bias_of(slice(0, 2)) is not None
    assert text_keys((2, 2), torch.tensor([1.0, 1.0, 2.0, 1.0])).bias_of(slice(0, 2)) is not None


def test_a_run_of_clips_meets_no_padding_of_other_runs() -> None:
    keys = text_keys((3, 7, 2, 2), torch.tensor([1.0] * 12 + [1.0, 4.0]))
    assert keys.bias_of(slice(0, 1)) is None
    assert keys.bias_of(slice(2, 3)) is None
    padded, weighted = keys.bias_of(slice(0, 2)), keys.bias_of(slice(3, 4))
    assert padded is not None
    assert padded.shape == (2, 1, 1, 7)
    assert padded[0].isfinite().sum() == 3
    assert weighted is not None
    assert weighted.flatten().tolist() == [0.0, pytest.approx(math.log(4))]
    taken = keys.take([3, 0])
    assert (taken.lengths, taken.weighted, taken.rows.shape) == ((2, 3), (True, False), (2, 3))
    assert torch.equal(taken.bias[0, ..., :2], keys.bias[3, ..., :2])
