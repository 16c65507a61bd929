"""WanVAE equals diffusers' AutoencoderKLWan: weights, chunks, tiles and numbers, in every form of convolution."""

import inspect
import random
from copy import deepcopy
from itertools import product
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanUpsample
from einops import rearrange
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import cuts, seeded
from videogen.models.wan_vae import TileStates, WanVAE

REAL_21: dict[str, object] = {}
REAL_22 = {
    "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True, "in_channels": 12, "out_channels": 12,
    "patch_size": 2, "scale_factor_spatial": 16, "latents_mean": [0.1] * 48, "latents_std": [1.5] * 48,
}  # fmt: skip
SMALL: dict[str, dict[str, object]] = {
    "2.1": {"base_dim": 8, "z_dim": 4, "num_res_blocks": 1},
    "2.2": REAL_22 | {"base_dim": 8, "decoder_base_dim": 12, "z_dim": 6, "num_res_blocks": 1},
    "uneven": {"base_dim": 12, "z_dim": 3, "dim_mult": [1, 3, 2], "temperal_downsample": [True, True]},
    "late": REAL_22 | {"base_dim": 8, "decoder_base_dim": None, "z_dim": 4, "num_res_blocks": 1, "dim_mult": [1, 2, 2],
                       "temperal_downsample": [True, False]},
}  # fmt: skip
for config in SMALL.values():
    config |= {"latents_mean": [0.3] * int(config["z_dim"]), "latents_std": [1.7] * int(config["z_dim"])}  # type: ignore


Pair = tuple[AutoencoderKLWan, WanVAE]


def make_pair(name: str, dtype: torch.dtype = torch.float32) -> Pair:
    """Build diffusers' VAE with random weights and gains, and ours with the same weights."""
    torch.manual_seed(5)
    theirs = AutoencoderKLWan(**SMALL[name]).eval().requires_grad_(False)  # type: ignore[arg-type]
    for key, weight in theirs.named_parameters():
        if key.endswith("gamma"):
            weight.copy_(1 + 0.3 * torch.randn(weight.shape))
    ours = WanVAE(**SMALL[name]).eval().requires_grad_(False)  # type: ignore[arg-type]
    ours.load_state_dict(theirs.state_dict())
    return theirs.to(dtype), ours.to(dtype)


@pytest.fixture(scope="module", params=SMALL)
def pair(request: pytest.FixtureRequest) -> Pair:
    return make_pair(request.param)


def random_video(vae: WanVAE, latent_frames: int, h: int, w: int, *, batch: int = 1, dtype: torch.dtype) -> Tensor:
    frames = 1 + (latent_frames - 1) * vae.time_stride
    shape = batch, 3, frames, h * vae.space_stride, w * vae.space_stride
    return (torch.rand(shape, generator=seeded()) * 2 - 1).to(dtype)


def random_latent(vae: WanVAE, t: int, h: int, w: int, *, batch: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, vae.config["z_dim"], t, h, w, generator=seeded(1)).to(dtype)


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """Compare to 2e-5 in float32, where only the order of sums differs over some 40 layers, and to 1e-9 in float64."""
    tolerance = 1e-9 if ours.dtype == torch.float64 else 2e-5
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)


# --- the same weights


@pytest.mark.parametrize(("real", "total"), [(REAL_21, 126_892_531), (REAL_22, 704_688_668)], ids=["2.1", "2.2"])
def test_parameter_names_and_shapes_are_those_of_diffusers(real: dict[str, object], total: int) -> None:
    with torch.device("meta"):
        theirs, ours = AutoencoderKLWan(**real), WanVAE(**real)  # type: ignore[arg-type]
    shapes = [{name: tuple(x.shape) for name, x in model.state_dict().items()} for model in (theirs, ours)]
    assert shapes[0] == shapes[1]
    assert sum(p.numel() for p in ours.parameters()) == total


def test_the_config_and_its_defaults_are_those_of_diffusers() -> None:
    def defaults(kind: type) -> dict[str, object]:
        parameters = {k: p.default for k, p in inspect.signature(kind.__init__).parameters.items() if k != "self"}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in parameters.items()}

    assert defaults(WanVAE) == defaults(AutoencoderKLWan)


