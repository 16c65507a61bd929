"""The VAE is causal, exact in chunks, and initialised to the best linear transform."""

import random
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.conftest import CHANNELS, cuts, seeded, tiny_recipe
from videogen.config.train import VaeConfig
from videogen.models.streaming import StreamState
from videogen.models.vae import VideoVAE
from videogen.models.vae_network import frames_to_patches, patches_to_frames
from videogen.training.vae_loss import busyness, corrupt_latents, local_correlation, psnr, pyramid_l1, vae_loss
from videogen.training.vae_stage import VaeStage


def random_video(frames: int, height: int, width: int, batch: int = 1, seed: int = 0) -> Tensor:
    return torch.rand(batch, 3, frames, height, width, generator=seeded(seed)) * 2 - 1


def test_latent_shape_is_the_shape_of_the_encoded_clip(vae: VideoVAE) -> None:
    for frames, height, width in product((1, 5, 9, 21), (8, 16, 40), (8, 24)):
        latent = vae.encode(random_video(frames, height, width))
        assert tuple(latent[0].shape) == vae.latent_shape(frames, height, width)
        assert vae.decode(latent).shape == (1, 3, frames, height, width)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((6, 16, 16), r"frames must be 1 \+ a multiple of 4, got 6; try 5 or 9"),
        ((5, 20, 16), "width and height must be multiples of 8, got 16x20; try 16x16 or 16x24"),
        ((5, 3, 16), "got 16x3; try 16x8"),
    ],
)
def test_a_size_off_the_strides_is_refused_and_the_nearest_offered(
    vae: VideoVAE, size: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        vae.latent_shape(*size)


# --- causality


def test_a_latent_frame_ignores_later_frames(vae: VideoVAE) -> None:
    video = random_video(13, 16, 24)
    whole = vae.encode(video)
    for latent_frames, frames in ((1, 1), (2, 5), (3, 9)):
        changed = torch.cat([video[:, :, :frames], random_video(13 - frames, 16, 24, seed=9)], dim=2)
        assert torch.equal(vae.encode(changed)[:, :, :latent_frames], whole[:, :, :latent_frames])
        assert not torch.allclose(vae.encode(changed), whole, atol=1e-2)


def test_a_latent_frame_depends_on_earlier_frames(vae: VideoVAE) -> None:
    """The state of one frame reaches across latent frames."""
    video = random_video(9, 16, 16)
    changed = video.clone()
    changed[:, :, 4] = -changed[:, :, 4]  # the last frame of the second latent frame
    assert (vae.encode(changed) - vae.encode(video))[:, :, 2].abs().max() > 1e-5


def test_a_decoded_frame_ignores_later_latents(vae: VideoVAE) -> None:
    latent = torch.randn(1, CHANNELS, 4, 2, 3)
    changed = torch.cat([latent[:, :, :2], torch.randn(1, CHANNELS, 2, 2, 3)], dim=2)
    assert torch.equal(vae.decode(latent)[:, :, :5], vae.decode(changed)[:, :, :5])


def test_an_image_encodes_as_the_first_frame_of_a_clip(vae: VideoVAE) -> None:
    video = random_video(9, 16, 16)
    torch.testing.assert_close(vae.encode(video[:, :, :1]), vae.encode(video)[:, :, :1], atol=1e-5, rtol=0)
    assert vae.decode(vae.encode(video[:, :, :1])).shape[2] == 1


def test_a_clip_encodes_the_same_alone_or_in_a_batch(vae: VideoVAE) -> None:
    batch = random_video(5, 16, 16, batch=3)
    alone = torch.cat([vae.encode(clip[None]) for clip in batch])
    torch.testing.assert_close(vae.encode(batch), alone, atol=1e-5, rtol=0)  # float32, only the order of sums differs


# --- streaming


@pytest.mark.parametrize("seed", range(6))
def test_encoding_in_any_chunks_equals_the_whole(vae: VideoVAE, seed: int) -> None:
    video = random_video(29, 16, 24, batch=2)
    first, *rest = cuts(8, random.Random(seed))
    lengths = [1 + 4 * (first - 1), *(4 * latent_frames for latent_frames in rest)]
    latents = torch.cat(list(vae.encode_stream(iter(video.split(lengths, dim=2)))), dim=2)
    torch.testing.assert_close(latents, vae.encode(video), atol=1e-5, rtol=0)  # float32, only the order of sums differs


@pytest.mark.parametrize("seed", range(6))
def test_decoding_in_any_chunks_equals_the_whole(vae: VideoVAE, seed: int) -> None:
    latent = torch.randn(2, CHANNELS, 8, 2, 3)
    state: StreamState = {}
    chunks = latent.split(cuts(8, random.Random(seed)), dim=2)
    clips = [vae.reconstruct(vae.denormalise(chunk), state) for chunk in chunks]
    torch.testing.assert_close(torch.cat(clips, dim=2), vae.decode(latent), atol=1e-5, rtol=0)  # order of sums


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_decode_stream_equals_decode(vae: VideoVAE, chunk: int) -> None:
    latent = torch.randn(1, CHANNELS, 7, 2, 2)
    clips = list(vae.decode_stream(latent, chunk=chunk))
    assert clips[0].shape[2] == 1 + 4 * (min(chunk, 7) - 1)
    torch.testing.assert_close(torch.cat(clips, dim=2), vae.decode(latent), atol=1e-5, rtol=0)  # order of sums


def test_the_decoding_state_does_not_grow_with_duration(vae: VideoVAE) -> None:
    def state_bytes_after(latent_frames: int) -> int:
        state: StreamState = {}
        for latent in torch.randn(1, CHANNELS, latent_frames, 2, 2).split(1, dim=2):
            vae.reconstruct(latent, state)
        return sum(x.untyped_storage().nbytes() for x in state.values())  # a view keeps its whole storage alive

    assert state_bytes_after(1) == state_bytes_after(2) == state_bytes_after(40) > 0


def test_the_encoding_state_does_not_grow_with_duration(vae: VideoVAE) -> None:
    def state_bytes_after(num_chunks: int) -> int:
        state: StreamState = {}
        vae.posterior(random_video(1, 16, 16), state)
        for _ in range(num_chunks):
            vae.posterior(random_video(4, 16, 16), state)
        return sum(x.untyped_storage().nbytes() for x in state.values())

    assert state_bytes_after(1) == state_bytes_after(20) > 0


# --- normalisation and initialisation


def test_patches_to_frames_inverts_frames_to_patches() -> None:
    frames = torch.randn(2, 8, 3, 16, 24)
    assert torch.equal(patches_to_frames(frames_to_patches(frames)), frames)


def test_denormalise_inverts_normalise(vae: VideoVAE) -> None:
    raw = torch.randn(2, CHANNELS, 3, 2, 2)
    torch.testing.assert_close(vae.denormalise(vae.normalise(raw)), raw, atol=1e-5, rtol=0)


def test_encoding_without_latent_statistics_is_refused() -> None:
    with pytest.raises(ValueError, match="no latent statistics in its config yet; finish its training stage first"):
        VideoVAE(CHANNELS, width=8).encode(random_video(1, 8, 8))


@pytest.fixture(scope="module")
def new_vae(toybox_patches: Tensor) -> VideoVAE:
    """A VAE of 16 channels, initialised from the clips and not trained."""
    torch.manual_seed(0)
    model = VideoVAE(16, width=8).eval().requires_grad_(False)
    model.init_weights(toybox_patches)
    return model


def test_init_weights_gives_the_best_linear_transform(new_vae: VideoVAE, toybox_patches: Tensor) -> None:
    """No linear transform to 16 numbers a patch has a smaller error on these patches (Eckart and Young)."""
    centred = toybox_patches - toybox_patches.mean(0)
    *_, axes = torch.pca_lowrank(centred, q=64, center=False, niter=8)
    least_error = (centred - centred @ axes[:, :16] @ axes[:, :16].T).square().mean()
    latents = toybox_patches @ new_vae.encoder.linear.weight.flatten(1).T + new_vae.encoder.linear.bias
    reconstruction = latents @ new_vae.decoder.linear.weight.flatten(1).T + new_vae.decoder.linear.bias
    assert (reconstruction - toybox_patches).square().mean().item() == pytest.approx(least_error.item(), rel=1e-3)


def test_an_initialised_vae_reconstructs_the_toybox_above_20_db(new_vae: VideoVAE, toybox_clips: list[Tensor]) -> None:
    decibels = [psnr(new_vae.reconstruct(new_vae.posterior(clip[None]).mean), clip[None]) for clip in toybox_clips]
    assert sum(decibels) / len(decibels) > 20


def test_init_weights_flattens_the_spectrum(new_vae: VideoVAE, toybox_patches: Tensor) -> None:
    """A channel's deviation in latents is a power of its deviation in pixels, and the mean variance is 1."""
    rows = new_vae.encoder.linear.weight.flatten(1)
    axes = rows / rows.norm(dim=1, keepdim=True)
    torch.testing.assert_close(axes @ axes.T, torch.eye(16), atol=1e-3, rtol=0)  # orthonormal to SVD's rounding
    variance, expected = (toybox_patches @ rows.T).var(0), (toybox_patches @ axes.T).var(0) ** 0.75
    torch.testing.assert_close(variance, expected / expected.mean(), atol=0, rtol=1e-3)


def test_exported_statistics_normalise_latents(clips_folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    stage = VaeStage(tiny_recipe("vae", clips_folder, checkpoint, tmp_path / "run"))
    stage.export(tmp_path / "run" / "checkpoint")
    vae = VideoVAE.from_pretrained(tmp_path / "run" / "checkpoint", subfolder="vae")
    clips = [stage.folder.read(index).video[None] for index in stage.train_indices]
    with torch.no_grad():
        latents = torch.cat([vae.encode(clip)[0].flatten(1) for clip in clips], dim=1)
    assert latents.mean(1).abs().max() < 0.05
    assert abs(latents.var(1).mean() - 1) < 0.05
    assert len(set(vae.config["latents_std"])) == 1  # one scale for all channels keeps their relative variances


def test_from_pretrained_restores_channels_last(vae: VideoVAE, tmp_path: Path) -> None:
    """Convolutions are fast in this layout, and another would change the last bit."""
    vae.save_pretrained(tmp_path)
    loaded = dict(VideoVAE.from_pretrained(tmp_path).named_parameters())
    for name, p in vae.named_parameters():
        assert loaded[name].stride() == p.stride(), name


def test_a_saved_and_loaded_vae_is_bit_identical(vae: VideoVAE, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path)
    loaded = VideoVAE.from_pretrained(tmp_path)
    video = random_video(5, 16, 16)
    assert torch.equal(loaded.encode(video), vae.encode(video))
    assert torch.equal(loaded.decode(torch.ones(1, CHANNELS, 2, 2, 2)), vae.decode(torch.ones(1, CHANNELS, 2, 2, 2)))


# --- the loss


def trainable_vae(patches: Tensor) -> VideoVAE:
    model = VideoVAE(CHANNELS, width=8)
    model.init_weights(patches)
    return model


@pytest.mark.parametrize("shape", [(9, 16, 16), (1, 16, 16), (5, 24, 16), (5, 8, 24), (5, 24, 8), (1, 8, 8)])
def test_every_term_of_the_loss_is_finite(toybox_patches: Tensor, shape: tuple[int, int, int]) -> None:
    """Images, odd latent sizes and clips that are one latent high or wide included."""
    model = trainable_vae(toybox_patches)
    terms = vae_loss(model, random_video(*shape, batch=2), VaeConfig(), seeded())
    assert {name: value.isfinite().item() for name, value in terms.items()} == dict.fromkeys(terms, True)
    terms["loss"].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_the_loss_is_the_weighted_sum_of_its_terms(toybox_patches: Tensor) -> None:
    config = VaeConfig()
    terms = vae_loss(trainable_vae(toybox_patches), random_video(5, 16, 16), config, seeded())
    total = terms["l1"] + config.kl * terms["kl"] + config.local_correlation * terms["local_correlation"]
    total += config.pyramid * terms["pyramid"] + config.motion * terms["motion"]
    total += config.scale_equivariance * terms["scale"]
    torch.testing.assert_close(terms["loss"].detach(), total, atol=1e-6, rtol=1e-5)


def test_the_loss_falls_on_one_clip(toybox_patches: Tensor, toybox_clips: list[Tensor]) -> None:
    model, clip = trainable_vae(toybox_patches), next(clip for clip in toybox_clips if clip.shape[1] == 9)[None]
    model.encoder.linear.requires_grad_(False)
    model.decoder.linear.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    losses = []
    for _ in range(30):
        loss = vae_loss(model, clip[..., 8:40, 8:40], VaeConfig(latent_noise=0.0, mask_latents=False), seeded())["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


def test_every_weight_gets_a_gradient(toybox_patches: Tensor) -> None:
    model = trainable_vae(toybox_patches)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.02 * torch.randn(weight.shape))  # a zero weight passes no gradient to the layers before it
    for seed in range(8):  # three clips of ten have holes, where the mask token is used
        vae_loss(model, random_video(5, 16, 16, batch=4), VaeConfig(), seeded(seed))["loss"].backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_latents_get_noise_only_as_configured(vae: VideoVAE) -> None:
    latent = torch.randn(64, CHANNELS, 2, 2, 2)
    without_noise = VaeConfig(latent_noise=0.0, mask_latents=False)
    assert torch.equal(corrupt_latents(vae, latent, without_noise, seeded()), latent)
    noised = corrupt_latents(vae, latent, VaeConfig(latent_noise=0.2, mask_latents=False), seeded())
    noised_share = (noised != latent).flatten(1).any(1).float().mean()
    assert noised_share == pytest.approx(0.5, abs=0.2)  # the share of 64 clips has a deviation of 0.06
    assert (noised - latent).std() < 0.2


def test_busyness_is_zero_in_a_still_video_and_largest_at_a_change() -> None:
    video = torch.zeros(1, 3, 5, 16, 16)
    assert not busyness(video).any()
    video[:, :, 3, 4, 4] = 1.0
    busy = busyness(video)
    assert busy.shape == (1, 1, 5, 16, 16)
    assert busy.flatten().argmax().item() in (3 * 256 + 68, 4 * 256 + 68)
    assert busy.max() <= 1


def test_equal_clips_have_no_pyramid_loss_and_equal_neighbours_no_correlation_loss() -> None:
    video = random_video(5, 16, 16)
    assert pyramid_l1(video, video) == 0
    assert local_correlation(torch.randn(1, 8, 1, 1, 1).expand(1, 8, 3, 4, 4)) == 0


def test_psnr_of_an_error_of_a_tenth_of_the_range_is_20_db() -> None:
    a = torch.zeros(1, 3, 1, 8, 8)
    assert psnr(a, a) == 99
    assert psnr(a + 0.2, a) == pytest.approx(20, abs=1e-3)  # a tenth of the range of 2


def test_peak_memory_of_decode_stream_does_not_grow_with_duration(vae: VideoVAE, tmp_path: Path) -> None:
    """A process that decodes 64 times the frames has the same peak memory, to 40 MB."""
    vae.save_pretrained(tmp_path)
    program = f"""
import resource, torch
torch.set_num_threads(1)
from videogen.models.vae import VideoVAE
vae = VideoVAE.from_pretrained({str(tmp_path)!r})
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def decode(frames):
    with torch.no_grad():
        return sum(clip.shape[2] for clip in vae.decode_stream(torch.zeros(1, {CHANNELS}, frames, 16, 16)))
decode(4); before = peak()
assert decode(256) == 1021
print(peak() - before)
"""
    root = Path(__file__).parent.parent
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root)
    assert float(process.stdout) < 40  # MB; all frames together are 200
