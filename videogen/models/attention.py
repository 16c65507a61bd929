"""Attention within each clip of a pack, and the rotary embedding that tells a token where it is.

    queries (n, heads, e), keys and values (m, heads, e), lengths  ->  (n, heads, e)

No padding tokens and no dense block mask: on CPU one SDPA call serves each run of equally long clips; on CUDA the
variable-length kernel, or xformers' where it is installed, takes the whole pack.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Sequence
from itertools import accumulate, groupby
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from videogen.packing.packs import Lengths

logger = logging.getLogger(__name__)
MOST_LOGITS = 2**20  # of a clip and head: a megabyte or two in half the bits, which stays near a core


def runs_of(lengths: Lengths) -> list[tuple[int, int]]:
    """The runs of equally long neighbours: how many clips, and how long each is."""
    return [(len(list(group)), length) for length, group in groupby(lengths)]


def autocasts(device: torch.device) -> bool:
    """Whether mixed precision is on for a device."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def settle(*parts: Tensor) -> tuple[Tensor, ...]:
    """Under autocast, attention's inputs in its dtype."""
    device = parts[0].device
    if not autocasts(device):
        return parts
    dtype = torch.get_autocast_dtype(device.type)
    return tuple(part.to(dtype) for part in parts)


def sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Softmax attention of q on k and v (b, heads, n, e) in the dtype that they have, autocast or not."""
    if not autocasts(q.device):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    with torch.autocast(q.device.type, enabled=False):
        if q.device.type != "cpu":
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        if q.shape[-2] * k.shape[-2] <= MOST_LOGITS:
            return sdpa_of_few(q, k, v, bias)
        # torch's kernel takes 5 times as long in half the bits, backwards
        whole = None if bias is None else bias.float()
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=whole).to(q.dtype)


def sdpa_of_few(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """The same by its definition: two products and a softmax, on a CPU in half the bits twice as fast as the kernel."""
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return (logits if bias is None else logits + bias).softmax(-1) @ v


def attend(q: Tensor, k: Tensor, v: Tensor, lengths: Lengths) -> Tensor:
    """Self-attention within each clip: q, k, v (n, heads, e), rows of a clip see only its own rows."""
    q, k, v = settle(q, k, v)
    return SELF_KERNELS[self_kernel(q.device.type)](q, k, v, lengths)


def parts_of(x: Tensor, sizes: Sequence[int]) -> Sequence[Tensor]:
    """The rows of each run; split, not slices: the gradient is one cat, not a sum of zeros, and of one run no copy."""
    return x.split(list(sizes)) if len(sizes) > 1 else (x,)


def attend_by_runs(q: Tensor, k: Tensor, v: Tensor, lengths: Lengths) -> Tensor:
    """One SDPA call for each run of equally long clips: exact, differentiable, on every device."""
    runs = runs_of(lengths)
    rows = [num * length for num, length in runs]
    out = []
    for (num, _), *parts in zip(runs, *(parts_of(x, rows) for x in (q, k, v)), strict=True):
        own_q, own_k, own_v = (rearrange(x, "(b n) heads e -> b heads n e", b=num) for x in parts)
        answer = sdpa(own_q, own_k, own_v)
        out.append(rearrange(answer, "b heads n e -> (b n) heads e"))
    return torch.cat(out) if len(out) > 1 else out[0]


def attend_varlen(q: Tensor, k: Tensor, v: Tensor, lengths: Lengths) -> Tensor:
    """The CUDA kernel for packs (torch >= 2.10); half precision only, so float32 goes by runs."""
    if q.dtype not in (torch.float16, torch.bfloat16):
        return attend_by_runs(q, k, v, lengths)
    from torch.nn.attention.varlen import varlen_attn

    ends = torch.tensor((0, *accumulate(lengths)), dtype=torch.int32, device=q.device)
    return varlen_attn(q, k, v, ends, ends, max(lengths), max(lengths))  # type: ignore[return-value]


def attend_xformers(q: Tensor, k: Tensor, v: Tensor, lengths: Lengths) -> Tensor:
    """xformers' block-diagonal kernel (CUDA only)."""
    from xformers import ops  # type: ignore[import-not-found]

    bias = ops.fmha.attn_bias.BlockDiagonalMask.from_seqlens(list(lengths), device=q.device)
    batch = (rearrange(x, "n heads e -> 1 n heads e") for x in (q, k, v))
    return rearrange(ops.memory_efficient_attention(*batch, attn_bias=bias), "1 n heads e -> n heads e")


SELF_KERNELS: dict[str, Callable[[Tensor, Tensor, Tensor, Lengths], Tensor]] = {
    "runs": attend_by_runs,
    "varlen": attend_varlen,
    "xformers": attend_xformers,
}


