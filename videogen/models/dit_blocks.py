"""The layers of Wan's transformer, by the names that diffusers gives them, on packed tokens.

tokens (n, d), modulation of the distinct noise levels (u, 6, d), the prompts' keys and values  ->  tokens (n, d)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Literal, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from videogen.models.attention import TextKeys, attend, attend_text, gather_rows, gather_text
from videogen.models.rope import Rotary, axis_sizes, rotate
from videogen.packing.packs import PackLayout

GELU_CHUNK = 2**17  # numbers that stay in a core's cache
Function = TypeVar("Function", bound=Callable[..., Tensor])


def uncompiled(function: Function) -> Function:
    """Exclude a function from torch.compile, which would compile it again for each new tuple of clip lengths.

    torch.compiler.disable imports torch._dynamo, which takes a second, so it is called when a compiler runs first.
    """

    @functools.cache
    def excluded() -> Function:
        return torch.compiler.disable(function)  # type: ignore[return-value]

    @functools.wraps(function)
    def call(*args: object) -> Tensor:
        chosen = excluded() if torch.compiler.is_compiling() else function
        return chosen(*args)

    return call  # type: ignore[return-value]


def random_table(rows: int, d: int) -> nn.Parameter:
    """Draw a modulation table (1, rows, d) of deviation 1 / sqrt(d), as Wan does.

    None is drawn on the meta device, where networks are built before their weights are read: torch draws normal numbers
    there in Python modules whose import takes a second.
    """
    table = torch.empty(1, rows, d)
    return nn.Parameter(table if table.is_meta else table.normal_() / d**0.5)


@dataclass(eq=False)  # It is no tuple, for the reason that PackLayout gives.
class CrossAttentionInput:
    """Keys and values of the clips' texts, or of their images, for one block; computed once a prompt."""

    k: Tensor  # (b, heads, m, e)
    v: Tensor  # (b, heads, m, e)
    keys: TextKeys


def join_inputs(first: CrossAttentionInput, second: CrossAttentionInput) -> CrossAttentionInput:
    """Put the rows of a second input behind those of a first whose clips have equally many, under one softmax."""
    keys, more = first.keys, second.keys
    joined = TextKeys(
        torch.cat([keys.rows, more.rows + keys.rows.numel()], dim=1),
        torch.cat([keys.bias, more.bias], dim=-1),
        tuple(map(sum, zip(keys.lengths, more.lengths, strict=True))),
        tuple(a or b for a, b in zip(keys.weighted, more.weighted, strict=True)),
    )
    k, v = (torch.cat(pair, dim=2) for pair in ((first.k, second.k), (first.v, second.v)))
    return CrossAttentionInput(k, v, joined)


def compute_dtype(layer: nn.Module) -> torch.dtype:
    """Return the dtype that a linear layer computes in: its bias's, for its weight may be quantised, held in bytes."""
    return layer.bias.dtype  # type: ignore[return-value,union-attr]


def apply_norm(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    """Apply a norm in its own precision: under autocast, the output of a linear layer has fewer bits."""
    return norm(x.to(norm.weight.dtype))


class Attention(nn.Module):
    """Self- or cross-attention; the norms of queries and keys span all heads at once, as in Wan."""

    def __init__(self, d: int, heads: int, eps: float, added_dim: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(d, d) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(d, d)])
        self.norm_q, self.norm_k = nn.RMSNorm(d, eps=eps), nn.RMSNorm(d, eps=eps)
        if added_dim is not None:
            self.add_k_proj, self.add_v_proj = nn.Linear(added_dim, d), nn.Linear(added_dim, d)
            self.norm_added_k = nn.RMSNorm(d, eps=eps)

    def forward(self, x: Tensor, table: Rotary, layout: PackLayout) -> Tensor:
        """Compute self-attention within each clip, x (n, d) -> (n, d)."""
        q = rotate(self.split_heads(apply_norm(self.norm_q, self.to_q(x))), table)
        k = rotate(self.split_heads(apply_norm(self.norm_k, self.to_k(x))), table)
        out = self.attend_within_clips(q, k, self.split_heads(self.to_v(x)), layout)
        return self.to_out[0](out.flatten(1))

    def cross_attend(self, x: Tensor, inputs: Sequence[CrossAttentionInput], layout: PackLayout) -> Tensor:
        """Compute cross-attention of x (n, d) to its own clip's text, and to its images if there are any."""
        q = self.split_heads(apply_norm(self.norm_q, self.to_q(x)))
        return self.to_out[0](self.attend_to_inputs(q, inputs, layout).flatten(1))

    @uncompiled
    def attend_within_clips(self, q: Tensor, k: Tensor, v: Tensor, layout: PackLayout) -> Tensor:
        """Attend from each token to its clip's tokens, (n, heads, e)."""
        return attend(q, k, v, layout.lengths)

    @uncompiled
    def attend_to_inputs(self, q: Tensor, inputs: Sequence[CrossAttentionInput], layout: PackLayout) -> Tensor:
        """Attend from each token (n, heads, e) to its clip's text and to its images, and add up the outputs."""
        return functools.reduce(
            torch.add, (attend_text(q, part.k, part.v, layout.lengths, part.keys) for part in inputs)
        )

    def split_heads(self, x: Tensor) -> Tensor:
        """Split (n, d) into heads (n, heads, e)."""
        return x.unflatten(-1, (self.heads, -1))

    def project_text(self, text: Tensor, keys: TextKeys) -> tuple[Tensor, Tensor]:
        """Compute keys and values (b, heads, m, e) of packed text rows (m, d)."""
        k, v = apply_norm(self.norm_k, self.to_k(text)), self.to_v(text)
        return gather_text(k, keys, self.heads), gather_text(v, keys, self.heads)

    def project_image(self, rows: Tensor, keys: TextKeys) -> tuple[Tensor, Tensor]:
        """Compute keys and values (b, heads, m, e) of packed image rows (m, d), without layers of their own as text."""
        if not hasattr(self, "add_k_proj"):
            return self.project_text(rows, keys)
        k, v = apply_norm(self.norm_added_k, self.add_k_proj(rows)), self.add_v_proj(rows)
        return gather_text(k, keys, self.heads), gather_text(v, keys, self.heads)

    @torch.no_grad()
    def init_local_heads(self, strength: float = 3.0) -> None:
        """Make the first two heads attend locally at first; the others begin by content.

        The first head attends to the token's own place in all frames, the second to its neighbourhood in time and
        space. A transformer without a sense of place spends thousands of steps on finding it (Trockman and Kolter
        2023). In the fastest rotary pair of an axis, a constant query and key have the product cos(angle between
        places).
        """
        size = self.to_q.out_features // self.heads
        fastest_pairs = [0, *accumulate(axis_sizes(size))][:3]  # of time, rows, columns
        for linear in (self.to_q, self.to_k):
            linear.weight.mul_(0.5)
            for head, pairs in zip(range(self.heads - 1), (fastest_pairs[1:], fastest_pairs), strict=False):
                for first in pairs:
                    linear.bias[head * size + first : head * size + first + 2] = strength


