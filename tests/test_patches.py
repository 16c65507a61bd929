"""Patch schedules: read as written, one patch at each noise level, tokens that are only cut anew."""

import pytest
import torch

from videogen.packing import pack, unpack
from videogen.patches import check_patches, parse_patches, patch_at, recut
from videogen.sampling import sigma_schedule

COARSE, FINE = (1, 4, 4), (1, 2, 2)


def test_a_schedule_is_read_as_written() -> None:
    assert parse_patches("1x2x2") == [(FINE, 1.0)]
    assert parse_patches("1x4x4:0.4, 1x2x2") == [(COARSE, 0.4), (FINE, 0.6)]
    assert parse_patches("2x2x2:0.25,1x4x4:0.25,1x2x2:0.5") == [((2, 2, 2), 0.25), (COARSE, 0.25), (FINE, 0.5)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4x4", "patch must be sizes TxHxW, .* such as 1x4x4:0.4,1x2x2, got '4x4'"),
        ("1x4x4,1x2x2", "each but the last with its share"),
        ("1x4x4:0.4,", "patch must be sizes"),
        ("1x4x4:0.4,1x2x2:0.4", "must be above 0 and make 1 in all, got '1x4x4:0.4,1x2x2:0.4'; leave the last one out"),
        ("1x4x4:1.2,1x2x2", "must be above 0 and make 1"),
        ("1x4x4:0,1x2x2", "must be above 0"),
    ],
)
def test_a_schedule_that_does_not_sum_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_patches(text)


def test_a_patch_that_a_model_lacks_is_refused_with_those_it_has() -> None:
    with pytest.raises(ValueError, match="patch must be of 1x2x2, 1x4x4, got 2x2x2"):
        check_patches(parse_patches("2x2x2:0.5,1x2x2"), [FINE, COARSE])


@pytest.mark.parametrize("shift", [1.0, 2.0, 5.0])
@pytest.mark.parametrize("steps", [1, 5, 10, 20])
def test_a_share_of_the_steps_is_what_a_patch_gets(steps: int, shift: float) -> None:
    schedule = parse_patches("1x4x4:0.4,1x2x2")
    found = [patch_at(schedule, float(sigma), shift) for sigma in sigma_schedule(steps, shift=shift)[:-1]]
    num = max(1, round(0.4 * steps))  # the first step is always the first patch's
    assert found == [COARSE] * num + [FINE] * (steps - num)


def test_clips_that_are_cut_anew_are_the_same_clips() -> None:
    latents = [torch.randn(3, 5, 8, 4), torch.randn(3, 1, 4, 8)]
    video = pack(latents, FINE)
    coarse = recut(video, COARSE)
    assert coarse.patch == COARSE
    assert all(map(torch.equal, unpack(coarse), latents))
    assert torch.equal(recut(coarse, FINE).tokens, video.tokens)
    assert recut(video, FINE) is video
    with pytest.raises(ValueError, match="cannot be cut into patches"):
        recut(pack([torch.randn(3, 1, 6, 4)], FINE), COARSE)
