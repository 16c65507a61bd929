"""Causal convolutions over frames, each in the exact form that is fastest where it runs.

    frames (b, t, h, w, i), up to k - 1 frames before them, kernels (k, o, y, x, i)  ->  (b, t, h', w', o)

Kernel k - 1 - n is for the frame n back in time. Frames that never were are not multiplied with. Around each frame
lies one zero, so h' is h for kernels of 3 and h + 1 for kernels of 2; kernels of 1 have none.
"""

from __future__ import annotations

import functools
import math
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

# Winograd's polynomials are known at these points and at infinity. With them float32 errs as the direct sum does, to a
# factor of two; with the usual 0, 1, -1, 2, -2 the factor is eight.
POINTS = (0.0, math.sqrt(0.5), -math.sqrt(0.5), math.sqrt(2), -math.sqrt(2))
TILE = len(POINTS) + 1
SIDE = TILE - 2  # of the results of a tile
# Below either, turning kernels and tiles costs what the products saved are worth; tests/bench/wan_vae.py measures it.
MIN_POSITIONS, MIN_PRODUCTS = 1024, 80
# A kernel of so many channels for each position is used so little that a plain matrix product is faster than a
# convolution, which rewrites its kernels on every call.
CHANNELS_A_POSITION = 4
GROUP = 192  # output channels at a time, for the memory that their turned kernels take


def convolve(x: Tensor, past: Tensor, kernels: Tensor, bias: Tensor) -> Tensor:
    """The causal convolution, by the form for this device, precision and size."""
    if x.shape[1] == 0:  # an image has no frames to pair
        return x.new_empty(*x.shape[:4], kernels.shape[1])
    kernels = kernels[-(past.shape[1] + x.shape[1]) :]  # the first frames of a clip: no 3D where 2D is all there is
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return by_library(x, past, kernels, bias)
    return (by_winograd if winograd_pays(x, kernels) else by_taps)(x, past, kernels, bias)


def winograd_pays(x: Tensor, kernels: Tensor) -> bool:
    """Whether there are enough positions for each kernel turned, and enough products for each number turned."""
    num_taps, out_channels, size, _, in_channels = kernels.shape
    products = num_taps * out_channels * in_channels / (out_channels + in_channels)
    return size == 3 and x.shape[1:4].numel() >= MIN_POSITIONS and products >= MIN_PRODUCTS


def by_library(x: Tensor, past: Tensor, kernels: Tensor, bias: Tensor) -> Tensor:
    """One 3D convolution, for accelerators and for half precision."""
    frames = torch.cat([past, x], dim=1)
    missing = len(kernels) - 1 - past.shape[1]
    frames = rearrange(F.pad(frames, (0, 0, 0, 0, 0, 0, max(missing, 0), 0)), "b t h w i -> b i t h w")
    side = int(kernels.shape[2] > 1)
    out = F.conv3d(frames, rearrange(kernels, "k o y x i -> o i k y x"), bias, padding=(0, side, side))
    return rearrange(out, "b o t h w -> b t h w o")[:, -x.shape[1] :]


def by_taps(x: Tensor, past: Tensor, kernels: Tensor, bias: Tensor) -> Tensor:
    """The sum of one 2D convolution a tap."""
    out = per_frame(x, kernels[-1], bias)
    frames = torch.cat([past, x], dim=1) if len(kernels) > 1 else x
    for back in range(1, len(kernels)):
        seen = frames[:, max(past.shape[1] - back, 0) : -back]
        out[:, x.shape[1] - seen.shape[1] :] += per_frame(seen, kernels[-1 - back], None)
    return out