def gelu_in_place(x: Tensor) -> Tensor:
    """Compute GELU's tanh form as x * sigmoid(2u): on CPU 2 to 3 times as fast as torch's, and as exact.

    u = sqrt(2 / pi) (x + 0.044715 x^3). It takes some rows at a time, so that they stay in the cache.
    """
    twice = torch.full((), 2 * math.sqrt(2 / math.pi), dtype=x.dtype)
    for rows in x.split(max(1, GELU_CHUNK // x.shape[1])):
        gate = torch.addcmul(twice, rows, rows, value=0.044715 * float(twice))
        rows.mul_(gate.mul_(rows).sigmoid_())
    return x


class GeluLinear(nn.Module):
    """A linear layer and GELU, under the name that diffusers gives it."""

    def __init__(self, d: int, hidden: int, approximate: Literal["tanh", "none"]) -> None:
        super().__init__()
        self.proj, self.approximate = nn.Linear(d, hidden), approximate

    def forward(self, x: Tensor) -> Tensor:
        """(n, d) -> (n, hidden)."""
        hidden = self.proj(x)
        if hidden.device.type == "cpu" and hidden.dtype == torch.bfloat16:
            # The form by erf differs by 5e-4 at most, and takes a fifth of the tanh form's time, and two fifths
            # backward. A velocity computed in bfloat16 is 0.56% off by either.
            return F.gelu(hidden)
        needs_torch = torch.is_grad_enabled() or torch.compiler.is_compiling() or hidden.device.type != "cpu"
        if not needs_torch and self.approximate == "tanh" and hidden.dtype == torch.float32:
            return gelu_in_place(hidden)
        return F.gelu(hidden, approximate=self.approximate)


class FeedForward(nn.Module):
    """Two linear layers around GELU; the place of diffusers' dropout stays empty."""

    def __init__(self, d: int, hidden: int, out: int, *, approximate: Literal["tanh", "none"] = "tanh") -> None:
        super().__init__()
        self.net = nn.ModuleList([GeluLinear(d, hidden, approximate), nn.Identity(), nn.Linear(hidden, out)])

    def forward(self, x: Tensor) -> Tensor:
        """(n, d) -> (n, out)."""
        return self.net[2](self.net[0](x))


def as_layer_norm_takes(x: Tensor) -> Tensor:
    """Cast to float32, except bfloat16 on a CPU in inference: there the kernel itself computes in float32."""
    computes_in_float32 = x.dtype == torch.bfloat16 and x.device.type == "cpu" and not torch.is_grad_enabled()
    return x if computes_in_float32 else x.float()


class FP32LayerNorm(nn.LayerNorm):
    """LayerNorm in float32, whatever the input's precision."""

    def forward(self, input: Tensor) -> Tensor:
        """(n, d) -> (n, d)."""
        weight, bias = (None if p is None else p.float() for p in (self.weight, self.bias))
        return F.layer_norm(as_layer_norm_takes(input), self.normalized_shape, weight, bias, self.eps).to(input.dtype)


class Modulation(NamedTuple):
    """What a block does at each noise level: six rows (u, d). A factor is one more than Wan's scale."""

    shift: Tensor
    factor: Tensor
    gate: Tensor
    shift_ffn: Tensor
    factor_ffn: Tensor
    gate_ffn: Tensor


def gather_by_level(rows: Tensor, index: Tensor) -> Tensor:
    """Gather one row per noise level (u, d) into one row per token (n, d), or broadcast it if there is one level."""
    return rows if len(rows) == 1 else gather_rows(rows, index)


def modulate(norm: FP32LayerNorm, x: Tensor, factor: Tensor, shift: Tensor, index: Tensor) -> Tensor:
    """Normalise tokens (n, d), then scale and shift them by their noise level (u, d); a single level takes one pass."""
    if len(factor) == 1 and factor.dtype == torch.float32:
        return F.layer_norm(as_layer_norm_takes(x), norm.normalized_shape, factor[0], shift[0], norm.eps)
    return norm(x.float()) * gather_by_level(factor, index) + gather_by_level(shift, index)


def add_gated(x: Tensor, update: Tensor, gate: Tensor, index: Tensor) -> Tensor:
    """Add an update (n, d), gated by noise level, to the residual stream, in float32 at least."""
    if gate.dtype == torch.float32:
        return torch.addcmul(x.float(), update.float(), gather_by_level(gate, index)).to(x.dtype)
    return (x.float() + update * gather_by_level(gate, index)).to(x.dtype)


class LocalConv(nn.Conv2d):
    """A depthwise 3 x 3 convolution over the tokens of each frame, which starts at zero.

    A small transformer learns late that neighbours belong together (Xie et al. 2024, SANA's Mix-FFN, in the
    feed-forward layers as here).
    """

    def __init__(self, d: int) -> None:
        super().__init__(d, d, 3, padding=1, groups=d, bias=False)
        nn.init.zeros_(self.weight)

    @uncompiled
    def forward(self, x: Tensor, layout: PackLayout) -> Tensor:  # type: ignore[override]
        """Convolve tokens (n, d) -> (n, d), neighbouring clips of one frame size in one call."""
        by_size = groupby(layout.grids, key=lambda grid: grid[1:])
        runs = [(h, w, sum(t for t, _, _ in grids)) for (h, w), grids in by_size]
        kernel = self.weight.flatten().view_as(self.weight)  # Else its gradient has other strides, which DDP warns of.
        out = []
        with torch.autocast(x.device.type, enabled=False):  # A depthwise kernel gains nothing from half precision.
            for part, (h, w, _) in zip(x.split([t * h * w for h, w, t in runs]), runs, strict=True):
                frames = rearrange(part.to(kernel.dtype), "(t h w) d -> t d h w", h=h, w=w)
                out.append(rearrange(self._conv_forward(frames, kernel, None), "t d h w -> (t h w) d"))
        return torch.cat(out).to(x.dtype)


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward, modulated by the noise level (adaLN with one shared MLP)."""

    def __init__(
        self, d: int, heads: int, hidden: int, eps: float, cross_attn_norm: bool, added_dim: int | None, *, nearby: bool
    ) -> None:
        super().__init__()
        self.norm1 = FP32LayerNorm(d, eps, elementwise_affine=False)
        self.attn1 = Attention(d, heads, eps)
        self.norm2 = FP32LayerNorm(d, eps) if cross_attn_norm else nn.Identity()
        self.attn2 = Attention(d, heads, eps, added_dim)
        self.norm3 = FP32LayerNorm(d, eps, elementwise_affine=False)
        self.nearby = LocalConv(d) if nearby else None
        self.ffn = FeedForward(d, hidden, d)
        self.scale_shift_table = random_table(6, d)

    def forward(
        self,
        x: Tensor,
        modulation: Tensor | Modulation,
        index: Tensor,
        table: Rotary,
        layout: PackLayout,
        inputs: Sequence[CrossAttentionInput],
    ) -> Tensor:
        """Update tokens x (n, d); index (n,) is the row of each token's noise level in the modulation.

        That is the same for all blocks (u, 6, d), or this block's own where it was made beforehand.
        """
        own = modulation if isinstance(modulation, Modulation) else self.modulation(modulation)
        dtype = x.dtype
        hidden = modulate(self.norm1, x, own.factor, own.shift, index).to(dtype)
        x = add_gated(x, self.attn1(hidden, table, layout), own.gate, index)
        x = x + self.attn2.cross_attend(self.norm2(as_layer_norm_takes(x)).to(dtype), inputs, layout)
        hidden = modulate(self.norm3, x, own.factor_ffn, own.shift_ffn, index).to(dtype)
        update = self.ffn(hidden if self.nearby is None else hidden + self.nearby(hidden, layout))
        return add_gated(x, update.float(), own.gate_ffn, index)

    def modulation(self, shared: Tensor) -> Modulation:
        """Add the block's own table to the modulation that all blocks share, (u, 6, d)."""
        shift, scale, gate, shift_ffn, scale_ffn, gate_ffn = (self.scale_shift_table + shared.float()).unbind(1)
        return Modulation(shift, 1 + scale, gate, shift_ffn, 1 + scale_ffn, gate_ffn)
