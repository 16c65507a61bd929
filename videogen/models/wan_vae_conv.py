"""Causal convolutions over frames, each in the exact form that is fastest where it runs.

    frames (b, t, h, w, i), up to k - 1 frames before them, kernels (k, o, y, x, i)  ->  (b, t, h', w', o)

Kernel k - 1 - n, called a tap, is for the frame n back in time. Frames before the start of a clip are skipped, not
computed as zeros. Each frame is padded with one zero on every side, so h' is h for kernels of 3 and h + 1 for kernels
of 2; kernels of 1 have no padding.
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

# Winograd's polynomials are evaluated at these points and at infinity. With them the error in float32 is that of the
# direct sum, to a factor of two; with the usual 0, 1, -1, 2, -2 the factor is eight.
WINOGRAD_POINTS = (0.0, math.sqrt(0.5), -math.sqrt(0.5), math.sqrt(2), -math.sqrt(2))
TILE_SIDE = len(WINOGRAD_POINTS) + 1
OUTPUT_SIDE = TILE_SIDE - 2
# Below either, transforming kernels and tiles costs what it saves, as measured by tests/bench/wan_vae.py.
MIN_POSITIONS, MIN_PRODUCTS = 1024, 80
# A kernel with so many channels for each position is used so few times that a plain matrix product is faster than a
# convolution, which rewrites its kernels on every call.
MIN_CHANNELS_PER_POSITION = 4
CHANNELS_PER_GROUP = 192  # output channels at a time, which bounds the memory of their transformed kernels


def causal_convolution(x: Tensor, past: Tensor, kernels: Tensor, bias: Tensor) -> Tensor:
    """Convolve by the form that is fastest for this device, precision and size."""
    if x.shape[1] == 0:  # the first frame of a clip is never doubled, and an image has no other
        return x.new_empty(*x.shape[:4], kernels.shape[1])
    kernels = kernels[-(past.shape[1] + x.shape[1]) :]  # the first frames of a clip need fewer taps, an image only one
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return convolve_conv3d(x, past, kernels, bias)
    return (convolve_winograd if winograd_is_faster(x, kernels) else convolve_taps)(x, past, kernels, bias)


def winograd_is_faster(x: Tensor, kernels: Tensor) -> bool:
    """True if there are enough positions for each transformed kernel, and products for each transformed number."""
    num_taps, out_channels, size, _, in_channels = kernels.shape
    products = num_taps * out_channels * in_channels / (out_channels + in_channels)
    return size == 3 and x.shape[1:4].numel() >= MIN_POSITIONS and products >= MIN_PRODUCTS


def convolve_conv3d(x: Tensor, past: Tensor, kernels: Tensor, bias: Tensor) -> Tensor:
    """Convolve by one call of torch's conv3d, for accelerators and for half precision."""
    missing = len(kernels) - 1 - past.shape[1]
    frames = F.pad(torch.cat([past, x], dim=1), (0, 0, 0, 0, 0, 0, max(missing, 0), 0))
    kernel, side = rearrange(kernels, "k o y x i -> o i k y x"), int(kernels.shape[2] > 1)
    out = F.conv3d(rearrange(frames, "b t h w i -> b i t h w"), kernel, bias, padding=(0, side, side))
    return rearrange(out, "b o t h w -> b t h w o")[:, -x.shape[1] :]


def convolve_taps(x: Tensor, past: Tensor, kernels: Tensor, bias: Tensor) -> Tensor:
    """Convolve by the sum of one 2D convolution for each tap."""
    out = convolve_frames(x, kernels[-1], bias)
    frames = torch.cat([past, x], dim=1) if len(kernels) > 1 else x
    for back in range(1, len(kernels)):
        earlier = frames[:, max(past.shape[1] - back, 0) : -back]
        out[:, x.shape[1] - earlier.shape[1] :] += convolve_frames(earlier, kernels[-1 - back], None)
    return out


