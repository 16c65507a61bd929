"""The layers of Wan's video autoencoders, 2.1 and 2.2, on frames (b, t, h, w, c).

Every convolution in time is causal and keeps in a state the last frames that it saw, so that a clip may come in any
chunks. A layer without an entry in the state is at the first frame of a clip, which Wan never halves, doubles or pairs.
Layers take the state by keyword, because offloading copies positional arguments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise, product

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from videogen.models.streaming import StreamState, apply_blocks
from videogen.models.wan_vae_conv import causal_convolution, upsample_and_convolve

# Frames in one run through the levels of large frames, where short runs save memory. The coarse levels take all frames
# in one run, because their kernels are large.
FINE_FRAMES_PER_RUN = 4


class CausalConv(nn.Conv3d):
    """A 3D convolution over each frame and the frames before it."""

    bias: Tensor  # type: ignore[assignment]

    def forward(self, x: Tensor, *, state: StreamState) -> Tensor:  # type: ignore[override]
        """Convolve (b, t, h, w, i) to (b, t, h, w, o); the state keeps the last frames for the next chunk."""
        past = state.get(self, x[:, :0])
        if num_past := self.kernel_size[0] - 1:
            recent = x if x.shape[1] >= num_past else torch.cat([past, x], dim=1)
            state[self] = recent[:, -num_past:].clone()
        return causal_convolution(x, past, rearrange(self.weight, "o i k y x -> k o y x i"), self.bias)


class TimeHalvingConv(nn.Conv3d):
    """A convolution of stride 2 in time: each output frame sees the last frame of one pair and the next pair."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Map (b, 1 + 2t, h, w, i) to (b, t, h, w, o)."""
        triples = torch.cat([x[:, tap : x.shape[1] - 2 + tap : 2] for tap in range(3)], dim=-1)
        return F.linear(triples, rearrange(self.weight, "o i k 1 1 -> o (k i)"), self.bias)


class SpaceHalvingConv(nn.Conv2d):
    """A convolution of stride 2 in height and width, with zero padding below and on the right only."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Map (b, t, 2h, 2w, i) to (b, t, h, w, o)."""
        frames = rearrange(F.pad(x, (0, 0, 0, 1, 0, 1)), "b t h w i -> (b t) i h w")
        return rearrange(super().forward(frames), "(b t) o h w -> b t h w o", b=len(x))


class SpaceDoublingConv(nn.Conv2d):
    """Nearest upsampling to twice the height and width, and a convolution of the result."""

    bias: Tensor  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Map (b, t, h, w, i) to (b, t, 2h, 2w, o)."""
        return upsample_and_convolve(x, rearrange(self.weight, "o i y x -> o y x i"), self.bias)


class PointwiseConv(nn.Conv2d):
    """A linear layer that is stored as a 1 x 1 convolution."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Map (..., i) to (..., o)."""
        return F.linear(x, rearrange(self.weight, "o i 1 1 -> o i"), self.bias)


