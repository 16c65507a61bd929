"""What is known as pixels: images, clips and masks land in their latent frames, never stretched, and are put back."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.conftest import seeded
from videogen.config.sample import SampleConfig
from videogen.models.streaming import to_uint8
from videogen.models.vae import VideoVAE
from videogen.sampling.clip_sampler import ClipRequest
from videogen.sampling.known import SEAM_FRAMES, Known, encode_known, fit_frames, overlay, to_frames, to_pixels
from videogen.sampling.known_tokens import KnownLatent
from videogen.sampling.pipeline import VideoPipeline

CPU = torch.device("cpu")
CONFIG = SampleConfig(size="48x32", frames=17, fps=8)
SHAPE = (4, 5, 4, 6)


def draw_frames(num: int, height: int = 32, width: int = 48, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (num, height, width, 3), generator=seeded(seed), dtype=torch.uint8)


def encode(vae: VideoVAE, *pieces: Known, config: SampleConfig = CONFIG) -> KnownLatent:
    return encode_known(
        pieces, vae, (4, 1 + (config.frames - 1) // 4, config.height // 8, config.width // 8), config, CPU
    )


# --- where things land


@pytest.mark.parametrize(
    ("seconds", "latent_frame"), [(0.0, 0), (0.1, 1), (0.5, 1), (0.6, 2), (1.0, 2), (2.0, 4), (math.inf, 4)]
)
def test_an_image_is_known_in_the_latent_frame_that_shows_its_time(
    seconds: float, latent_frame: int, vae: VideoVAE
) -> None:
    known = encode(vae, Known.at(draw_frames(1), seconds))
    assert known.weight.mean((1, 2)).tolist() == [float(i == latent_frame) for i in range(5)]


def test_an_image_is_encoded_as_a_still_of_its_latent_frame(vae: VideoVAE) -> None:
    frame = draw_frames(1)
    still = vae.encode(to_pixels(frame.expand(5, -1, -1, -1))[None])[0]
    known = encode(vae, Known.first(frame), Known.at(frame, 1.0))
    torch.testing.assert_close(known.clean[:, 0], still[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(known.clean[:, 2], still[:, 1], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("start", "num", "latent_frames"),
    [(0, 17, [0, 1, 2, 3, 4]), (0, 8, [0, 1]), (0, 1, [0]), (1, 8, [1, 2]), (4, 9, [2, 3]), (3, 14, [2, 3, 4])],
)
def test_a_clip_is_known_in_the_latent_frames_that_it_fills(
    start: int, num: int, latent_frames: list[int], vae: VideoVAE
) -> None:
    known = encode(vae, Known.clip(draw_frames(num), at=start / CONFIG.fps))
    assert known.weight.mean((1, 2)).nonzero().flatten().tolist() == latent_frames


def test_a_clip_that_begins_later_is_encoded_behind_its_own_frames(vae: VideoVAE) -> None:
    """Frame 4 is the last of a latent frame that is free, and only the context of frames 5 to 16."""
    frames = draw_frames(17)
    known = encode(vae, Known.clip(frames[4:], at=0.5))
    expected = vae.encode(to_pixels(frames[4:])[None])[0][:, 1:]
    torch.testing.assert_close(known.clean[:, 2:], expected, atol=1e-5, rtol=0)


def test_a_latent_at_hand_is_taken_as_it_is(vae: VideoVAE) -> None:
    latent = torch.randn(4, 3, 4, 6)
    piece = Known.clip(draw_frames(9))._replace(latent=latent)
    assert torch.equal(encode(vae, piece).clean[:, :3], latent)
    assert torch.equal(encode(vae, piece._replace(seconds=1.0)).clean[:, 3:], latent[:, 1:])


def test_a_mask_frees_every_cell_that_it_touches(vae: VideoVAE) -> None:
    mask = torch.zeros(17, 32, 48, dtype=torch.bool)
    mask[6, 9, 17] = True  # one pixel of one frame
    weight = encode(vae, Known.mask(draw_frames(17), mask)).weight
    assert (weight == 0).nonzero().tolist() == [[2, 1, 2]]
    still = Image.fromarray(mask[6].numpy())
    weight = encode(vae, Known.mask(draw_frames(17), still)).weight
    assert (weight == 0).nonzero().tolist() == [[t, 1, 2] for t in range(5)]


def test_a_masked_image_is_made_anew_in_part(vae: VideoVAE) -> None:
    mask = np.zeros((32, 48), dtype=np.uint8)
    mask[:8, :8] = 255
    config = replace(CONFIG, frames=1)
    assert encode(vae, Known.mask(draw_frames(1), mask), config=config).weight.sum() == 4 * 6 - 1


# --- what is taken


def test_pictures_arrays_and_tensors_of_one_image_are_the_same() -> None:
    frame = draw_frames(1)
    picture = Image.fromarray(frame[0].numpy())
    for given in (picture, picture.convert("RGBA"), frame[0].numpy(), frame[0], frame, frame[0].double() / 255):
        assert torch.equal(Known.first(given).frames, frame)
    clip = draw_frames(3)
    for given in (clip, clip.numpy(), [Image.fromarray(frame.numpy()) for frame in clip], clip.float() / 255):
        assert torch.equal(Known.clip(given).frames, clip)
    grey = draw_frames(1)[0, ..., 0]
    assert torch.equal(to_frames(grey)[0, ..., 1], grey)


REFUSED = {
    "an image of several": (lambda: Known.first(draw_frames(2)), "an image is one picture, got 2; Known.clip takes"),
    "no picture": (lambda: Known.clip(torch.zeros(0, 4, 4, 3)), r"a clip \(t, h, w, 3\), got \(0, 4, 4, 3\)"),
    "weight": (lambda: Known.first(draw_frames(1), weight=1.5), r"from 0 \(free\) to 1 \(given\), got 1.5"),
    "mask size": (
        lambda: Known.mask(draw_frames(5), torch.ones(8, 8)),
        "the mask is 8x8 and what it masks 48x32; give one of 48x32",
    ),
    "mask length": (
        lambda: Known.mask(draw_frames(5), draw_frames(3)),
        "the mask has 3 frames and what it masks 5; give one, or as many",
    ),
    "black mask": (lambda: Known.mask(draw_frames(5), torch.zeros(32, 48)), "all black and makes nothing anew"),
    "white mask": (lambda: Known.mask(draw_frames(5), torch.ones(32, 48)), "all white and keeps nothing"),
}


@pytest.mark.parametrize(("give", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_known_is_refused(give: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        give()  # type: ignore[operator]


def test_what_does_not_lie_in_the_clip_is_refused(vae: VideoVAE) -> None:
    with pytest.raises(ValueError, match=r"21 frames at 0 s of a clip of 17 frames \(2.125 s\) does not lie in it"):
        encode(vae, Known.clip(draw_frames(21)))
    with pytest.raises(ValueError, match="an image at 3 s of a clip of 17"):
        encode(vae, Known.at(draw_frames(1), 3.0))
    with pytest.raises(ValueError, match=r"3 frames at 0\.25 s fill no latent frame, which holds 4; give at least 7"):
        encode(vae, Known.clip(draw_frames(3), at=0.25))


# --- fitting


def test_a_square_stays_a_square_whatever_the_shape_of_the_clip() -> None:
    """A white square in the middle of a wide picture has equal sides after it is fitted, cropped or padded."""
    picture = torch.zeros(1, 120, 300, 3, dtype=torch.uint8)
    picture[:, 40:80, 130:170] = 255
    for fit, side in (("crop", 21), ("pad", 8)):  # of 64: scaled by 64 / 120, or by 64 / 300
        fitted = fit_frames(picture, 64, 64, fit)[0, ..., 0] > 127  # type: ignore[arg-type]
        rows, columns = fitted.any(1).sum().item(), fitted.any(0).sum().item()
        assert rows == pytest.approx(side, abs=1)
        assert columns == pytest.approx(side, abs=1)


def test_frames_of_the_clips_size_are_not_touched() -> None:
    frames = draw_frames(2)
    assert fit_frames(frames, 48, 32) is frames


def test_padding_keeps_the_whole_picture_between_black_bars() -> None:
    fitted = fit_frames(torch.full((1, 32, 32, 3), 200, dtype=torch.uint8), 64, 32, "pad")[0, ..., 0]
    assert not fitted[:, :16].any()
    assert not fitted[:, 48:].any()
    assert (fitted[:, 16:48] == 200).all()


# --- the pixels of the result


@pytest.mark.parametrize("lengths", [[17], [1, 7, 9], [4, 4, 4, 5], [1] * 17], ids=str)
def test_given_clips_keep_their_pixels_and_masked_ones_those_outside(lengths: list[int]) -> None:
    made, given = draw_frames(17, seed=1), draw_frames(5, seed=2)
    for start in (0, 4, 12):
        result = torch.cat(list(overlay(made.split(lengths), [Known.clip(given, at=start / 8)], CONFIG, 4)))
        assert torch.equal(result[start : start + 5], given)
        beyond = [i for i in range(17) if not start - SEAM_FRAMES <= i < start + 5 + SEAM_FRAMES]
        assert torch.equal(result[beyond], made[beyond])
    both = [Known.clip(given, at=0.0), Known.clip(given, at=1.0)]
    result = torch.cat(list(overlay(made.split(lengths), both, CONFIG, 4)))
    assert torch.equal(torch.cat([result[:5], result[8:13]]), torch.cat([given, given]))
    mask = torch.zeros(32, 48, dtype=torch.bool)
    mask[:10, :10] = True
    pieces = [Known.mask(draw_frames(17, seed=2), mask)]
    result = torch.cat(list(overlay(made.split(lengths), pieces, CONFIG, 4)))
    assert torch.equal(result[:, mask], made[:, mask])
    assert torch.equal(result[:, ~mask], draw_frames(17, seed=2)[:, ~mask])


@pytest.mark.parametrize("lengths", [[17], [1, 7, 9], [1] * 17], ids=str)
@pytest.mark.parametrize("start", [0, 12])
def test_what_the_vae_loses_of_a_given_clip_is_no_step_at_its_seam(start: int, lengths: list[int]) -> None:
    """A VAE that makes everything darker by 18: the clip is 100, and the made frames beside it fade from 98 to 82."""
    made, given = torch.full((17, 32, 48, 3), 82, dtype=torch.uint8), torch.full((5, 32, 48, 3), 100, dtype=torch.uint8)
    result = torch.cat(list(overlay(made.split(lengths), [Known.clip(given, at=start / 8)], CONFIG, 4)))
    levels = result[:, 0, 0, 0].tolist()
    expected = [100] * 5 + [98, 96, 94, 92, 90, 88, 86, 84] + [82] * 4
    assert levels == (expected if start == 0 else expected[::-1])


@pytest.mark.parametrize("lengths", [[17], [1, 4, 4, 8], [1] * 17], ids=str)
def test_a_small_step_behind_a_given_clip_is_made_good_and_a_motion_left_as_it_is(lengths: list[int]) -> None:
    """The VAE loses nothing, and the made frames have a wall that is darker by 9, on which a thing of 100 appears."""
    given = torch.full((5, 32, 48, 3), 100, dtype=torch.uint8)
    made = torch.full((17, 32, 48, 3), 91, dtype=torch.uint8)
    made[:5], made[5:, :16] = 100, 200
    result = torch.cat(list(overlay(made.split(lengths), [Known.clip(given)], CONFIG, 4)))
    assert result[:, 20, 0, 0].tolist() == [100] * 5 + [99, 98, 97, 96, 95, 94, 93, 92] + [91] * 4
    assert (result[5:, :16] == 200).all()


def test_images_and_starts_are_not_pasted() -> None:
    made = draw_frames(17, seed=1)
    pieces = [
        Known.first(draw_frames(1)),
        Known.clip(draw_frames(17), weight=0),
        Known.clip(draw_frames(17), weight=0.5),
    ]
    assert torch.equal(torch.cat(list(overlay([made], pieces, CONFIG, 4))), made)


# --- from Python


def test_the_pipeline_takes_what_is_known(pipeline: VideoPipeline) -> None:
    frames, config = draw_frames(5), pipeline.defaults
    image = Image.fromarray(draw_frames(1, seed=3)[0].numpy())
    (clip,) = pipeline(["a red circle"], config, known=[Known.clip(frames), Known.last(image)])
    assert clip.shape == (9, 32, 48, 3)
    assert torch.equal(clip[:5], frames)
    (latent,) = pipeline.sample([request([Known.first(image)])], config)
    shown = torch.cat(list(pipeline.frames(latent)))[0]
    alone = to_uint8(pipeline.vae.decode(pipeline.vae.encode(to_pixels(to_frames(image))[None]))[0])[0]
    assert (shown.int() - alone.int()).abs().max() <= 1  # the first frame is the VAE's own reconstruction of it


def test_strength_goes_from_a_copy_to_a_clip_of_its_own(pipeline: VideoPipeline) -> None:
    frames = draw_frames(9, seed=4)
    config = replace(pipeline.defaults, steps=10)
    copy = pipeline.encode_known([Known.clip(frames)], config).clean
    distances = []
    for strength in (0.1, 0.4, 0.7, 1.0):
        piece = request([Known.clip(frames, weight=0)])
        (latent,) = pipeline.sample([piece], replace(config, strength=strength))
        distances.append((latent - copy).square().mean().item())
    assert distances == sorted(distances)
    assert distances[0] < 0.2 * distances[-1]
    free = pipeline.sample([request([])], config)[0]
    assert torch.equal(latent, free)


def test_strength_takes_the_evaluations_of_its_share_of_the_steps(pipeline: VideoPipeline) -> None:
    evaluations: list[int] = []
    config = replace(pipeline.defaults, steps=10, strength=0.4, guidance=1.0)
    pipeline.sample([request([Known.clip(draw_frames(9), weight=0)])], config, lambda: evaluations.append(1))
    assert len(evaluations) == 4
    with pytest.raises(ValueError, match="strength below 1 begins with a video; give one"):
        pipeline(["x"], config)
    with pytest.raises(ValueError, match=r"strength 0\.05 leaves none of 10 steps; give at least 0\.1, or more steps"):
        replace(config, strength=0.05)
    with pytest.raises(ValueError, match="strength must be above 0 and at most 1, got 0"):
        replace(config, strength=0.0)


def request(known: list[Known]) -> ClipRequest:
    return ClipRequest("a red circle", 4, known)