def test_a_folder_of_either_opens_in_the_other(pair: Pair, tmp_path: Path) -> None:
    theirs, ours = pair
    theirs.save_pretrained(tmp_path / "theirs" / "vae")
    loaded = WanVAE.from_pretrained(tmp_path / "theirs", subfolder="vae")
    loaded.requires_grad_(False)  # with gradients torch multiplies matrices in another order, and the last bit differs
    video, latent = random_video(ours, 2, 2, 1, dtype=torch.float32), random_latent(ours, 2, 2, 1)
    assert torch.equal(loaded.encode(video), ours.encode(video))
    assert torch.equal(loaded.decode(latent), ours.decode(latent))
    ours.save_pretrained(tmp_path / "ours" / "vae")
    reloaded = AutoencoderKLWan.from_pretrained(tmp_path / "ours", subfolder="vae").requires_grad_(False)
    assert torch.equal(reloaded.decode(latent).sample, theirs.decode(latent).sample)
    configs = [{k: v for k, v in vae.config.items() if k[0] != "_"} for vae in (reloaded, theirs)]
    assert configs[0] == configs[1]


def test_from_pretrained_restores_the_fast_weight_layout(tmp_path: Path) -> None:
    """Convolutions are fast in this layout, and another would change the last bit."""
    _, ours = make_pair("2.2")
    ours.save_pretrained(tmp_path)
    loaded = dict(WanVAE.from_pretrained(tmp_path).named_parameters())
    for name, p in ours.named_parameters():
        assert loaded[name].stride() == p.stride(), name


