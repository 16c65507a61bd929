"""What is known of a clip: each kind leaves free what it says, and a clip always has something to learn."""

import pytest
import torch

from tests.conftest import seeded
from videogen.packing.packs import Grid
from videogen.training.masks import KINDS, check_mixture, draw_known

GRIDS: list[Grid] = [(1, 1, 1), (1, 4, 6), (2, 3, 2), (5, 4, 4), (9, 2, 3)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grid", GRIDS)
def test_every_kind_gives_each_token_a_share_of_the_noise(kind: str, grid: Grid) -> None:
    for seed in range(30):
        share = KINDS[kind](grid, seeded(seed))
        assert share.shape == grid
        assert share.min() >= 0
        assert share.max() <= 1
        assert torch.equal(share, KINDS[kind](grid, seeded(seed)))


def test_text_to_video_knows_nothing_and_image_to_video_the_first_frame() -> None:
    assert KINDS["nothing"]((3, 2, 2), seeded()).all()
    share = KINDS["first_frame"]((3, 2, 2), seeded())
    assert not share[0].any()
    assert share[1:].all()


def test_an_extension_knows_a_beginning_and_never_all() -> None:
    lengths = set()
    for seed in range(100):
        frames = KINDS["extend"]((5, 2, 2), seeded(seed)).flatten(1).unique(dim=1)[:, 0].tolist()
        assert frames == sorted(frames)
        lengths.add(frames.count(0))
    assert lengths == {1, 2, 3, 4}


def test_keyframes_are_both_ends_half_of_the_time() -> None:
    drawn = [tuple(KINDS["keyframes"]((7, 1, 1), seeded(seed)).flatten().tolist()) for seed in range(400)]
    assert drawn.count((0, 1, 1, 1, 1, 1, 0)) / 400 == pytest.approx(0.5, abs=0.08)  # deviation 0.025
    assert len(set(drawn)) > 50


def test_diffusion_forcing_gives_each_frame_its_own_share() -> None:
    share = KINDS["per_frame"]((6, 3, 3), seeded()).flatten(1)
    assert (share == share[:, :1]).all()
    assert len(share[:, 0].unique()) == 6


def test_inpainting_frees_a_box() -> None:
    for seed in range(100):
        share = KINDS["box"]((5, 4, 6), seeded(seed))
        places = share.nonzero()
        assert len(places) > 0
        low, high = places.min(0).values, places.max(0).values + 1
        assert share.sum() == (high - low).prod()


def test_boxes_reach_every_token() -> None:
    free = sum(KINDS["box"]((3, 4, 4), seeded(seed)) for seed in range(300))
    assert free.min() > 0  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grid", GRIDS)
def test_a_drawn_clip_always_has_something_to_learn(kind: str, grid: Grid) -> None:
    assert all(draw_known(grid, {kind: 1.0}, seeded(seed)).any() for seed in range(50))


def test_kinds_are_drawn_in_their_shares() -> None:
    mixture = {"nothing": 3.0, "first_frame": 1.0}
    drawn = [bool(draw_known((3, 1, 1), mixture, seeded(seed)).all()) for seed in range(2000)]
    assert sum(drawn) / 2000 == pytest.approx(0.75, abs=0.04)  # deviation 0.01


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ({"nothing": 1.0, "firstframe": 1.0}, "must name nothing, first_frame, .*, got 'firstframe'"),
        ({}, "at least one kind a share above 0"),
        ({"nothing": 0.0}, "at least one kind a share above 0"),
        ({"nothing": 1.0, "box": -0.5}, "at least one kind a share above 0"),
    ],
)
def test_a_wrong_mixture_is_refused(mixture: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_mixture(mixture)
