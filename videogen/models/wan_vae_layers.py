"""The layers of Wan's video autoencoders, 2.1 and 2.2, on frames (b, t, h, w, c).

Every convolution in time is causal and remembers in a state the last frames that it saw, so that a clip may come in any
chunks. What has nothing in the state is at the first frame of a clip, which Wan never halves, doubles or pairs. Layers
take the state by name, because offloading copies arguments that have none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise, product

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from videogen.models.streaming import State
from videogen.models.wan_vae_conv import convolve, convolve_doubled

# Frames at a time where frames are largest. Coarse layers want long runs for their large kernels, fine layers short
# ones for their memory.
PIECE = 4


class CausalConv(nn.Conv3d):
    """A convolution over a frame and the ones before it."""

    bias: Tensor  # type: ignore[assignment]

    def forward(self, x: Tensor, *, state: State) -> Tensor:  # type: ignore[override]
        """x (b, t, h, w, i); state remembers the last frames of the chunk before."""
        past = state.get(self, x[:, :0])
        if num_past := self.kernel_size[0] - 1:
            recent = x if x.shape[1] >= num_past else torch.cat([past, x], dim=1)
            state[self] = recent[:, -num_past:].clone()
        return convolve(x, past, rearrange(self.weight, "o i k y x -> k o y x i"), self.bias)


class HalvingTimeConv(nn.Conv3d):
    """One frame of every two, from three: the last of one pair and the next pair."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """(b, 1 + 2t, h, w, i) -> (b, t, h, w, o)."""
        triples = torch.cat([x[:, tap : x.shape[1] - 2 + tap : 2] for tap in range(3)], dim=-1)
        return F.linear(triples, rearrange(self.weight, "o i k 1 1 -> o (k i)"), self.bias)


class HalvingConv(nn.Conv2d):
    """Half the height and width; the edge of zeros is below and on the right."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """(b, t, 2h, 2w, i) -> (b, t, h, w, o)."""
        frames = rearrange(F.pad(x, (0, 0, 0, 1, 0, 1)), "b t h w i -> (b t) i h w")
        return rearrange(super().forward(frames), "(b t) o h w -> b t h w o", b=len(x))


class DoublingConv(nn.Conv2d):
    """Twice the height and width, by the nearest pixel, and a convolution of it."""

    bias: Tensor  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """(b, t, h, w, i) -> (b, t, 2h, 2w, o)."""
        return convolve_doubled(x, rearrange(self.weight, "o i y x -> o y x i"), self.bias)


class Pointwise(nn.Conv2d):
    """A linear layer that is stored as a 1 x 1 convolution."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """(..., i) -> (..., o)."""
        return F.linear(x, rearrange(self.weight, "o i 1 1 -> o i"), self.bias)


class Norm(nn.Module):
    """Every pixel's channels to length sqrt(c), then a gain a channel."""

    def __init__(self, width: int, *, dims: int = 3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width, *[1] * dims))

    def forward(self, x: Tensor) -> Tensor:
        """(..., c) -> (..., c)."""
        exact = x if x.dtype == torch.float64 else x.float()
        length = torch.linalg.vector_norm(exact, dim=-1, keepdim=True).clamp(min=1e-12)
        return (exact / length).to(x.dtype).mul_(self.gamma.flatten() * math.sqrt(x.shape[-1]))


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, in_width: int, width: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.conv1 = Norm(in_width), CausalConv(in_width, width, 3)
        self.norm2, self.conv2 = Norm(width), CausalConv(width, width, 3)
        self.dropout = nn.Dropout(dropout)
        self.conv_shortcut = CausalConv(in_width, width, 1) if in_width != width else None

    def forward(self, x: Tensor, *, state: State) -> Tensor:
        """(b, t, h, w, i) -> (b, t, h, w, o)."""
        h = self.conv1(F.silu(self.norm1(x), inplace=True), state=state)
        h = self.conv2(self.dropout(F.silu(self.norm2(h), inplace=True)), state=state)
        return h.add_(x if self.conv_shortcut is None else self.conv_shortcut(x, state=state))


class Attention(nn.Module):
    """Every pixel of a frame sees the whole frame; one head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = Norm(width, dims=2)
        self.to_qkv, self.proj = Pointwise(width, 3 * width, 1), Pointwise(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, h, w, c) -> (b, t, h, w, c)."""
        pixels = rearrange(self.to_qkv(self.norm(x)), "b t h w (three c) -> three (b t) 1 (h w) c", three=3)
        seen = F.scaled_dot_product_attention(*pixels)
        return x + self.proj(rearrange(seen, "(b t) 1 (h w) c -> b t h w c", b=len(x), h=x.shape[2]))


