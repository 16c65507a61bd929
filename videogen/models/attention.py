"""Attention of packed tokens: each clip's tokens attend to each other, and to the text of their own clip.

    queries (n, heads, e), keys and values (m, heads, e), lengths  ->  (n, heads, e)

There are no padding tokens and no dense block mask. On CPU, one SDPA call serves each run of equally long clips; on
CUDA the variable-length kernel, or xformers' where it is installed, takes the whole pack.
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
from einops import rearrange
from torch import Tensor

from videogen.packing.packs import Lengths

logger = logging.getLogger(__name__)
MAX_UNFUSED_LOGITS = 2**20  # Of a clip and head: one or two megabytes in half precision, which stay in a core's cache.


@functools.lru_cache(maxsize=256)
def equal_length_runs(lengths: Lengths) -> list[tuple[int, int]]:
    """Group neighbouring clips of equal length into runs (number of clips, length of each)."""
    return [(len(list(group)), length) for length, group in groupby(lengths)]


def split_runs(x: Tensor, sizes: Sequence[int]) -> Sequence[Tensor]:
    """Split x into one chunk per run, without a copy if there is only one run.

    `split` rather than slicing: its backward is one `cat` instead of a sum of zero-padded gradients.
    """
    return x.split(list(sizes)) if len(sizes) > 1 else (x,)


def autocast_enabled(device: torch.device) -> bool:
    """True if autocast is on for a device."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def to_autocast_dtype(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Cast the inputs of attention to autocast's dtype, if autocast is on."""
    device = tensors[0].device
    if not autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device.type)
    return tuple(x.to(dtype) for x in tensors)


def sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute softmax attention of q on k and v (b, heads, n, e) in their own dtype, with or without autocast."""
    if not autocast_enabled(q.device):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    with torch.autocast(q.device.type, enabled=False):
        if q.device.type != "cpu":
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        if q.shape[-2] * k.shape[-2] <= MAX_UNFUSED_LOGITS:
            # In half precision on a CPU, two products and a softmax are twice as fast as the kernel.
            logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
            return (logits if bias is None else logits + bias).softmax(-1) @ v
        # The backward pass of torch's kernel takes 5 times as long in half precision as in float32.
        float_bias = None if bias is None else bias.float()
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=float_bias).to(q.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, lengths: Lengths) -> Tensor:
    """Compute self-attention within each clip: the rows of q, k, v (n, heads, e) see the rows of their own clip."""
    q, k, v = to_autocast_dtype(q, k, v)
    return SELF_KERNELS[choose_self_kernel(q.device.type)](q, k, v, lengths)


def attend_by_runs(q: Tensor, k: Tensor, v: Tensor, lengths: Lengths) -> Tensor:
    """Make one SDPA call for each run of equally long clips: exact and differentiable on every device."""
    runs = equal_length_runs(lengths)
    sizes = [num_clips * length for num_clips, length in runs]
    out = []
    for (num_clips, _), *qkv in zip(runs, *(split_runs(x, sizes) for x in (q, k, v)), strict=True):
        batch = (rearrange(x, "(b n) heads e -> b heads n e", b=num_clips) for x in qkv)
        out.append(rearrange(sdpa(*batch), "b heads n e -> (b n) heads e"))
    return torch.cat(out) if len(out) > 1 else out[0]


def attend_varlen(q: Tensor, k: Tensor, v: Tensor, lengths: Lengths) -> Tensor:
    """Call torch's variable-length CUDA kernel (torch >= 2.10); it is half precision only, so float32 goes by runs."""
    if q.dtype not in (torch.float16, torch.bfloat16):
        return attend_by_runs(q, k, v, lengths)
    from torch.nn.attention.varlen import varlen_attn

    ends = torch.tensor((0, *accumulate(lengths)), dtype=torch.int32, device=q.device)
    return varlen_attn(q, k, v, ends, ends, max(lengths), max(lengths))  # type: ignore[return-value]


def attend_xformers(q: Tensor, k: Tensor, v: Tensor, lengths: Lengths) -> Tensor:
    """Call xformers' block-diagonal kernel (CUDA only)."""
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
def choose_self_kernel(device_type: str) -> str:
    """Choose the self-attention kernel for a kind of device: here and nowhere else."""
    kernel = "runs"
    if device_type == "cuda":
        try:
            from xformers import ops  # type: ignore[import-not-found]  # noqa: F401

            kernel = "xformers"
        except Exception:  # xformers is not installed or was built for another torch, which only its import shows.
            kernel = "varlen"
    logger.info("attention within clips: %s", kernel)
    return kernel


