"""Every form of a causal convolution equals the convolution, and the shortcuts of Wan 2.2 equal those of diffusers."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import AvgDown3D, DupUp3D
from einops import rearrange, repeat
from torch import Tensor

from tests.test_wan_vae import assert_close
from videogen.models import wan_vae_conv
from videogen.models.wan_vae_conv import (
    causal_convolution,
    convolve_conv3d,
    convolve_taps,
    convolve_winograd,
    upsample_and_convolve,
)
from videogen.models.wan_vae_layers import add_duplicated_channels, downsample_shortcut

# --- the forms of a convolution


def exact_convolution(x: Tensor, past: Tensor, kernels: Tensor, bias: Tensor) -> Tensor:
    """Compute one 3D convolution with zeros before the first frame, as Wan defines it."""
    missing = len(kernels) - 1 - past.shape[1]
    frames = rearrange(F.pad(torch.cat([past, x], 1), (0, 0, 0, 0, 0, 0, missing, 0)), "b t h w i -> b i t h w")
    side = kernels.shape[2] // 2
    out = F.conv3d(frames, rearrange(kernels, "k o y x i -> o i k y x"), bias, padding=(0, side, side))
    return rearrange(out, "b o t h w -> b t h w o")


@pytest.mark.parametrize("num_past", [0, 1, 2])
@pytest.mark.parametrize("size", [1, 3])
def test_every_form_equals_the_causal_convolution(size: int, num_past: int) -> None:
    sizes = [*product((1, 2), (1, 2, 5), (1, 4, 7), (3, 9), (5,)), (1, 1, 2, 3, 64), (2, 2, 1, 2, 64)]
    for b, t, h, w, c in sizes:  # the last two have so many channels that convolve_taps is a plain matrix product
        x, past = torch.randn(b, t, h, w, c).double(), torch.randn(b, num_past, h, w, c).double()
        kernels, bias = torch.randn(3, 7, size, size, c).double(), torch.randn(7).double()
        expected = exact_convolution(x, past, kernels, bias)
        assert_close(causal_convolution(x, past, kernels, bias), expected)
        taps = kernels[-(t + num_past) :]
        for form in (convolve_conv3d, convolve_taps, *([convolve_winograd] if size == 3 else [])):
            assert_close(form(x, past, taps, bias), expected)


def test_upsample_and_convolve_equals_upsampling_followed_by_a_convolution(form: str) -> None:
    for b, t, h, w, c in [*product((1, 2), (1, 3), (1, 5), (4,), (3,)), (1, 1, 2, 2, 32)]:
        x, kernel, bias = torch.randn(b, t, h, w, c).double(), torch.randn(6, 3, 3, c).double(), torch.randn(6).double()
        upsampled = repeat(x, "b t h w c -> b t (h y) (w x) c", y=2, x=2)
        expected = exact_convolution(upsampled, upsampled[:, :0], kernel[None], bias)
        assert_close(upsample_and_convolve(x, kernel, bias), expected)


def test_the_float32_error_of_winograd_is_that_of_the_direct_sum() -> None:
    """At the widths of Wan, the largest error of a million numbers is less than 4 times larger."""
    x, past = torch.randn(1, 2, 32, 32, 96), torch.randn(1, 2, 32, 32, 96)
    kernels, bias = torch.randn(3, 96, 3, 3, 96) / 50, torch.randn(96)
    exact = convolve_taps(x.double(), past.double(), kernels.double(), bias.double())
    forms = convolve_taps, convolve_winograd
    direct_error, winograd_error = [(form(x, past, kernels, bias) - exact).abs().max().item() for form in forms]
    assert winograd_error < 4 * direct_error
    assert winograd_error < 2e-5  # the numbers are about 1


@pytest.mark.parametrize(
    ("shape", "kernels", "is_faster"),
    [
        ((1, 4, 64, 64, 96), (3, 96, 3, 3, 96), True),
        ((1, 1, 64, 64, 192), (1, 192, 3, 3, 192), True),
        ((1, 1, 64, 64, 96), (1, 96, 3, 3, 96), False),  # one tap, an image at the finest level, saves too little
        ((1, 1, 8, 8, 384), (3, 384, 3, 3, 384), False),  # large kernels would be transformed for few positions
        ((1, 4, 64, 64, 96), (3, 3, 3, 3, 96), False),
        ((1, 8, 64, 64, 384), (3, 768, 1, 1, 384), False),
    ],
)
def test_winograd_is_chosen_where_it_was_measured_to_be_faster(
    shape: tuple[int, ...], kernels: tuple[int, ...], is_faster: bool
) -> None:
    with torch.device("meta"):
        assert wan_vae_conv.winograd_is_faster(torch.empty(shape), torch.empty(kernels)) == is_faster


def test_a_first_call_under_inference_mode_does_not_forbid_gradients() -> None:
    wan_vae_conv.winograd_matrices.cache_clear()
    x, kernels = torch.randn(1, 1, 4, 4, 2), torch.randn(1, 2, 3, 3, 2, requires_grad=True)
    with torch.inference_mode():
        convolve_winograd(x, x[:, :0], kernels, torch.zeros(2))
    convolve_winograd(x, x[:, :0], kernels, torch.zeros(2)).sum().backward()


# --- shortcuts


@pytest.mark.parametrize("time", [1, 2])
@pytest.mark.parametrize(("width", "out"), [(8, 8), (8, 4), (4, 8), (12, 6)])
def test_the_shortcuts_of_wan_2_2_equal_those_of_diffusers(width: int, out: int, time: int) -> None:
    for t in (1, 2, 4):
        x = torch.randn(2, t, 4, 6, width).double()
        channels_first = rearrange(x, "b t h w c -> b c t h w")
        for is_first in (True, False):
            upsampled = DupUp3D(width, out, time, 2)(channels_first, first_chunk=is_first)
            expected = rearrange(upsampled, "b c t h w -> b t h w c")
            added = add_duplicated_channels(torch.zeros_like(expected), x, time=time, is_first=is_first)
            assert torch.equal(added, expected)
        for space in (1, 2) if time == 1 else (2,):
            if width * time * space**2 % out == 0:
                expected = rearrange(AvgDown3D(width, out, time, space)(channels_first), "b c t h w -> b t h w c")
                assert_close(downsample_shortcut(x, out, time=time, space=space), expected)
