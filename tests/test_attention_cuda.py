"""The CUDA kernels for packs, forward and backward, against the CPU (pytest -m gpu)."""

import importlib.util
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.conftest import CHANNELS, draw_texts, tiny_dit
from tests.test_attention import attend_reference
from videogen.models import attention
from videogen.models.attention import attend, attend_by_runs, attend_varlen, attend_xformers
from videogen.packing.noise import levels_per_clip, sample_noise, step_generator
from videogen.packing.packs import Lengths, pack

pytestmark = pytest.mark.gpu

DEVICE, HEADS, SIZE = "cuda", 4, 64
PACKS: list[Lengths] = [(7,), (80,) * 16, (80, 80, 16, 324, 12), (1, 300), (1, 1, 2, 65, 64, 63, 129), (378, 20) * 8]
XFORMERS = pytest.param(
    attend_xformers,
    marks=pytest.mark.skipif(importlib.util.find_spec("xformers") is None, reason="xformers is an extra"),
)
KERNELS = [attend_varlen, XFORMERS, attend]
QKV = tuple[Tensor, Tensor, Tensor]
Kernel = Callable[[Tensor, Tensor, Tensor, Lengths], Tensor]
# An output is a mean of values rounded to 8 (or 11) bits; a gradient is a sum of products of two of them.
TOLERANCES = {torch.bfloat16: (1e-2, 3e-2), torch.float16: (2e-3, 6e-3)}


def check_device() -> None:
    assert DEVICE != "cuda" or torch.cuda.is_available(), "these tests need a CUDA device, and there is none"


def qkv_on_gpu(lengths: Lengths, dtype: torch.dtype) -> QKV:
    check_device()
    q, k, v = (torch.randn(sum(lengths), HEADS, SIZE).to(DEVICE, dtype).requires_grad_() for _ in range(3))
    return q, k, v


def qkv_on_cpu(inputs: QKV) -> QKV:
    """Copy the rounded numbers to the CPU, as float32."""
    q, k, v = (x.detach().cpu().float().requires_grad_() for x in inputs)
    return q, k, v


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("lengths", PACKS, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_every_cuda_kernel_equals_the_cpu(kernel: Kernel, lengths: Lengths, dtype: torch.dtype) -> None:
    inputs = qkv_on_gpu(lengths, dtype)
    cpu_inputs, (tolerance, gradient_tolerance) = qkv_on_cpu(inputs), TOLERANCES[dtype]
    out, reference = kernel(*inputs, lengths), attend_by_runs(*cpu_inputs, lengths)
    assert (out.dtype, out.shape, out.device.type) == (dtype, reference.shape, DEVICE)
    torch.testing.assert_close(out.detach().cpu().float(), reference.detach(), atol=tolerance, rtol=tolerance)
    upstream = torch.randn_like(reference).to(dtype)
    gradients = torch.autograd.grad(out, inputs, upstream.to(DEVICE))
    expected = torch.autograd.grad(reference, cpu_inputs, upstream.float())
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours.cpu().float(), theirs, atol=gradient_tolerance, rtol=gradient_tolerance)


def test_the_noise_of_a_step_on_cuda_is_repeatable_and_differs_from_other_steps() -> None:
    check_device()
    like = torch.empty(300, 16, device=DEVICE)
    noise, repeated, next_noise = (sample_noise(like, step_generator(0, step)) for step in (1, 1, 2))
    assert noise.device.type == DEVICE
    assert torch.equal(noise, repeated)
    assert not torch.allclose(noise, next_noise)
    assert abs(float(noise.std()) - 1) < 0.05


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_clip_in_a_pack_is_the_clip_alone_on_cuda(kernel: Kernel) -> None:
    lengths: Lengths = (80, 16, 324)
    inputs = qkv_on_gpu(lengths, torch.bfloat16)
    together = kernel(*inputs, lengths).split(lengths)
    for i, (q, k, v) in enumerate(zip(*(x.split(lengths) for x in inputs), strict=True)):
        alone = kernel(q, k, v, (lengths[i],))
        torch.testing.assert_close(together[i], alone, atol=8e-3, rtol=8e-3)  # Blocks may be summed in another order.
    for gradient in torch.autograd.grad(together[1].square().sum(), inputs):
        assert [bool(clip.any()) for clip in gradient.split(lengths)] == [False, True, False]


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_half_precision_takes_the_variable_length_kernel(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Tensor:
        raise AssertionError("a pack in half precision went by runs")

    inputs = qkv_on_gpu((5, 9), dtype)
    monkeypatch.setattr(attention, "attend_by_runs", refuse)
    attend_varlen(*inputs, (5, 9))


@pytest.mark.parametrize("kernel", KERNELS)
def test_float32_on_cuda_equals_the_reference(kernel: Kernel) -> None:
    lengths: Lengths = (5, 5, 9)
    inputs = qkv_on_gpu(lengths, torch.float32)
    torch.testing.assert_close(
        kernel(*inputs, lengths), attend_reference(*inputs, lengths), atol=1e-4, rtol=0
    )  # TF32 stays off


def test_the_network_on_cuda_predicts_as_on_the_cpu() -> None:
    """Ragged clips, several noise levels, cross-attention and the gradient of every weight, in bfloat16."""
    check_device()
    clips = [torch.randn(CHANNELS, *sides) for sides in ((3, 4, 8), (1, 8, 4), (3, 4, 8), (5, 4, 4))]
    outputs_and_gradients = []
    for device, dtype in (("cpu", torch.float32), (DEVICE, torch.bfloat16)):
        dit = tiny_dit(attention_head_dim=16)
        dit.to(device, dtype)  # type: ignore[call-overload]
        video, text = pack([clip.to(device) for clip in clips], (1, 2, 2)), draw_texts((3, 5, 1, 7))
        text = text._replace(tokens=text.tokens.to(device), weights=text.weights.to(device))
        out = dit(video, levels_per_clip(torch.tensor([0.9, 0.5, 0.1, 0.7], device=device), video.lengths), text)
        gradients = torch.autograd.grad(out.float().square().mean(), list(dit.parameters()))
        flat_gradients = torch.cat([gradient.detach().cpu().float().flatten() for gradient in gradients])
        outputs_and_gradients.append((out.detach().cpu().float(), flat_gradients))
    for exact, rounded in zip(*outputs_and_gradients, strict=True):
        assert rounded.isfinite().all()
        assert (rounded - exact).square().mean() < 0.02 * exact.square().mean()  # bfloat16 has 8 bits, two blocks deep