class TextKeys(NamedTuple):
    """The text rows that each clip's tokens attend to, laid out once a pack.

    rows (b, m) indexes each clip's text rows, and repeats its first row past its own end. bias (b, 1, 1, m) adds
    log(weight) to a row's logit, so that one row stands for `weight` equal rows, and is -inf past the end.
    """

    rows: Tensor
    bias: Tensor
    lengths: Lengths  # text rows of each clip
    weighted: tuple[bool, ...]  # True for a clip that has a row of another weight than 1

    def take(self, clips: Sequence[int]) -> TextKeys:
        """Select clips, in the order given; the longest of their texts sets the number of rows."""
        lengths, weighted = tuple(self.lengths[i] for i in clips), tuple(self.weighted[i] for i in clips)
        index, longest = torch.tensor(clips, device=self.rows.device), max(lengths)
        return TextKeys(self.rows[index, :longest], self.bias[index, ..., :longest], lengths, weighted)

    def bias_for(self, clips: slice) -> Tensor | None:
        """Return the bias of neighbouring clips up to the end of their longest text, or None if all of it is 0."""
        lengths = self.lengths[clips]
        is_zero = len(set(lengths)) == 1 and not any(self.weighted[clips])
        return None if is_zero else self.bias[clips, ..., : max(lengths)]


def text_keys(lengths: Lengths, weights: Tensor) -> TextKeys:
    """Lay out packed text rows (m,) of the given lengths and weights."""
    steps, counts = torch.arange(max(lengths)), rearrange(torch.tensor(lengths), "b -> b 1")
    is_text = steps < counts
    rows = torch.where(is_text, steps, 0) + (counts.cumsum(0) - counts)
    host_weights = weights.detach().cpu().double()
    bias = torch.where(is_text, host_weights[rows].log(), -math.inf).to(weights.dtype)
    weighted = tuple(any(weight != 1 for weight in text.tolist()) for text in host_weights.split(lengths))
    device = weights.device
    return TextKeys(rows.to(device), rearrange(bias, "b m -> b 1 1 m").to(device), tuple(lengths), weighted)


def attend_text(q: Tensor, k: Tensor, v: Tensor, lengths: Lengths, keys: TextKeys) -> Tensor:
    """Compute cross-attention: q (n, heads, e) of a clip see its own text k, v (b, heads, m, e) from gather_text.

    Each run of clips gets only as many text rows as its longest text has: alone in its run, a clip meets no padding.
    """
    q, k, v = to_autocast_dtype(q, k, v)
    runs = equal_length_runs(lengths)
    sizes = [num_clips for num_clips, _ in runs]
    queries = split_runs(q, [num_clips * length for num_clips, length in runs])
    out, first = [], 0
    for run_q, run_k, run_v in zip(queries, split_runs(k, sizes), split_runs(v, sizes), strict=True):
        clips = slice(first, first := first + len(run_k))
        bias, longest = keys.bias_for(clips), max(keys.lengths[clips])
        attended = sdpa(
            rearrange(run_q, "(b n) heads e -> b heads n e", b=len(run_k)),
            run_k[:, :, :longest],
            run_v[:, :, :longest],
            None if bias is None else bias.to(q.dtype),
        )
        out.append(rearrange(attended, "b heads n e -> (b n) heads e"))
    return torch.cat(out) if len(out) > 1 else out[0]


def gather_text(x: Tensor, keys: TextKeys, heads: int) -> Tensor:
    """Gather packed text rows (m, d) into one block of keys or values (b, heads, m, e)."""
    return rearrange(gather_rows(x, keys.rows), "b m (heads e) -> b heads m e", heads=heads)


def gather_rows(table: Tensor, index: Tensor) -> Tensor:
    """Gather rows of a table (u, d) by an index of any shape, by the operation whose backward is fast on the device.

    On a CPU, embedding sums the gradient by rows, and index_select element by element. On a GPU, embedding's backward
    sorts the index first, in a dozen small kernels, and index_select's only adds.
    """
    if table.device.type == "cpu":
        return F.embedding(index, table)
    return table.index_select(0, index.flatten()).unflatten(0, index.shape)
