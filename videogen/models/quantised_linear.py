"""Keep the weights of linear layers in 8 or 4 bits: they are not trained, and a gradient passes through to their input.

weight (rows, columns)  ->  codes in bytes, scales  ->  the weight again, rounded, while a layer computes
transformer folder, "fp8" or "nf4"  ->  VideoDiT whose blocks hold their matrices so
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from videogen.models.checkpoint import check_weights
from videogen.models.dit import VideoDiT

FP8_MAX = torch.finfo(torch.float8_e4m3fn).max
NF4_BLOCK = 64  # values that share a scale (Dettmers et al. 2023)


class Bits(NamedTuple):
    """A way to keep a matrix: to codes and scales, and back to a matrix of a shape in a precision."""

    quantise: Callable[[Tensor], tuple[Tensor, Tensor]]
    dequantise: Callable[[Tensor, Tensor, tuple[int, int], torch.dtype], Tensor]
    num_bytes: Callable[[int, int], int]  # of so many rows and columns, the scales in float32 included


def quantise_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row to 8 bits, four of them an exponent, scaled so that its largest value is the largest there is."""
    scale = (weight.abs().amax(dim=1, keepdim=True) / FP8_MAX).clamp(min=1e-12)
    return (weight / scale).to(torch.float8_e4m3fn).view(torch.uint8), scale


def dequantise_fp8(codes: Tensor, scale: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Return the matrix of 8-bit codes (rows, columns) and a scale a row."""
    return codes.view(torch.float8_e4m3fn).to(dtype) * scale.to(dtype)


def quantise_nf4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round to the 16 quantiles of a normal distribution, 64 values to a scale (bitsandbytes)."""
    import bitsandbytes  # noqa: F401  # type: ignore[import-not-found]  # registers the operators

    return torch.ops.bitsandbytes.quantize_4bit(weight, NF4_BLOCK, "nf4", torch.uint8)


def dequantise_nf4(codes: Tensor, scale: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Return the matrix of 4-bit codes, two a byte, and a scale for every 64 values."""
    # The kernel for CPUs mixes up the scales of rows that end within a block: a row of it is a block, or all there is.
    num_values = math.prod(shape)
    rows = (num_values // NF4_BLOCK, NF4_BLOCK) if num_values % NF4_BLOCK == 0 else (1, num_values)
    return torch.ops.bitsandbytes.dequantize_4bit(codes, scale, NF4_BLOCK, "nf4", rows, dtype).reshape(shape)


BITS = {
    "fp8": Bits(quantise_fp8, dequantise_fp8, lambda rows, columns: rows * columns + 4 * rows),
    "nf4": Bits(
        quantise_nf4,
        dequantise_nf4,
        lambda rows, columns: -(-rows * columns // 2) + 4 * -(-rows * columns // NF4_BLOCK),
    ),
}


class QuantisedProduct(torch.autograd.Function):
    """x (n, columns) times a quantised matrix: backward dequantises it again instead of keeping it."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: torch.autograd.function.FunctionCtx, x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None,
        bits: str, shape: tuple[int, int],
    ) -> Tensor:  # fmt: skip
        """Compute the layer in autocast's precision, or in that of its input."""
        ctx.save_for_backward(codes, scale)
        ctx.of = bits, shape, x.dtype  # type: ignore[attr-defined]
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        weight = BITS[bits].dequantise(codes, scale, shape, dtype)
        return F.linear(x.to(dtype), weight, None if bias is None else bias.to(dtype))

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Return the gradient of the input, in the input's precision."""
        bits, shape, dtype = ctx.of  # type: ignore[attr-defined]
        codes, scale = ctx.saved_tensors  # type: ignore[attr-defined]
        return (grad @ BITS[bits].dequantise(codes, scale, shape, grad.dtype)).to(dtype), *[None] * 5


class QuantisedLinear(nn.Linear):
    """A linear layer whose weight is kept in few bits and not trained.

    Its weight is the bytes of the codes, and its bias tells the precision that it computes in.
    """

    def __init__(self, weight: Tensor, bias: nn.Parameter | None, bits: str) -> None:
        nn.Module.__init__(self)
        self.bits, (self.out_features, self.in_features) = bits, weight.shape
        codes, scale = BITS[bits].quantise(weight.float())
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)  # processes would exchange a buffer in every step
        self.bias = bias  # type: ignore[assignment]  # may come later, from another file

    def forward(self, input: Tensor) -> Tensor:
        """(n, columns) -> (n, rows)."""
        shape = self.out_features, self.in_features
        return cast("Tensor", QuantisedProduct.apply(input, self.weight, self.scale, self.bias, self.bits, shape))


def block_matrices(network: nn.Module) -> dict[str, nn.Linear]:
    """Collect the linear layers of a transformer's blocks by name: nearly all of its weights."""
    named = network.named_modules()
    return {name: layer for name, layer in named if isinstance(layer, nn.Linear) and name.startswith("blocks.")}


def count_base_bytes(network: nn.Module, base_dtype: str) -> int:
    """Count the bytes of a transformer whose blocks are kept in base_dtype, and all else in float32."""
    num_bytes = 4 * sum(weight.numel() for weight in network.parameters())
    if base_dtype not in BITS:
        return num_bytes
    shapes = [layer.weight.shape for layer in block_matrices(network).values()]
    return num_bytes - sum(4 * rows * columns - BITS[base_dtype].num_bytes(rows, columns) for rows, columns in shapes)


def load_quantised(folder: Path, bits: str) -> VideoDiT:
    """Load a transformer's folder, the matrices of its blocks in fewer bits and all else in float32.

    Its weights are read one after another, so that the whole is never in memory in a precision of its own.
    """
    network = check_weights(VideoDiT, folder)  # on the meta device
    wanted, matrices = network.state_dict().keys(), block_matrices(network)
    others: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  # it is no dict
                if (layer := matrices.get(name.removesuffix(".weight"))) is not None:
                    quantised = QuantisedLinear(file.get_tensor(name), layer.bias, bits)
                    network.set_submodule(name.removesuffix(".weight"), quantised)
                elif name in wanted:
                    others[name] = file.get_tensor(name).float()
    network.load_state_dict(others, strict=False, assign=True)
    return network.eval().requires_grad_(False)