class Middle(nn.Module):
    """Attention between two residual blocks, where frames are smallest."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([Attention(width)])
        self.resnets = nn.ModuleList(ResidualBlock(width, width, dropout) for _ in range(2))

    def forward(self, x: Tensor, *, state: State) -> Tensor:
        """(b, t, h, w, c) -> (b, t, h, w, c)."""
        first, last = self.resnets
        return last(self.attentions[0](first(x, state=state)), state=state)


class Down(nn.Module):
    """Half the height and width and, where in_time, half the frames; the first frame of a clip is never paired."""

    def __init__(self, width: int, *, in_time: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.Identity(), HalvingConv(width, width, 3, stride=2))
        self.time_conv = HalvingTimeConv(width, width, (3, 1, 1), stride=(2, 1, 1)) if in_time else None

    def forward(self, x: Tensor, *, state: State) -> Tensor:
        """(b, 1 + 2t, h, w, c) -> (b, 1 + t, h/2, w/2, c), and later chunks of 2t frames to t."""
        x = self.resample(x)
        if self.time_conv is None:
            return x
        before = state.get(self)
        state[self] = x[:, -1:].clone()
        if before is None:
            return torch.cat([x[:, :1], self.time_conv(x)], dim=1)
        return self.time_conv(torch.cat([before, x], dim=1))


class Up(nn.Module):
    """Twice the height and width and, where in_time, two frames of each but the first, which the others never see."""

    def __init__(self, width: int, out_width: int, *, in_time: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.Identity(), DoublingConv(width, out_width, 3))
        self.time_conv = CausalConv(width, 2 * width, (3, 1, 1)) if in_time else None

    def forward(self, x: Tensor, *, state: State) -> Tensor:
        """(b, 1 + t, h, w, i) -> (b, 1 + 2t, 2h, 2w, o), and later chunks of t frames to 2t."""
        if self.time_conv is not None:
            alone, rest = x.split([1, x.shape[1] - 1], dim=1) if self.time_conv not in state else (x[:, :0], x)
            pairs = rearrange(self.time_conv(rest, state=state), "b t h w (two c) -> b (t two) h w c", two=2)
            x = torch.cat([alone, pairs], dim=1)
        return self.resample(x)


def average_down(x: Tensor, width: int, *, time: int, space: int) -> Tensor:
    """Wan 2.2's shortcut down: time x space x space pixels become channels, and neighbours among those a mean."""
    padded = F.pad(x, (0, 0, 0, 0, 0, 0, -x.shape[1] % time, 0))
    folded = rearrange(padded, "b (t i) (h y) (w x) c -> b t h w (c i y x)", i=time, y=space, x=space)
    return rearrange(folded, "b t h w (o g) -> b t h w o g", o=width).mean(-1)


def add_copies(out: Tensor, x: Tensor, *, time: int, first: bool) -> Tensor:
    """Wan 2.2's shortcut up: channels repeated, then dealt out to the time x 2 x 2 pixels that come of one; in place.

    Of the first frame of a clip only the last copy in time is shown.
    """
    width, factor = out.shape[-1], 4 * time
    channels = torch.arange(width, device=x.device) * factor
    for i, y, z in product(range(time), range(2), range(2)):
        source = (channels + 4 * i + 2 * y + z) * x.shape[-1] // (width * factor)
        skip = int(first and i + 1 < time)
        start = (i + 1) % time if first else i
        out[:, start::time, y::2, z::2] += x[:, skip:, :, :, source]
    return out


class DownBlock(nn.Module):
    """A level of Wan 2.2's encoder."""

    def __init__(self, in_width: int, width: int, depth: int, dropout: float, down: Down | None) -> None:
        super().__init__()
        self.width = width
        self.resnets = nn.ModuleList(ResidualBlock(width if i else in_width, width, dropout) for i in range(depth))
        self.downsampler = down

    def forward(self, x: Tensor, *, state: State) -> Tensor:
        """As Down, or the same size where this level does not halve."""
        space = 1 if self.downsampler is None else 2
        time = 1 if self.downsampler is None or self.downsampler.time_conv is None else 2
        shortcut = average_down(x, self.width, time=time, space=space)
        for block in self.resnets:
            x = block(x, state=state)
        return shortcut.add_(x if self.downsampler is None else self.downsampler(x, state=state))


