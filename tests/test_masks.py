"""Masks of known tokens: each kind marks what its task knows, and every clip keeps something to learn."""

import pytest
import torch

from tests.conftest import seeded
from videogen.packing.packs import Grid
from videogen.training.masks import MASK_KINDS, check_mixture, sample_known

GRIDS: list[Grid] = [(1, 1, 1), (1, 4, 6), (2, 3, 2), (5, 4, 4), (9, 2, 3)]


@pytest.mark.parametrize("kind", MASK_KINDS)
@pytest.mark.parametrize("grid", GRIDS)
def test_every_kind_gives_each_token_a_share_of_the_noise_between_0_and_1(kind: str, grid: Grid) -> None:
    for seed in range(30):
        mask = MASK_KINDS[kind](grid, seeded(seed))
        assert mask.shape == grid
        assert mask.min() >= 0
        assert mask.max() <= 1
        assert torch.equal(mask, MASK_KINDS[kind](grid, seeded(seed)))


def test_text_to_video_has_no_known_tokens_and_image_to_video_its_first_frame() -> None:
    assert MASK_KINDS["nothing"]((3, 2, 2), seeded()).all()
    mask = MASK_KINDS["first_frame"]((3, 2, 2), seeded())
    assert not mask[0].any()
    assert mask[1:].all()


def test_an_extension_knows_the_first_frames_and_never_all_of_them() -> None:
    num_known = set()
    for seed in range(100):
        frames = MASK_KINDS["extend"]((5, 2, 2), seeded(seed)).flatten(1).unique(dim=1)[:, 0].tolist()
        assert frames == sorted(frames)
        num_known.add(frames.count(0))
    assert num_known == {1, 2, 3, 4}


def test_a_backward_extension_knows_the_last_frames_and_a_join_both_ends() -> None:
    num_known, gaps = set(), set()
    for seed in range(200):
        frames = MASK_KINDS["extend_back"]((5, 2, 2), seeded(seed)).flatten(1).unique(dim=1)[:, 0].tolist()
        assert frames == sorted(frames, reverse=True)
        num_known.add(frames.count(0))
        middle = MASK_KINDS["join"]((5, 2, 2), seeded(seed)).flatten(1).unique(dim=1)[:, 0].tolist()
        assert middle[0] == middle[-1] == 0
        gaps.add(tuple(middle))
    assert num_known == {1, 2, 3, 4}
    assert len(gaps) == 6  # every run of free frames between the two ends


def test_keyframes_are_the_first_and_the_last_frame_half_of_the_time() -> None:
    masks = [tuple(MASK_KINDS["keyframes"]((7, 1, 1), seeded(seed)).flatten().tolist()) for seed in range(400)]
    assert masks.count((0, 1, 1, 1, 1, 1, 0)) / 400 == pytest.approx(0.5, abs=0.08)  # standard deviation 0.025
    assert len(set(masks)) > 50


def test_diffusion_forcing_gives_each_frame_its_own_share_of_the_noise() -> None:
    mask = MASK_KINDS["per_frame"]((6, 3, 3), seeded()).flatten(1)
    assert (mask == mask[:, :1]).all()
    assert len(mask[:, 0].unique()) == 6


def test_inpainting_leaves_a_box_of_tokens_free() -> None:
    for seed in range(100):
        mask = MASK_KINDS["box"]((5, 4, 6), seeded(seed))
        free = mask.nonzero()
        assert len(free) > 0
        low, high = free.min(0).values, free.max(0).values + 1
        assert mask.sum() == (high - low).prod()


def test_every_token_is_in_some_box() -> None:
    num_boxes = sum(MASK_KINDS["box"]((3, 4, 4), seeded(seed)) for seed in range(300))
    assert num_boxes.min() > 0  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", MASK_KINDS)
@pytest.mark.parametrize("grid", GRIDS)
def test_a_sampled_mask_always_leaves_a_token_free(kind: str, grid: Grid) -> None:
    assert all(sample_known(grid, {kind: 1.0}, seeded(seed)).any() for seed in range(50))


def test_kinds_are_sampled_in_proportion_to_their_shares() -> None:
    mixture = {"nothing": 3.0, "first_frame": 1.0}
    is_free = [bool(sample_known((3, 1, 1), mixture, seeded(seed)).all()) for seed in range(2000)]
    assert sum(is_free) / 2000 == pytest.approx(0.75, abs=0.04)  # standard deviation 0.01


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ({"nothing": 1.0, "firstframe": 1.0}, "must name nothing, first_frame, .*, got 'firstframe'"),
        ({}, "at least one kind a share above 0, and none below"),
        ({"nothing": 0.0}, "at least one kind a share above 0, and none below"),
        ({"nothing": 1.0, "box": -0.5}, "at least one kind a share above 0, and none below"),
    ],
)
def test_a_mixture_with_unknown_kinds_or_without_a_positive_share_is_refused(
    mixture: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_mixture(mixture)