class ChannelRMSNorm(nn.Module):
    """RMS normalisation of each pixel's channels, with a gain for each channel."""

    def __init__(self, width: int, *, dims: int = 3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width, *[1] * dims))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., c)."""
        exact = x if x.dtype == torch.float64 else x.float()
        length = torch.linalg.vector_norm(exact, dim=-1, keepdim=True).clamp(min=1e-12)
        return (exact / length).to(x.dtype).mul_(self.gamma.flatten() * math.sqrt(x.shape[-1]))


class ResidualBlock(nn.Module):
    """Two causal convolutions and a shortcut."""

    def __init__(self, in_width: int, width: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.conv1 = ChannelRMSNorm(in_width), CausalConv(in_width, width, 3)
        self.norm2, self.conv2 = ChannelRMSNorm(width), CausalConv(width, width, 3)
        self.dropout = nn.Dropout(dropout)
        self.conv_shortcut = CausalConv(in_width, width, 1) if in_width != width else None

    def forward(self, x: Tensor, *, state: StreamState) -> Tensor:
        """Map (b, t, h, w, i) to (b, t, h, w, o)."""
        h = self.conv1(F.silu(self.norm1(x), inplace=True), state=state)
        h = self.conv2(self.dropout(F.silu(self.norm2(h), inplace=True)), state=state)
        return h.add_(x if self.conv_shortcut is None else self.conv_shortcut(x, state=state))


class FrameAttention(nn.Module):
    """Self-attention with one head among the pixels of each frame."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = ChannelRMSNorm(width, dims=2)
        self.to_qkv, self.proj = PointwiseConv(width, 3 * width, 1), PointwiseConv(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within each frame of (b, t, h, w, c)."""
        qkv = rearrange(self.to_qkv(self.norm(x)), "b t h w (three c) -> three (b t) 1 (h w) c", three=3)
        out = F.scaled_dot_product_attention(*qkv)
        return x + self.proj(rearrange(out, "(b t) 1 (h w) c -> b t h w c", b=len(x), h=x.shape[2]))


class MidBlock(nn.Module):
    """Attention between two residual blocks, where frames are smallest."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([FrameAttention(width)])
        self.resnets = nn.ModuleList(ResidualBlock(width, width, dropout) for _ in range(2))

    def forward(self, x: Tensor, *, state: StreamState) -> Tensor:
        """Transform (b, t, h, w, c)."""
        first, last = self.resnets
        return last(self.attentions[0](first(x, state=state)), state=state)


class Downsample(nn.Module):
    """Halve height and width and, where halve_time, the frames after the first of a clip."""

    def __init__(self, width: int, *, halve_time: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.Identity(), SpaceHalvingConv(width, width, 3, stride=2))
        self.time_conv = TimeHalvingConv(width, width, (3, 1, 1), stride=(2, 1, 1)) if halve_time else None

    def forward(self, x: Tensor, *, state: StreamState) -> Tensor:
        """Map (b, 1 + 2t, h, w, c) to (b, 1 + t, h/2, w/2, c), and later chunks of 2t frames to t."""
        x = self.resample(x)
        if self.time_conv is None:
            return x
        last_frame = state.get(self)
        state[self] = x[:, -1:].clone()
        if last_frame is None:
            return torch.cat([x[:, :1], self.time_conv(x)], dim=1)
        return self.time_conv(torch.cat([last_frame, x], dim=1))


class Upsample(nn.Module):
    """Double height and width and, where double_time, the frames after the first of a clip, which they never see."""

    def __init__(self, width: int, out_width: int, *, double_time: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.Identity(), SpaceDoublingConv(width, out_width, 3))
        self.time_conv = CausalConv(width, 2 * width, (3, 1, 1)) if double_time else None

    def forward(self, x: Tensor, *, state: StreamState) -> Tensor:
        """Map (b, 1 + t, h, w, i) to (b, 1 + 2t, 2h, 2w, o), and later chunks of t frames to 2t."""
        if self.time_conv is not None:
            first, rest = x.split([1, x.shape[1] - 1], dim=1) if self.time_conv not in state else (x[:, :0], x)
            pairs = rearrange(self.time_conv(rest, state=state), "b t h w (two c) -> b (t two) h w c", two=2)
            x = torch.cat([first, pairs], dim=1)
        return self.resample(x)


def downsample_shortcut(x: Tensor, width: int, *, time: int, space: int) -> Tensor:
    """Fold time x space x space pixels into channels and average groups of them (Wan 2.2; diffusers' AvgDown3D)."""
    padded = F.pad(x, (0, 0, 0, 0, 0, 0, -x.shape[1] % time, 0))
    folded = rearrange(padded, "b (t i) (h y) (w x) c -> b t h w (c i y x)", i=time, y=space, x=space)
    return rearrange(folded, "b t h w (o g) -> b t h w o g", o=width).mean(-1)


def add_duplicated_channels(out: Tensor, x: Tensor, *, time: int, is_first: bool) -> Tensor:
    """Repeat channels, unfold them into time x 2 x 2 pixels and add these in place (Wan 2.2; diffusers' DupUp3D).

    The first frame of a clip becomes one frame, the last of its copies in time.
    """
    width, factor = out.shape[-1], 4 * time
    channels = torch.arange(width, device=x.device) * factor
    for i, y, z in product(range(time), range(2), range(2)):
        source = (channels + 4 * i + 2 * y + z) * x.shape[-1] // (width * factor)
        skip = int(is_first and i + 1 < time)
        start = (i + 1) % time if is_first else i
        out[:, start::time, y::2, z::2] += x[:, skip:, :, :, source]
    return out


class DownBlock(nn.Module):
    """One level of Wan 2.2's encoder."""

    def __init__(self, in_width: int, width: int, depth: int, dropout: float, down: Downsample | None) -> None:
        super().__init__()
        self.width = width
        self.resnets = nn.ModuleList(ResidualBlock(width if i else in_width, width, dropout) for i in range(depth))
        self.downsampler = down

    def forward(self, x: Tensor, *, state: StreamState) -> Tensor:
        """Map frames as Downsample does; keep their size where this level has none."""
        down = self.downsampler
        time = 1 if down is None or down.time_conv is None else 2
        shortcut = downsample_shortcut(x, self.width, time=time, space=1 if down is None else 2)
        return shortcut.add_(apply_blocks(self.resnets if down is None else [*self.resnets, down], x, state))


class UpBlock(nn.Module):
    """One level of a decoder; Wan 2.2's has a residual connection, and another name for its Upsample."""

    def __init__(
        self, in_width: int, width: int, depth: int, dropout: float, up: Upsample | None, *, residual: bool
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(width if i else in_width, width, dropout) for i in range(depth + 1))
        self.residual = residual
        if residual:
            self.upsampler = up
        else:
            self.upsamplers = nn.ModuleList([] if up is None else [up])

    def forward(self, x: Tensor, *, state: StreamState) -> Tensor:
        """Map frames as Upsample does; keep their size where this level has none."""
        up = self.upsampler if self.residual else next(iter(self.upsamplers), None)
        if up is None:
            return apply_blocks(self.resnets, x, state)
        is_first = up.time_conv not in state
        out = apply_blocks([*self.resnets, up], x, state)
        if not self.residual:
            return out
        return add_duplicated_channels(out, x, time=1 if up.time_conv is None else 2, is_first=is_first)


def split_frames(x: Tensor, length: int) -> Sequence[Tensor]:
    """Split frames (b, t, ...) into runs of a length; the first run is shorter where they do not divide."""
    first = x.shape[1] % length or length
    return x.split([first] + [length] * ((x.shape[1] - first) // length), dim=1)


class WanEncoder(nn.Module):
    """Encode frames (b, 1 + 4k, h, w, 3) to mean and log-variance (b, 1 + k, h/8, w/8, 2 c)."""

    def __init__(
        self, channels: int, width: int, out: int, mult: Sequence[int], depth: int, halve_time: Sequence[bool],
        dropout: float, *, residual: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        widths = [width, *(width * m for m in mult)]
        self.conv_in = CausalConv(channels, width, 3)
        self.down_blocks = nn.ModuleList()
        self.num_fine = 0  # blocks up to the first that halves time
        for level, (in_width, width) in enumerate(pairwise(widths)):
            down = Downsample(width, halve_time=halve_time[level]) if level < len(mult) - 1 else None
            if residual:
                self.down_blocks.append(DownBlock(in_width, width, depth, dropout, down))
            else:
                self.down_blocks.extend(ResidualBlock(width if i else in_width, width, dropout) for i in range(depth))
                self.down_blocks.extend([] if down is None else [down])
            if not any(halve_time[:level]):
                self.num_fine = len(self.down_blocks)
        self.mid_block = MidBlock(width, dropout)
        self.norm_out, self.conv_out = ChannelRMSNorm(width), CausalConv(width, out, 3)

    def forward(self, x: Tensor, *, state: StreamState) -> Tensor:
        """Encode in short runs through the fine levels, then in one run through the coarse levels."""
        fine = [self.conv_in, *self.down_blocks[: self.num_fine]]
        x = torch.cat([apply_blocks(fine, run, state) for run in split_frames(x, FINE_FRAMES_PER_RUN)], dim=1)
        for block in (*self.down_blocks[self.num_fine :], self.mid_block):  # a call of apply_blocks would keep this x
            x = block(x, state=state)
        return self.conv_out(F.silu(self.norm_out(x), inplace=True), state=state)


class WanDecoder(nn.Module):
    """Decode latents (b, 1 + k, h, w, c) to frames (b, 1 + 4k, 8h, 8w, 3)."""

    def __init__(
        self, channels: int, width: int, out: int, mult: Sequence[int], depth: int, double_time: Sequence[bool],
        dropout: float, *, residual: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        widths = [width * m for m in (mult[-1], *reversed(mult))]
        self.conv_in, self.mid_block = CausalConv(channels, widths[0], 3), MidBlock(widths[0], dropout)
        self.up_blocks = nn.ModuleList()
        self.num_coarse = 0  # blocks up to the last that doubles time
        for level, (in_width, width) in enumerate(pairwise(widths)):
            up = None
            if level < len(mult) - 1:
                up = Upsample(width, width if residual else width // 2, double_time=double_time[level])
                self.num_coarse = level + 1 if double_time[level] else self.num_coarse
            in_width = in_width // 2 if level and not residual else in_width
            self.up_blocks.append(UpBlock(in_width, width, depth, dropout, up, residual=residual))
        self.norm_out, self.conv_out = ChannelRMSNorm(width), CausalConv(width, out, 3)

    def forward(self, x: Tensor, *, state: StreamState) -> Tensor:
        """Decode in one run through the coarse levels, then in short runs through the fine levels."""
        x = apply_blocks([self.conv_in, self.mid_block, *self.up_blocks[: self.num_coarse]], x, state)
        return torch.cat([self.decode_fine(run, state) for run in split_frames(x, FINE_FRAMES_PER_RUN)], dim=1)

    def decode_fine(self, x: Tensor, state: StreamState) -> Tensor:
        """Apply the levels of large frames, after the last that doubles time."""
        x = apply_blocks(self.up_blocks[self.num_coarse :], x, state)
        return self.conv_out(F.silu(self.norm_out(x), inplace=True), state=state)