class UpBlock(nn.Module):
    """A level of a decoder; of Wan 2.2's where copies are added."""

    def __init__(self, in_width: int, width: int, depth: int, dropout: float, up: Up | None, *, residual: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(width if i else in_width, width, dropout) for i in range(depth + 1))
        self.residual = residual
        if residual:
            self.upsampler = up
        else:
            self.upsamplers = nn.ModuleList([] if up is None else [up])

    @property
    def up(self) -> Up | None:
        """What doubles, under either name."""
        return self.upsampler if self.residual else next(iter(self.upsamplers), None)  # type: ignore[return-value]

    def forward(self, x: Tensor, *, state: State) -> Tensor:
        """As Up, or the same size where this level does not double."""
        start, up = x, self.up
        for block in self.resnets:
            x = block(x, state=state)
        if up is None:
            return x
        first = up.time_conv not in state
        x = up(x, state=state)
        return add_copies(x, start, time=1 if up.time_conv is None else 2, first=first) if self.residual else x


def pieces(x: Tensor, length: int) -> Sequence[Tensor]:
    """Frames (b, t, ...) in runs of a length, what is left over first."""
    first = x.shape[1] % length or length
    return x.split([first] + [length] * ((x.shape[1] - first) // length), dim=1)


class Encoder(nn.Module):
    """Frames (b, 1 + 4k, h, w, 3) -> mean and log-variance (b, 1 + k, h/8, w/8, 2 c)."""

    def __init__(
        self, channels: int, width: int, out: int, mult: Sequence[int], depth: int, in_time: Sequence[bool],
        dropout: float, *, residual: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        widths = [width, *(width * m for m in mult)]
        self.conv_in = CausalConv(channels, width, 3)
        self.down_blocks = nn.ModuleList()
        self.num_fine = 0  # blocks up to the first that halves time
        for level, (before, width) in enumerate(pairwise(widths)):
            down = Down(width, in_time=in_time[level]) if level < len(mult) - 1 else None
            if residual:
                self.down_blocks.append(DownBlock(before, width, depth, dropout, down))
            else:
                self.down_blocks.extend(ResidualBlock(width if i else before, width, dropout) for i in range(depth))
                self.down_blocks.extend([] if down is None else [down])
            if not any(in_time[:level]):
                self.num_fine = len(self.down_blocks)
        self.mid_block = Middle(width, dropout)
        self.norm_out, self.conv_out = Norm(width), CausalConv(width, out, 3)

    def forward(self, x: Tensor, *, state: State) -> Tensor:
        """Fine levels in short runs, coarse ones in one."""
        x = torch.cat([self.fine(piece, state=state) for piece in pieces(x, PIECE)], dim=1)
        for block in self.down_blocks[self.num_fine :]:
            x = block(x, state=state)
        return self.conv_out(F.silu(self.norm_out(self.mid_block(x, state=state)), inplace=True), state=state)

    def fine(self, x: Tensor, *, state: State) -> Tensor:
        """The levels of many pixels, until frames are fewer."""
        x = self.conv_in(x, state=state)
        for block in self.down_blocks[: self.num_fine]:
            x = block(x, state=state)
        return x


class Decoder(nn.Module):
    """Latents (b, 1 + k, h, w, c) -> frames (b, 1 + 4k, 8h, 8w, 3)."""

    def __init__(
        self, channels: int, width: int, out: int, mult: Sequence[int], depth: int, in_time: Sequence[bool],
        dropout: float, *, residual: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        widths = [width * m for m in (mult[-1], *reversed(mult))]
        self.conv_in, self.mid_block = CausalConv(channels, widths[0], 3), Middle(widths[0], dropout)
        self.up_blocks = nn.ModuleList()
        self.num_coarse = 0  # blocks up to the last that doubles time
        for level, (before, width) in enumerate(pairwise(widths)):
            up = None
            if level < len(mult) - 1:
                up = Up(width, width if residual else width // 2, in_time=in_time[level])
                self.num_coarse = level + 1 if in_time[level] else self.num_coarse
            before = before // 2 if level and not residual else before
            self.up_blocks.append(UpBlock(before, width, depth, dropout, up, residual=residual))
        self.norm_out, self.conv_out = Norm(width), CausalConv(width, out, 3)

    def forward(self, x: Tensor, *, state: State) -> Tensor:
        """Coarse levels in one run, fine ones in short ones."""
        x = self.mid_block(self.conv_in(x, state=state), state=state)
        for block in self.up_blocks[: self.num_coarse]:
            x = block(x, state=state)
        return torch.cat([self.fine(piece, state=state) for piece in pieces(x, PIECE)], dim=1)

    def fine(self, x: Tensor, *, state: State) -> Tensor:
        """The levels of many pixels, once all frames are there."""
        for block in self.up_blocks[self.num_coarse :]:
            x = block(x, state=state)
        return self.conv_out(F.silu(self.norm_out(x), inplace=True), state=state)
