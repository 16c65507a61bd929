"""What Wan's VAEs are made of: every form of a convolution is the convolution, and the shortcuts are diffusers'."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import AvgDown3D, DupUp3D
from einops import rearrange, repeat
from torch import Tensor

from tests.test_wan_vae import assert_equal
from videogen.models import wan_vae_conv
from videogen.models.wan_vae_conv import by_library, by_taps, by_winograd, convolve, convolve_doubled
from videogen.models.wan_vae_layers import add_copies, average_down

# --- the forms of a convolution


def exact_convolution(x: Tensor, past: Tensor, kernels: Tensor, bias: Tensor) -> Tensor:
    """As Wan defines it: zeros where there is no past, one 3D convolution."""
    missing = len(kernels) - 1 - past.shape[1]
    frames = rearrange(F.pad(torch.cat([past, x], 1), (0, 0, 0, 0, 0, 0, missing, 0)), "b t h w i -> b i t h w")
    side = kernels.shape[2] // 2
    out = F.conv3d(frames, rearrange(kernels, "k o y x i -> o i k y x"), bias, padding=(0, side, side))
    return rearrange(out, "b o t h w -> b t h w o")


@pytest.mark.parametrize("num_past", [0, 1, 2])
@pytest.mark.parametrize("size", [1, 3])
def test_every_form_is_the_convolution(size: int, num_past: int) -> None:
    sizes = [*product((1, 2), (1, 2, 5), (1, 4, 7), (3, 9), (5,)), (1, 1, 2, 3, 64), (2, 2, 1, 2, 64)]
    for b, t, h, w, c in sizes:  # the last two have so many channels that the direct form is a plain product
        x, past = torch.randn(b, t, h, w, c).double(), torch.randn(b, num_past, h, w, c).double()
        kernels, bias = torch.randn(3, 7, size, size, c).double(), torch.randn(7).double()
        wanted = exact_convolution(x, past, kernels, bias)
        assert_equal(convolve(x, past, kernels, bias), wanted)
        seen = kernels[-(t + num_past) :]
        for way in (by_library, by_taps, *([by_winograd] if size == 3 else [])):
            assert_equal(way(x, past, seen, bias), wanted)


def test_doubling_is_nearest_pixels_and_a_convolution(form: str) -> None:
    for b, t, h, w, c in [*product((1, 2), (1, 3), (1, 5), (4,), (3,)), (1, 1, 2, 2, 32)]:
        x, kernel, bias = torch.randn(b, t, h, w, c).double(), torch.randn(6, 3, 3, c).double(), torch.randn(6).double()
        doubled = repeat(x, "b t h w c -> b t (h y) (w x) c", y=2, x=2)
        wanted = exact_convolution(doubled, doubled[:, :0], kernel[None], bias)
        assert_equal(convolve_doubled(x, kernel, bias), wanted)


def test_winograd_in_float32_is_as_exact_as_the_direct_sum() -> None:
    """At the widths of Wan, to a factor of 4 in the worst of a million numbers."""
    x, past = torch.randn(1, 2, 32, 32, 96), torch.randn(1, 2, 32, 32, 96)
    kernels, bias = torch.randn(3, 96, 3, 3, 96) / 50, torch.randn(96)
    exact = by_taps(x.double(), past.double(), kernels.double(), bias.double())
    errors = [(way(x, past, kernels, bias) - exact).abs().max().item() for way in (by_taps, by_winograd)]
    assert errors[1] < 4 * errors[0]
    assert errors[1] < 2e-5  # the numbers are about 1


@pytest.mark.parametrize(
    ("shape", "kernels", "pays"),
    [
        ((1, 4, 64, 64, 96), (3, 96, 3, 3, 96), True),
        ((1, 1, 64, 64, 192), (1, 192, 3, 3, 192), True),
        ((1, 1, 64, 64, 96), (1, 96, 3, 3, 96), False),  # an image at the finest level: one tap does not win it back
        ((1, 1, 8, 8, 384), (3, 384, 3, 3, 384), False),  # turning large kernels for few positions
        ((1, 4, 64, 64, 96), (3, 3, 3, 3, 96), False),
        ((1, 8, 64, 64, 384), (3, 768, 1, 1, 384), False),
    ],
)
def test_winograd_is_chosen_where_it_was_measured_to_pay(
    shape: tuple[int, ...], kernels: tuple[int, ...], pays: bool
) -> None:
    with torch.device("meta"):
        assert wan_vae_conv.winograd_pays(torch.empty(shape), torch.empty(kernels)) == pays


def test_a_first_call_under_inference_mode_does_not_bar_gradients() -> None:
    wan_vae_conv.turns.cache_clear()
    x, kernels = torch.randn(1, 1, 4, 4, 2), torch.randn(1, 2, 3, 3, 2, requires_grad=True)
    with torch.inference_mode():
        by_winograd(x, x[:, :0], kernels, torch.zeros(2))
    by_winograd(x, x[:, :0], kernels, torch.zeros(2)).sum().backward()


# --- shortcuts


@pytest.mark.parametrize(("time", "widths"), list(product((1, 2), ((8, 8), (8, 4), (4, 8), (12, 6)))))
def test_the_shortcuts_of_2_2_are_theirs(time: int, widths: tuple[int, int]) -> None:
    into, out = widths
    for t in (1, 2, 4):
        x = torch.randn(2, t, 4, 6, into).double()
        theirs = rearrange(x, "b t h w c -> b c t h w")
        for first in (True, False):
            wanted = rearrange(DupUp3D(into, out, time, 2)(theirs, first_chunk=first), "b c t h w -> b t h w c")
            assert torch.equal(add_copies(torch.zeros_like(wanted), x, time=time, first=first), wanted)
        for space in (1, 2) if time == 1 else (2,):
            if into * time * space**2 % out == 0:
                wanted = rearrange(AvgDown3D(into, out, time, space)(theirs), "b c t h w -> b t h w c")
                assert_equal(average_down(x, out, time=time, space=space), wanted)