def convolve_frames(x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve every frame with a 2D kernel (o, y, x, i)."""
    size, channels = kernel.shape[2:]
    if size == 1:
        return F.linear(x, rearrange(kernel, "o 1 1 i -> o i"), bias)
    if channels >= MIN_CHANNELS_PER_POSITION * x.shape[:4].numel():
        windows = F.pad(x, (0, 0, 1, 1, 1, 1)).unfold(2, size, 1).unfold(3, size, 1)
        windows = rearrange(windows, "b t h w i y x -> b t h w (y x i)")
        return F.linear(windows, rearrange(kernel, "o y x i -> o (y x i)"), bias)
    frames = rearrange(x, "b t h w i -> (b t) i h w")
    out = F.conv2d(frames, rearrange(kernel, "o y x i -> o i y x"), bias, padding=1)
    return rearrange(out, "(b t) o h w -> b t h w o", b=len(x))


class WinogradMatrices(NamedTuple):
    """Matrices that transform flattened tiles (36) and kernels (9) to products (36), and products to outputs (16)."""

    tile: Tensor
    kernel: Tensor
    output: Tensor


@functools.cache
def winograd_matrices(dtype: torch.dtype) -> WinogradMatrices:
    """Compute the transforms of tiles of 6 x 6, kernels of 3 x 3 and outputs of 4 x 4 (Toom and Cook)."""

    def powers(degree: int) -> Tensor:
        """Return 1, p, p^2, ... for each point p and, for the point at infinity, the highest power alone."""
        points = torch.tensor(WINOGRAD_POINTS, dtype=torch.float64)
        rows = rearrange(points, "p -> p 1") ** torch.arange(degree)
        return torch.cat([rows, torch.eye(degree, dtype=torch.float64)[-1:]])

    with torch.inference_mode(mode=False):  # a first call under inference_mode would forbid gradients for good
        one_side = torch.linalg.inv(powers(TILE_SIDE)).T, powers(3), powers(OUTPUT_SIDE).T
        return WinogradMatrices(*(torch.kron(matrix, matrix).to(dtype) for matrix in one_side))


def convolve_winograd(x: Tensor, past: Tensor, kernels: Tensor, bias: Tensor) -> Tensor:
    """Convolve with a quarter of the multiplications: transformed tiles and kernels only multiply (Winograd 1980).

    Taps are summed before the inverse transform, so that each tile is transformed once in each direction. Work goes in
    blocks of as many tiles as there are channels: block and kernels are then alike in size, and stay in the cache.
    """
    matrices = winograd_matrices(x.dtype)
    b, t, height, width, channels = x.shape
    tile_rows, tile_columns = -(-height // OUTPUT_SIDE), -(-width // OUTPUT_SIDE)
    block_columns = min(tile_columns, max(1, channels // t))
    block_rows = max(1, channels // t // block_columns)
    blocks = list(product(range(b), range(0, tile_rows, block_rows), range(0, tile_columns, block_columns)))
    groups = [slice(first, first + CHANNELS_PER_GROUP) for first in range(0, len(bias), CHANNELS_PER_GROUP)]

    def transform_kernel(back: int, group: int) -> Tensor:
        """Return a tap's kernel for a group of output channels as one matrix for each product, (p, i, o)."""
        kernel = rearrange(kernels[-1 - back, groups[group]], "o y x i -> o (y x) i")
        return rearrange(matrices.kernel @ kernel, "o p i -> p i o")

    if len(blocks) > 1:  # a single block needs each kernel only once
        transform_kernel = functools.cache(transform_kernel)
    out = x.new_empty(b, t, height, width, len(bias))
    for clip, top, left in blocks:
        rows = slice(top * OUTPUT_SIDE, min(top + block_rows, tile_rows) * OUTPUT_SIDE)
        columns = slice(left * OUTPUT_SIDE, min(left + block_columns, tile_columns) * OUTPUT_SIDE)
        frames = torch.cat([padded_window(past[clip], rows, columns), padded_window(x[clip], rows, columns)])
        tiles = transform_tiles(frames, matrices)
        for group, out_channels in enumerate(groups):
            products = tiles[:, past.shape[1] :].flatten(1, 2) @ transform_kernel(0, group)
            for back in range(1, len(kernels)):
                earlier = tiles[:, max(past.shape[1] - back, 0) : -back].flatten(1, 2)
                products[:, products.shape[1] - earlier.shape[1] :].baddbmm_(earlier, transform_kernel(back, group))
            block = inverse_transform(products, t, (rows.stop - rows.start) // OUTPUT_SIDE, matrices)
            inside = block[:, : height - rows.start, : width - columns.start]
            out[clip, :, rows, columns, out_channels] = inside + bias[out_channels]
    return out


def padded_window(frames: Tensor, rows: slice, columns: slice) -> Tensor:
    """Crop frames (t, h, w, i) to some rows and columns and one pixel more on each side, zero outside the frame."""
    _, height, width, _ = frames.shape
    top, bottom, left, right = rows.start - 1, rows.stop + 1, columns.start - 1, columns.stop + 1
    inside = frames[:, max(top, 0) : bottom, max(left, 0) : right]
    return F.pad(inside, (0, 0, max(-left, 0), max(right - width, 0), max(-top, 0), max(bottom - height, 0)))


def transform_tiles(frames: Tensor, matrices: WinogradMatrices) -> Tensor:
    """Transform the overlapping tiles of frames (t, 2 + h, 2 + w, i) to (p, t, n, i)."""
    tiles = frames.unfold(1, TILE_SIDE, OUTPUT_SIDE).unfold(2, TILE_SIDE, OUTPUT_SIDE)
    transformed = matrices.tile @ rearrange(tiles, "t r s i y x -> (y x) (t r s i)")
    return rearrange(transformed, "p (t n i) -> p t n i", t=len(frames), i=frames.shape[-1])


def inverse_transform(products: Tensor, num_frames: int, num_rows: int, matrices: WinogradMatrices) -> Tensor:
    """Transform products (p, t n, o), summed over input channels, to output frames (t, h, w, o)."""
    outputs = matrices.output @ products.flatten(1)
    shape = {"y": OUTPUT_SIDE, "t": num_frames, "r": num_rows, "o": products.shape[-1]}
    return rearrange(outputs, "(y x) (t r s o) -> t (r y) (s x) o", **shape)


def merge_upsampling(kernel: Tensor) -> Tensor:
    """Convert a kernel (o, 3, 3, i) for frames upsampled twofold to one (1, 4 o, 2, 2, i) for the frames themselves.

    Of three neighbours in the upsampled frame two are the same pixel: an even row sees w0 of the pixel before and
    w1 + w2 of its own, an odd row w0 + w1 of its own and w2 of the next. The four parities of row and column are four
    kernels.
    """

    def merge_axis(weights: Tensor) -> Tensor:
        """Map (3, ...) to (2, 2, ...): even or odd, and then the two neighbours."""
        before, here, after = weights
        return torch.stack([torch.stack([before, here + after]), torch.stack([before + here, after])])

    rows = rearrange(merge_axis(rearrange(kernel, "o y x i -> y x o i")), "a p x o i -> x a p o i")
    return rearrange(merge_axis(rows), "b q a p o i -> 1 (a b o) p q i")


def upsample_and_convolve(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """Convolve the nearest upsampling of x to twice its height and width (o, 3, 3, i), without computing that."""
    merged = causal_convolution(x, x[:, :0], merge_upsampling(kernel), bias.repeat(4))
    b, t, h, w, _ = x.shape
    out = x.new_empty(b, t, 2 * h, 2 * w, len(kernel))
    for (row, column), values in zip(product(range(2), range(2)), merged.chunk(4, dim=-1), strict=True):
        out[:, :, row::2, column::2] = values[:, :, row : row + h, column : column + w]
    return out