# --- the same numbers


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_encoding_and_decoding_equal_those_of_diffusers(
    name: str, dtype: torch.dtype, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images, clips, batches, odd sizes and latents of one pixel are compared."""
    monkeypatch.setattr(WanUpsample, "forward", nn.Upsample.forward)  # diffusers' upsamples float64 in float32
    theirs, ours = make_pair(name, dtype)
    for batch, t, h, w in ((1, 1, 3, 2), (2, 3, 1, 1), (1, 6, 3, 5), (2, 2, 2, 3)):
        t = t if ours.time_stride == 4 else 2 * t - 1  # diffusers encodes four frames at a time and drops the rest
        video = random_video(ours, t, h, w, batch=batch, dtype=dtype)
        latent = random_latent(ours, t, h, w, batch=batch, dtype=dtype)
        posterior, expected = ours.posterior(video), theirs.encode(video).latent_dist
        assert_close(posterior.mean, expected.mean)
        assert_close(posterior.logvar, expected.logvar)
        assert_close(ours.reconstruct(latent), theirs.decode(latent).sample)


@pytest.mark.parametrize("seed", range(3))
def test_encoding_and_decoding_in_any_chunks_equal_diffusers(pair: Pair, seed: int, form: str) -> None:
    theirs, ours = pair
    rng, stride = random.Random(seed), ours.time_stride
    latent, states = random_latent(ours, 7, 2, 3), {}
    clips = [ours.reconstruct(chunk, states) for chunk in latent.split(cuts(7, rng), dim=2)]
    assert_close(torch.cat(clips, dim=2), theirs.decode(latent).sample)
    video, states = random_video(ours, 7, 2, 1, dtype=torch.float32), {}
    first, *rest = cuts(7, rng)
    lengths = [1 + stride * (first - 1), *(stride * latent_frames for latent_frames in rest)]
    means = [ours.posterior(chunk, states).mean for chunk in video.split(lengths, dim=2)]
    assert_close(torch.cat(means, dim=2), theirs.encode(video).latent_dist.mean)


def test_encode_stream_and_decode_stream_equal_encode_and_decode(pair: Pair) -> None:
    _, ours = pair
    latent, video = random_latent(ours, 6, 2, 2), random_video(ours, 3, 2, 2, dtype=torch.float32)
    whole = ours.decode(latent)
    for chunk in (1, 2, 5, 100):
        clips = list(ours.decode_stream(latent, chunk=chunk))
        assert clips[0].shape[2] == 1 + ours.time_stride * (min(chunk, 6) - 1)
        assert_close(torch.cat(clips, dim=2), whole)
    chunks = video.split([1, ours.time_stride, ours.time_stride], dim=2)
    assert_close(torch.cat(list(ours.encode_stream(iter(chunks))), dim=2), ours.encode(video))


def test_latents_are_normalised_as_in_the_wan_pipelines_of_diffusers(pair: Pair) -> None:
    theirs, ours = pair
    video, latent = random_video(ours, 1, 2, 2, dtype=torch.float32), random_latent(ours, 1, 2, 2)
    mean, std = (rearrange(torch.tensor(ours.config[key]), "c -> 1 c 1 1 1") for key in ("latents_mean", "latents_std"))
    assert_close(ours.encode(video), (theirs.encode(video).latent_dist.mode() - mean) / std)
    assert_close(ours.decode(latent), theirs.decode(latent * std + mean).sample)


def test_latent_shape_is_the_shape_of_the_encoded_clip(pair: Pair) -> None:
    _, ours = pair
    for t, h, w in product((1, 2, 4), (1, 3), (2,)):
        video = random_video(ours, t, h, w, dtype=torch.float32)
        assert ours.latent_shape(*video.shape[2:]) == (ours.config["z_dim"], t, h, w)
        assert ours.encode(video)[0].shape == (ours.config["z_dim"], t, h, w)


def test_the_error_of_bfloat16_is_no_larger_than_that_of_diffusers() -> None:
    latent = random_latent(make_pair("2.1")[1], 3, 3, 3)
    exact = make_pair("2.1")[1].reconstruct(latent)
    theirs, ours = make_pair("2.1", torch.bfloat16)
    error = (ours.reconstruct(latent.bfloat16()) - exact).square().mean()
    assert error < 1.2 * (theirs.decode(latent.bfloat16()).sample - exact).square().mean()


@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
def test_offloading_changes_nothing(pair: Pair, kind: str) -> None:
    """Offloading copies the arguments of layers, and must not copy the state."""
    _, ours = pair
    offloaded = deepcopy(ours)
    cpu = torch.device("cpu")
    offloaded.enable_group_offload(cpu, cpu, offload_type=kind, num_blocks_per_group=1)
    latent, video = random_latent(ours, 3, 2, 2), random_video(ours, 2, 2, 2, dtype=torch.float32)
    assert torch.equal(offloaded.decode(latent), ours.decode(latent))
    assert torch.equal(offloaded.encode(video), ours.encode(video))


def test_layerwise_casting_equals_that_of_diffusers() -> None:
    theirs, ours = make_pair("2.2")
    for vae in (theirs, ours):
        vae.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    latent = random_latent(ours, 3, 2, 2)
    assert_close(ours.reconstruct(latent), theirs.decode(latent).sample)


def test_gradients_equal_those_of_diffusers(form: str) -> None:
    theirs, ours = make_pair("2.2", torch.float64)
    video, latent = random_video(ours, 2, 1, 2, dtype=torch.float64), random_latent(ours, 2, 1, 2, dtype=torch.float64)
    gradients = []
    for encode, decode, model in (
        (lambda x: theirs.encode(x).latent_dist.mean, lambda z: theirs.decode(z).sample, theirs),
        (lambda x: ours.posterior(x).mean, ours.reconstruct, ours),
    ):
        model.requires_grad_(True)
        inputs = video.clone().requires_grad_(), latent.clone().requires_grad_()
        loss = encode(inputs[0]).square().sum() + decode(inputs[1]).square().mean()
        gradients.append(torch.autograd.grad(loss, [*inputs, *(p for _, p in sorted(model.named_parameters()))]))
    for expected, actual in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)  # diffusers' upsamples in float32


@pytest.mark.gpu
def test_a_gpu_computes_what_the_cpu_does(pair: Pair) -> None:
    _, ours = pair
    latent, video = random_latent(ours, 3, 2, 3), random_video(ours, 3, 2, 3, dtype=torch.float32)
    on_gpu = deepcopy(ours).cuda()
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        torch.testing.assert_close(on_gpu.decode(latent.cuda()).cpu(), ours.decode(latent), atol=1e-4, rtol=0)
        torch.testing.assert_close(on_gpu.encode(video.cuda()).cpu(), ours.encode(video), atol=1e-4, rtol=0)


# --- causality, memory and operations


def test_a_latent_frame_ignores_later_frames(pair: Pair) -> None:
    _, ours = pair
    video = random_video(ours, 4, 2, 2, dtype=torch.float32)
    changed = video.clone()
    changed[:, :, 1 + ours.time_stride :] *= -1
    assert_close(ours.encode(changed)[:, :, :2], ours.encode(video)[:, :, :2])
    assert not torch.allclose(ours.encode(changed), ours.encode(video), atol=1e-2)


def test_a_decoded_frame_depends_on_earlier_latents_and_ignores_later_ones(pair: Pair) -> None:
    _, ours = pair
    latent = random_latent(ours, 4, 2, 2)
    other_start, other_end = latent.clone(), latent.clone()
    other_start[:, :, 0], other_end[:, :, 2:] = 0, 0
    num_frames = 1 + ours.time_stride  # of the first two latent frames
    assert_close(ours.decode(other_end)[:, :, :num_frames], ours.decode(latent)[:, :, :num_frames])
    assert (ours.decode(other_start) - ours.decode(latent))[:, :, -1].abs().max() > 1e-4


def test_the_state_of_a_stream_does_not_grow_with_duration(pair: Pair) -> None:
    _, ours = pair

    def state_bytes(states: TileStates) -> int:
        (state,) = states.values()
        return sum(x.untyped_storage().nbytes() for x in state.values())  # a view keeps its whole storage alive

    decoding: TileStates = {}
    encoding: TileStates = {}
    ours.posterior(random_video(ours, 1, 1, 1, dtype=torch.float32), encoding)
    sizes = []
    for _ in range(5):
        ours.reconstruct(random_latent(ours, 2, 1, 1), decoding)
        ours.posterior(random_video(ours, 3, 1, 1, dtype=torch.float32)[:, :, 1:], encoding)
        sizes.append((state_bytes(decoding), state_bytes(encoding)))
    assert sizes[1] == sizes[-1] > (0, 0)


def test_an_image_takes_less_than_half_of_the_operations(pair: Pair) -> None:
    """An image needs one tap of three, and upsampling no 3 x 3 window on doubled pixels."""
    theirs, ours = pair
    video, latent = random_video(ours, 1, 2, 2, dtype=torch.float32), random_latent(ours, 1, 2, 2)
    flops = []
    for encode, decode in ((theirs.encode, theirs.decode), (ours.posterior, ours.reconstruct)):
        with FlopCounterMode(display=False) as encoding:
            encode(video)
        with FlopCounterMode(display=False) as decoding:
            decode(latent)
        flops.append((encoding.get_total_flops(), decoding.get_total_flops()))
    assert flops[1][0] < 0.45 * flops[0][0]
    assert flops[1][1] < 0.45 * flops[0][1]


# --- tiles


@pytest.mark.parametrize(("name", "sizes"), [("2.1", ((7, 9), (3, 5), (9, 2))), ("2.2", ((7, 6), (2, 5)))])
def test_tiling_equals_that_of_diffusers(name: str, sizes: tuple[tuple[int, int], ...]) -> None:
    theirs, ours = make_pair(name)
    sizes_and_strides = [side * ours.space_stride for side in (4, 3, 3, 2)]
    theirs.enable_tiling(*sizes_and_strides)
    ours.enable_tiling(*sizes_and_strides)
    for h, w in sizes:
        video, latent = random_video(ours, 2, h, w, dtype=torch.float32), random_latent(ours, 3, h, w)
        assert_close(ours.posterior(video).mean, theirs.encode(video).latent_dist.mean)
        assert_close(ours.reconstruct(latent), theirs.decode(latent).sample)
        assert_close(torch.cat(list(ours.decode_stream(latent)), dim=2), ours.decode(latent))
    ours.disable_tiling()
    theirs.disable_tiling()
    assert_close(ours.reconstruct(latent), theirs.decode(latent).sample)


# --- errors


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 6, 16, 16), r"frames must be 1 \+ a multiple of 4, got 6; try 5 or 9"),
        ((1, 3, 5, 20, 16), "width and height must be multiples of 8, got 16x20; try 16x16 or 16x24"),
        ((1, 4, 5, 16, 16), r"a clip must be \(b, 3, t, h, w\), got \(1, 4, 5, 16, 16\)"),
        ((3, 5, 16, 16), r"a clip must be \(b, 3, t, h, w\), got \(3, 5, 16, 16\)"),
    ],
)
def test_a_clip_of_a_wrong_shape_is_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_pair("2.1")[1].encode(torch.zeros(shape))


def test_latents_dtypes_chunks_and_tiles_that_do_not_fit_are_refused() -> None:
    _, ours = make_pair("2.1")
    with pytest.raises(ValueError, match=r"latents must be \(b, 4, t, h, w\), got \(1, 5, 1, 2, 2\)"):
        ours.decode(torch.zeros(1, 5, 1, 2, 2))
    with pytest.raises(ValueError, match=r"works in torch.float32, got torch.float64; pass x.to\(vae.dtype\)"):
        ours.decode(torch.zeros(1, 4, 1, 2, 2).double())
    chunks = iter([torch.zeros(1, 3, 1, 8, 8), torch.zeros(1, 3, 5, 8, 8)])
    with pytest.raises(ValueError, match="chunks after the first must have a multiple of 4 frames, got 5"):
        list(ours.encode_stream(chunks))
    with pytest.raises(ValueError, match="must be multiples of 8, the stride no larger than the tile, got 256 and 100"):
        ours.enable_tiling(tile_sample_stride_width=100)


def test_a_config_that_no_wan_vae_has_is_refused() -> None:
    with pytest.raises(ValueError, match=r"attn_scales must be empty, got \[0.5\]"):
        WanVAE(base_dim=4, attn_scales=[0.5])
    with pytest.raises(ValueError, match="latents_mean and latents_std of the config must have 4 values each"):
        WanVAE(base_dim=4, z_dim=4).decode(torch.zeros(1, 4, 1, 1, 1))