@functools.cache
def self_kernel(device_type: str) -> str:
    """The kernel for a kind of device, chosen here and nowhere else."""
    kernel = "runs"
    if device_type == "cuda":
        try:
            from xformers import ops  # type: ignore[import-not-found]  # noqa: F401

            kernel = "xformers"
        except Exception:  # not installed, or built for another torch: both show only here
            kernel = "varlen"
    logger.info("attention within clips: %s", kernel)
    return kernel


class TextKeys(NamedTuple):
    """Where each clip's text rows lie, laid out once a pack for cross-attention.

    rows (b, m) picks each clip's text rows, repeating its first row past its own end; bias (b, 1, 1, m) adds
    log(weight) to a row's logit, which makes one row stand for `weight` equal ones, and -inf past the end.
    """

    rows: Tensor
    bias: Tensor
    lengths: Lengths  # rows of each clip
    weighted: tuple[bool, ...]  # whether any of a clip's rows stands for more than itself

    def take(self, clips: Sequence[int]) -> TextKeys:
        """Some of the clips, in the order given; the longest of their texts says how many rows are kept."""
        lengths, weighted = tuple(self.lengths[i] for i in clips), tuple(self.weighted[i] for i in clips)
        index, longest = torch.tensor(clips, device=self.rows.device), max(lengths)
        return TextKeys(self.rows[index, :longest], self.bias[index, ..., :longest], lengths, weighted)

    def bias_of(self, clips: slice) -> Tensor | None:
        """What is added to the logits of neighbouring clips, up to the end of their longest text; none if that is 0."""
        lengths = self.lengths[clips]
        bare = len(set(lengths)) == 1 and not any(self.weighted[clips])
        return None if bare else self.bias[clips, ..., : max(lengths)]


def text_keys(lengths: Lengths, weights: Tensor) -> TextKeys:
    """Lay out packed text rows (m,) of the given lengths and weights."""
    longest, starts = max(lengths), [0, *accumulate(lengths)]
    steps = torch.arange(longest)
    count = torch.tensor(lengths)
    inside = steps < rearrange(count, "b -> b 1")
    rows = torch.where(inside, steps, 0) + rearrange(torch.tensor(starts[:-1]), "b -> b 1")
    host_weights = weights.detach().cpu().double()
    bias = torch.where(inside, host_weights[rows].log(), -math.inf).to(weights.dtype)
    weighted = tuple(any(weight != 1 for weight in own.tolist()) for own in host_weights.split(lengths))
    device = weights.device
    return TextKeys(rows.to(device), rearrange(bias, "b m -> b 1 1 m").to(device), tuple(lengths), weighted)


def attend_text(q: Tensor, k: Tensor, v: Tensor, lengths: Lengths, keys: TextKeys) -> Tensor:
    """Cross-attention: q (n, heads, e) of a clip see its own text k, v (b, heads, m, e), gathered by gather_text.

    A run of clips is given as many rows of text as its own longest has: alone in its run, a clip meets no padding.
    """
    q, k, v = settle(q, k, v)
    runs = runs_of(lengths)
    clips = [num for num, _ in runs]
    queries = parts_of(q, [num * n for num, n in runs])
    out, first = [], 0
    for own_q, own_k, own_v in zip(queries, parts_of(k, clips), parts_of(v, clips), strict=True):
        run = slice(first, first := first + len(own_k))
        bias, longest = keys.bias_of(run), max(keys.lengths[run])
        answer = sdpa(
            rearrange(own_q, "(b n) heads e -> b heads n e", b=len(own_k)),
            own_k[:, :, :longest],
            own_v[:, :, :longest],
            None if bias is None else bias.to(q.dtype),
        )
        out.append(rearrange(answer, "b heads n e -> (b n) heads e"))
    return torch.cat(out) if len(out) > 1 else out[0]


def gather_text(x: Tensor, keys: TextKeys, heads: int) -> Tensor:
    """Packed text rows (m, d) as one (b, heads, m, e) block of keys or values."""
    return rearrange(rows_at(x, keys.rows), "b m (heads e) -> b heads m e", heads=heads)


def rows_at(table: Tensor, index: Tensor) -> Tensor:
    """Rows of a table (u, d) by an index of any shape, as embedding does.

    On a CPU embedding's gradient is summed by rows, that of an index element by element; on a GPU embedding's sorts
    the index first, in a dozen small kernels, and index_select's adds.
    """
    if table.device.type == "cpu":
        return F.embedding(index, table)
    return table.index_select(0, index.flatten()).unflatten(0, index.shape)


def attend_reference(q: Tensor, k: Tensor, v: Tensor, lengths: Lengths) -> Tensor:
    """Softmax attention under a dense block-diagonal mask: slow, plain, and what every kernel must equal."""
    clip = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)).to(q.device)
    logits = torch.einsum("n h e, m h e -> h n m", q, k) / math.sqrt(q.shape[-1])
    same = repeat(clip[:, None] == clip[None, :], "n m -> h n m", h=q.shape[1])
    return torch.einsum("h n m, m h e -> n h e", logits.masked_fill(~same, -math.inf).softmax(-1), v)