def per_frame(x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """A 2D convolution of every frame with a kernel (o, y, x, i)."""
    size, channels = kernel.shape[2:]
    if size == 1:
        return F.linear(x, rearrange(kernel, "o 1 1 i -> o i"), bias)
    if channels >= CHANNELS_A_POSITION * x.shape[:4].numel():
        seen = F.pad(x, (0, 0, 1, 1, 1, 1)).unfold(2, size, 1).unfold(3, size, 1)
        seen = rearrange(seen, "b t h w i y x -> b t h w (y x i)")
        return F.linear(seen, rearrange(kernel, "o y x i -> o (y x i)"), bias)
    frames = rearrange(x, "b t h w i -> (b t) i h w")
    out = F.conv2d(frames, rearrange(kernel, "o y x i -> o i y x"), bias, padding=1)
    return rearrange(out, "(b t) o h w -> b t h w o", b=len(x))


class Turns(NamedTuple):
    """The matrices of Winograd's algorithm, for tiles, kernels and results laid out flat."""

    tile: Tensor
    kernel: Tensor
    result: Tensor


@functools.cache
def turns(dtype: torch.dtype) -> Turns:
    """What takes tiles of 6 x 6 and kernels of 3 x 3 to products, and products to 4 x 4 results (Toom and Cook)."""

    def powers(degree: int) -> Tensor:
        """1, p, p^2, ... of each point p and, at infinity, the highest alone."""
        points = torch.tensor(POINTS, dtype=torch.float64)
        rows = rearrange(points, "p -> p 1") ** torch.arange(degree)
        return torch.cat([rows, torch.eye(degree, dtype=torch.float64)[-1:]])

    with torch.inference_mode(mode=False):  # or a first call under inference_mode would bar gradients for ever
        one_side = torch.linalg.inv(powers(TILE)).T, powers(3), powers(SIDE).T
        return Turns(*(torch.kron(matrix, matrix).to(dtype) for matrix in one_side))


def by_winograd(x: Tensor, past: Tensor, kernels: Tensor, bias: Tensor) -> Tensor:
    """A quarter of the products: tiles and kernels meet in a space where convolving is multiplying (Winograd 1980).

    Taps are summed there too, so that each tile is turned once on the way in and once on the way out. Work goes in
    blocks of as many tiles as there are channels: block and kernels are then alike in size, and stay in the cache.
    """
    turn = turns(x.dtype)
    b, t, height, width, channels = x.shape
    rows, columns = -(-height // SIDE), -(-width // SIDE)
    across = min(columns, max(1, channels // t))
    down = max(1, channels // t // across)
    blocks = list(product(range(b), range(0, rows, down), range(0, columns, across)))
    groups = [slice(first, first + GROUP) for first in range(0, len(bias), GROUP)]

    def turned(back: int, group: int) -> Tensor:
        """The kernel of a tap for a group of channels, as matrices (p, i, o), one for each place in a turned tile."""
        kernel = rearrange(kernels[-1 - back, groups[group]], "o y x i -> o (y x) i")
        return rearrange(turn.kernel @ kernel, "o p i -> p i o")

    if len(blocks) > 1:  # one alone needs each only once
        turned = functools.cache(turned)
    out = x.new_empty(b, t, height, width, len(bias))
    for clip, top, left in blocks:
        r, s = slice(top * SIDE, min(top + down, rows) * SIDE), slice(left * SIDE, min(left + across, columns) * SIDE)
        tiles = turn_tiles(torch.cat([window(past[clip], r, s), window(x[clip], r, s)]), turn)
        for group, o in enumerate(groups):
            products = tiles[:, past.shape[1] :].flatten(1, 2) @ turned(0, group)
            for back in range(1, len(kernels)):
                seen = tiles[:, max(past.shape[1] - back, 0) : -back].flatten(1, 2)
                products[:, products.shape[1] - seen.shape[1] :].baddbmm_(seen, turned(back, group))
            block = turn_back(products, t, (r.stop - r.start) // SIDE, turn)
            out[clip, :, r, s, o] = block[:, : height - r.start, : width - s.start] + bias[o]
    return out


def window(frames: Tensor, rows: slice, columns: slice) -> Tensor:
    """What some results look at, of frames (t, h, w, i): one pixel more on each side, and zeros outside."""
    _, height, width, _ = frames.shape
    top, bottom, left, right = rows.start - 1, rows.stop + 1, columns.start - 1, columns.stop + 1
    inside = frames[:, max(top, 0) : bottom, max(left, 0) : right]
    return F.pad(inside, (0, 0, max(-left, 0), max(right - width, 0), max(-top, 0), max(bottom - height, 0)))


def turn_tiles(frames: Tensor, turn: Turns) -> Tensor:
    """Overlapping tiles of frames (t, 2 + h, 2 + w, i), turned: (p, t, n, i)."""
    tiles = rearrange(frames.unfold(1, TILE, SIDE).unfold(2, TILE, SIDE), "t r s i y x -> (y x) (t r s i)")
    return rearrange(turn.tile @ tiles, "p (t n i) -> p t n i", t=len(frames), i=frames.shape[-1])


def turn_back(products: Tensor, num_frames: int, rows: int, turn: Turns) -> Tensor:
    """Products (p, t n, o) as the frames that they stand for, (t, h, w, o)."""
    results = turn.result @ products.flatten(1)
    shape = {"y": SIDE, "t": num_frames, "r": rows, "o": products.shape[-1]}
    return rearrange(results, "(y x) (t r s o) -> t (r y) (s x) o", **shape)


def merge_doubled(kernel: Tensor) -> Tensor:
    """A kernel (o, 3, 3, i) for frames doubled in height and width, as (1, 4 o, 2, 2, i) for the frames themselves.

    Of three neighbours in the doubled frame two are the same pixel: an even row sees w0 of the one before and w1 + w2
    of its own, an odd row w0 + w1 and w2. The four kinds of pixel are four kernels.
    """

    def merge(side: Tensor) -> Tensor:
        """(3, ...) -> even or odd, one neighbour or the other, ..."""
        before, here, after = side
        return torch.stack([torch.stack([before, here + after]), torch.stack([before + here, after])])

    rows = rearrange(merge(rearrange(kernel, "o y x i -> y x o i")), "a p x o i -> x a p o i")
    return rearrange(merge(rows), "b q a p o i -> 1 (a b o) p q i")


def convolve_doubled(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """Nearest doubling of height and width and a 3 x 3 convolution (o, 3, 3, i), without the doubled frames."""
    four = convolve(x, x[:, :0], merge_doubled(kernel), bias.repeat(4))
    b, t, h, w, _ = x.shape
    out = x.new_empty(b, t, 2 * h, 2 * w, len(kernel))
    for (a, b), kind in zip(product(range(2), range(2)), four.chunk(4, dim=-1), strict=True):
        out[:, :, a::2, b::2] = kind[:, :, a : a + h, b : b + w]
    return out
