"""The layers of Wan's transformer, by the names that diffusers gives them, on packed tokens.

tokens (n, d), modulation of the distinct noise levels (u, 6, d), what the prompts say  ->  tokens (n, d)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from videogen.models.attention import TextKeys, attend, attend_text, gather_text, rows_at
from videogen.models.rope import Rotary, axis_sizes, rotate
from videogen.packing.packs import Layout

CACHED = 2**17  # numbers that stay in a core's cache
Function = TypeVar("Function", bound=Callable[..., Tensor])


def uncompiled(function: Function) -> Function:
    """Left out of --compile: what looks at the clips' lengths would be compiled anew for each of them."""
    return torch.compiler.disable(function)  # type: ignore[return-value]


@dataclass(eq=False)  # no tuple: see Layout
class Source:
    """What a block's cross-attention reads of the clips' texts, or of their images: made once a prompt."""

    k: Tensor  # (b, heads, m, e)
    v: Tensor  # (b, heads, m, e)
    keys: TextKeys


def dtype_of(layer: nn.Module) -> torch.dtype:
    """What a linear layer computes in, by its bias: its weight may be quantised, and held in bytes."""
    return layer.bias.dtype  # type: ignore[return-value,union-attr]


def normed(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    """The norm in its own precision: under autocast a linear layer's answer has fewer bits."""
    return norm(x.to(norm.weight.dtype))


class Attention(nn.Module):
    """Projections and query/key norms (over all heads at once, as Wan) for self- or cross-attention."""

    def __init__(self, d: int, heads: int, eps: float, added_dim: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(d, d) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(d, d)])
        self.norm_q, self.norm_k = nn.RMSNorm(d, eps=eps), nn.RMSNorm(d, eps=eps)
        if added_dim is not None:
            self.add_k_proj, self.add_v_proj = nn.Linear(added_dim, d), nn.Linear(added_dim, d)
            self.norm_added_k = nn.RMSNorm(d, eps=eps)

    def forward(self, x: Tensor, table: Rotary, layout: Layout) -> Tensor:
        """Self-attention within each clip, x (n, d)."""
        q = rotate(self.apart(normed(self.norm_q, self.to_q(x))), table)
        k = rotate(self.apart(normed(self.norm_k, self.to_k(x))), table)
        out = self.within(q, k, self.apart(self.to_v(x)), layout)
        return self.to_out[0](rearrange(out, "n heads e -> n (heads e)"))

    @uncompiled
    def within(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Each clip's tokens see each other."""
        return attend(q, k, v, layout.lengths)

    @uncompiled
    def across(self, q: Tensor, sources: Sequence[Source], layout: Layout) -> Tensor:
        """Each clip's tokens see its text, and beside it its images."""
        first, *others = (attend_text(q, source.k, source.v, layout.lengths, source.keys) for source in sources)
        return sum(others, start=first)

    def apart(self, x: Tensor) -> Tensor:
        """(n, d) -> (n, heads, e)."""
        return rearrange(x, "n (heads e) -> n heads e", heads=self.heads)

    @torch.no_grad()
    def look_near(self, strength: float = 3.0) -> None:
        """Let the first heads begin by looking at what is near: the first at its own place at all times, the second at
        its neighbourhood in time and space; the others begin by content.

        A transformer that begins without a sense of place spends thousands of steps on finding it (Trockman and Kolter
        2023). A constant query and key meet in cos(angle between places) in the fastest rotary pair of an axis.
        """
        size = self.to_q.out_features // self.heads
        fastest = [0, *accumulate(axis_sizes(size))][:3]  # time, rows, columns
        for linear in (self.to_q, self.to_k):
            linear.weight.mul_(0.5)
            for head, axes in zip(range(self.heads - 1), (fastest[1:], fastest), strict=False):
                for first in axes:
                    linear.bias[head * size + first : head * size + first + 2] = strength

    def read(self, text: Tensor, keys: TextKeys) -> tuple[Tensor, Tensor]:
        """Keys and values of packed text rows (m, d), (b, heads, m, e)."""
        k, v = normed(self.norm_k, self.to_k(text)), self.to_v(text)
        return gather_text(k, keys, self.heads), gather_text(v, keys, self.heads)

    def read_image(self, rows: Tensor, keys: TextKeys) -> tuple[Tensor, Tensor]:
        """Keys and values of packed image rows (m, d), (b, heads, m, e)."""
        k, v = normed(self.norm_added_k, self.add_k_proj(rows)), self.add_v_proj(rows)
        return gather_text(k, keys, self.heads), gather_text(v, keys, self.heads)

    def look_up(self, x: Tensor, sources: Sequence[Source], layout: Layout) -> Tensor:
        """Cross-attention of x (n, d) to its own clip's text, and beside it to its images."""
        q = self.apart(normed(self.norm_q, self.to_q(x)))
        return self.to_out[0](rearrange(self.across(q, sources, layout), "n heads e -> n (heads e)"))


def gelu_in_place(x: Tensor) -> Tensor:
    """GELU's tanh form as x * sigmoid(2u), the same function: 2 to 3 times as fast on CPU as torch's, and as exact.

    u = sqrt(2 / pi) (x + 0.044715 x^3), some rows at a time, so that they stay in the cache.
    """
    twice = torch.full((), 2 * math.sqrt(2 / math.pi), dtype=x.dtype)
    for rows in x.split(max(1, CACHED // x.shape[1])):
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
        plain = torch.is_grad_enabled() or torch.compiler.is_compiling() or hidden.device.type != "cpu"
        if plain or self.approximate == "none" or hidden.dtype != torch.float32:
            return F.gelu(hidden, approximate=self.approximate)
        return gelu_in_place(hidden)


class FeedForward(nn.Module):
    """Two linear layers around GELU; the place of diffusers' dropout stays empty."""

    def __init__(self, d: int, hidden: int, out: int, *, approximate: Literal["tanh", "none"] = "tanh") -> None:
        super().__init__()
        self.net = nn.ModuleList([GeluLinear(d, hidden, approximate), nn.Identity(), nn.Linear(hidden, out)])

    def forward(self, x: Tensor) -> Tensor:
        """(n, d) -> (n, out)."""
        return self.net[2](self.net[0](x))


class Norm(nn.LayerNorm):
    """LayerNorm in float32 whatever the input's precision."""

    def forward(self, input: Tensor) -> Tensor:
        """(n, d) -> (n, d)."""
        weight, bias = (None if p is None else p.float() for p in (self.weight, self.bias))
        return F.layer_norm(input.float(), self.normalized_shape, weight, bias, self.eps).to(input.dtype)


def spread(rows: Tensor, index: Tensor) -> Tensor:
    """One row a noise level (u, d) to one row a token: broadcast where there is one level, gathered otherwise."""
    return rows if len(rows) == 1 else rows_at(rows, index)


def modulate(norm: Norm, x: Tensor, scale: Tensor, shift: Tensor, index: Tensor) -> Tensor:
    """The norm of tokens (n, d), scaled and shifted by their noise level, rows (u, d); one pass where that is one."""
    if len(scale) == 1 and scale.dtype == torch.float32:
        return F.layer_norm(x.float(), norm.normalized_shape, 1 + scale[0], shift[0], norm.eps)
    return norm(x.float()) * (1 + spread(scale, index)) + spread(shift, index)


def add_gated(x: Tensor, update: Tensor, gate: Tensor, index: Tensor) -> Tensor:
    """An update (n, d) onto the residual stream, gated by noise level, in float32 at least."""
    if gate.dtype == torch.float32:
        return torch.addcmul(x.float(), update.float(), spread(gate, index)).to(x.dtype)
    return (x.float() + update * spread(gate, index)).to(x.dtype)


class Nearby(nn.Conv2d):
    """What a token takes from the eight around it in its frame: a depthwise convolution that begins as nothing.

    A small transformer learns late that what is near belongs together (Xie et al. 2024, SANA's Mix-FFN, in the
    feed-forward layers as here).
    """

    def __init__(self, d: int) -> None:
        super().__init__(d, d, 3, padding=1, groups=d, bias=False)
        nn.init.zeros_(self.weight)

    @uncompiled
    def forward(self, x: Tensor, layout: Layout) -> Tensor:  # type: ignore[override]
        """Tokens (n, d) to (n, d); clips of one frame size are convolved at once."""
        by_size = groupby(layout.grids, key=lambda grid: grid[1:])
        runs = [(size, sum(t for t, _, _ in of_size)) for size, of_size in by_size]
        parts = x.split([frames * h * w for (h, w), frames in runs])
        kernel = self.weight.flatten().view_as(self.weight)  # or its gradient has other strides, and DDP complains
        out = []
        with torch.autocast(x.device.type, enabled=False):  # a depthwise kernel gains nothing from half the bits
            for part, ((h, w), _) in zip(parts, runs, strict=True):
                frames = rearrange(part.to(kernel.dtype), "(t h w) d -> t d h w", h=h, w=w)
                out.append(rearrange(self._conv_forward(frames, kernel, None), "t d h w -> (t h w) d"))
        return torch.cat(out).to(x.dtype)


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward, modulated by the noise level (adaLN with one shared MLP)."""

    def __init__(
        self,
        d: int,
        heads: int,
        ffn_dim: int,
        eps: float,
        cross_attn_norm: bool,
        added_dim: int | None = None,
        *,
        nearby: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = Norm(d, eps, elementwise_affine=False)
        self.attn1 = Attention(d, heads, eps)
        self.norm2 = Norm(d, eps) if cross_attn_norm else nn.Identity()
        self.attn2 = Attention(d, heads, eps, added_dim)
        self.norm3 = Norm(d, eps, elementwise_affine=False)
        self.nearby = Nearby(d) if nearby else None
        self.ffn = FeedForward(d, ffn_dim, d)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, d) / d**0.5)

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        index: Tensor,
        table: Rotary,
        layout: Layout,
        sources: Sequence[Source],
    ) -> Tensor:
        """x (n, d); modulation (u, 6, d) of the distinct noise levels; index (n,) says which level a token has."""
        rows = (self.scale_shift_table + modulation.float()).unbind(1)
        shift, scale, gate, shift_ffn, scale_ffn, gate_ffn = rows
        dtype = x.dtype
        x = add_gated(x, self.attn1(modulate(self.norm1, x, scale, shift, index).to(dtype), table, layout), gate, index)
        x = x + self.attn2.look_up(self.norm2(x.float()).to(dtype), sources, layout)
        hidden = modulate(self.norm3, x, scale_ffn, shift_ffn, index).to(dtype)
        update = self.ffn(hidden if self.nearby is None else hidden + self.nearby(hidden, layout))
        return add_gated(x, update.float(), gate_ffn, index)
