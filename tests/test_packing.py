"""Packing: nothing is lost, nothing is padded, and a token knows its own place only."""

import random
from itertools import product

import pytest
import torch
from torch import Tensor

from videogen.packing.bin_packing import deal, fullest, plan_packs
from videogen.packing.noise import per_clip, per_frame, shared_level
from videogen.packing.packs import pack, patchify, positions, unpack
from videogen.packing.patch_schedule import Patch

RAGGED = [(3, 1, 4, 8), (3, 5, 8, 4), (3, 1, 4, 4), (3, 4, 12, 4), (3, 6, 4, 20)]
PATCHES: list[Patch] = [(1, 2, 2), (1, 4, 4), (1, 1, 1), (1, 2, 4)]


def latents(shapes: list[tuple[int, int, int, int]] = RAGGED) -> list[Tensor]:
    return [torch.randn(shape) for shape in shapes]


@pytest.mark.parametrize("patch", PATCHES)
def test_unpack_gives_back_what_was_packed_bit_for_bit(patch: Patch) -> None:
    clips = latents()
    for clip, back in zip(clips, unpack(pack(clips, patch)), strict=True):
        assert torch.equal(clip, back)


def test_patches_may_span_frames() -> None:
    clips = latents([(2, 4, 4, 4), (2, 2, 8, 4)])
    packed = pack(clips, (2, 2, 2))
    assert packed.lengths == (8, 8)
    assert all(map(torch.equal, clips, unpack(packed)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_pack_keeps_the_dtype_and_every_special_value(dtype: torch.dtype) -> None:
    clip = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 1e-7, 1.0, 2.0, 3.0], dtype=dtype).reshape(1, 2, 2, 2)
    (back,) = unpack(pack([clip], (1, 2, 2)))
    assert back.dtype == dtype
    assert torch.equal(back, clip)
    assert torch.equal(back.signbit(), clip.signbit())


def test_a_pack_has_no_padding() -> None:
    packed = pack(latents(), (1, 2, 2))
    assert packed.lengths == (8, 40, 4, 48, 120)
    assert packed.tokens.shape == (sum(packed.lengths), 3 * 1 * 2 * 2)


def test_a_token_lies_as_a_convolution_weight_does() -> None:
    """So that embedding a token is the strided convolution of Wan."""
    latent, weight = torch.randn(3, 4, 6, 8), torch.randn(5, 3, 2, 2, 2)
    convolved = torch.nn.functional.conv3d(latent[None], weight, stride=(2, 2, 2))[0].flatten(1).T
    torch.testing.assert_close(patchify(latent, (2, 2, 2)) @ weight.flatten(1).T, convolved, atol=1e-5, rtol=0)


def test_a_latent_that_the_patch_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 3, 4\) .* cannot be cut into patches of \(1, 2, 2\)"):
        pack([torch.zeros(3, 1, 3, 4)], (1, 2, 2))


@pytest.mark.parametrize("patch", PATCHES)
def test_the_positions_of_a_clip_do_not_depend_on_another(patch: Patch) -> None:
    grids = pack(latents(), patch).grids
    alone = [positions([grid], patch) for grid in grids]
    assert torch.equal(positions(grids, patch), torch.cat(alone))
    assert torch.equal(positions(grids[::-1], patch), torch.cat(alone[::-1]))


def test_a_base_patch_is_at_its_place_in_the_grid() -> None:
    where = positions([(2, 3, 4)], (1, 2, 2))
    assert where.tolist() == [list(place) for place in product(range(2), range(3), range(4))]


@pytest.mark.parametrize("patch", [(1, 4, 4), (2, 2, 2), (2, 4, 8), (3, 6, 2)])
def test_a_coarse_patch_is_at_the_mean_of_the_base_patches_it_covers(patch: Patch) -> None:
    pt, ph, pw = patch
    grid = (2, 3, 2)
    base_grid = (grid[0] * pt, grid[1] * ph // 2, grid[2] * pw // 2)
    base = positions([base_grid], (1, 2, 2)).reshape(*base_grid, 3)
    means = [
        base[f * pt : (f + 1) * pt, r * ph // 2 : (r + 1) * ph // 2, c * pw // 2 : (c + 1) * pw // 2].mean((0, 1, 2))
        for f, r, c in product(*map(range, grid))
    ]
    torch.testing.assert_close(positions([grid], patch), torch.stack(means), atol=1e-12, rtol=0)  # float64


def test_noise_levels_reach_the_tokens_they_are_meant_for() -> None:
    grids = ((2, 1, 2), (1, 2, 2))
    lengths = (4, 4)
    clips = per_clip(torch.tensor([0.25, 0.75]), lengths)
    assert clips.per_token().flatten().tolist() == [0.25] * 4 + [0.75] * 4
    frames = per_frame([torch.tensor([0.0, 0.5]), torch.tensor([1.0])], grids)
    assert frames.per_token().flatten().tolist() == [0.0, 0.0, 0.5, 0.5] + [1.0] * 4
    assert shared_level(torch.tensor([0.3]), 8).per_token().tolist() == [[torch.tensor(0.3).item()]] * 8


def realistic_lengths(num: int, seed: int = 0) -> list[int]:
    """The 35 buckets of techniques 3.4: 48-96 px, 1-33 frames, 12..324 tokens at 16 px and 4 frames a token."""
    sides = [(48, 48), (48, 64), (64, 64), (64, 80), (64, 96), (80, 80), (96, 96)]
    buckets = [(w // 16) * (h // 16) * (1 + (t - 1) // 4) for w, h in sides for t in (1, 9, 17, 25, 33)]
    draw = random.Random(seed)
    return [draw.choice(buckets) for _ in range(num)]


def any_lengths(num: int, seed: int = 0) -> list[int]:
    """No two sizes need be alike: 12 to 400 tokens."""
    draw = random.Random(seed)
    return [draw.randint(12, 400) for _ in range(num)]


MIXES = {"35 sizes": realistic_lengths, "any size": any_lengths}


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("budget", [512, 1024, 2048, 2560, 65536])
def test_a_plan_loses_nothing_and_fits_the_budget(budget: int, mix: str) -> None:
    lengths = MIXES[mix](1500)
    packs = plan_packs(lengths, budget=budget)
    assert sorted(i for packed in packs for i in packed) == list(range(len(lengths)))
    assert max(sum(lengths[i] for i in packed) for packed in packs) <= budget


@pytest.mark.parametrize("budget", [512, 1024, 2048])
def test_packs_of_a_realistic_mix_are_more_than_95_percent_full(budget: int) -> None:
    lengths = realistic_lengths(3000)
    packs = plan_packs(lengths, budget=budget)[:-1]  # the last one holds what is left
    fill = sum(lengths[i] for packed in packs for i in packed) / (budget * len(packs))
    assert fill > 0.95


def test_a_plan_is_a_pure_function_of_its_arguments() -> None:
    lengths = realistic_lengths(300)
    order = random.Random(1).sample(range(300), 200)
    before = list(order)
    first, again = (plan_packs(lengths, budget=700, order=order) for _ in range(2))
    assert first == again
    assert order == before
    assert sorted(i for packed in first for i in packed) == sorted(order)
    assert first != plan_packs(lengths, budget=700, order=order[::-1])


def tokens_of(packs: list[list[int]], lengths: list[int]) -> list[int]:
    return [sum(lengths[i] for i in packed) for packed in packs]


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("multiple", [3, 4, 8])
def test_packs_are_as_few_as_can_be_where_the_budget_is_a_few_times_the_longest_clip(multiple: int, mix: str) -> None:
    """Which is more than 99% full as soon as an epoch has a hundred of them; no plan has fewer."""
    lengths = MIXES[mix](3000)
    budget = multiple * max(lengths)
    packs = plan_packs(lengths, budget=budget)
    assert len(packs) == -(-sum(lengths) // budget)
    assert len(packs) < 100 or sum(lengths) / (budget * len(packs)) > 0.99


@pytest.mark.parametrize("budget", [8192, 65536])
def test_a_budget_of_hundreds_of_clips_is_filled_too(budget: int) -> None:
    """More clips than the window holds."""
    lengths = realistic_lengths(200 * budget // 80)
    packs = plan_packs(lengths, budget=budget)
    assert sum(lengths) / (budget * len(packs)) > 0.99


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("num_ranks", [2, 3, 8, 64])
def test_ranks_have_equal_work_in_every_step(num_ranks: int, mix: str) -> None:
    """Each takes every num_ranks-th pack; the last pack of an epoch is as large as the others."""
    lengths = MIXES[mix](4000)
    stream = [n for _ in range(3) for n in tokens_of(plan_packs(lengths, budget=1280), lengths)]
    for start in range(0, len(stream) - num_ranks, num_ranks):
        step = stream[start : start + num_ranks]
        assert max(step) <= 1.02 * sum(step) / num_ranks
    shares = [sum(stream[rank : len(stream) // num_ranks * num_ranks : num_ranks]) for rank in range(num_ranks)]
    assert max(shares) <= 1.01 * sum(shares) / num_ranks


@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_the_ranks_of_a_step_wait_little_for_each_other(ranks: int) -> None:
    """Full packs of one long clip and of many short ones are as many tokens, but not as much work."""
    draw = random.Random(3)
    lengths = [draw.choice([16, 64, 100, 400, 1000]) for _ in range(1500)]
    packs = plan_packs(lengths, budget=2000)

    def work(pack: list[int]) -> int:
        return sum(lengths[i] ** 2 for i in pack)

    def busy(order: list[list[int]]) -> float:
        steps = [list(map(work, order[i : i + ranks])) for i in range(0, len(order) - ranks + 1, ranks)]
        return sum(map(sum, steps)) / (ranks * sum(map(max, steps)))

    dealt = list(deal(packs, work, ranks, steps=8))
    assert sorted(dealt) == sorted(packs)
    assert dealt == list(deal(iter(packs), work, ranks, steps=8))
    if ranks == 1:
        assert dealt == packs
    else:
        assert 1 - busy(dealt) < 0.4 * (1 - busy(packs))


@pytest.mark.parametrize("num_clips", [9, 40, 300])
def test_the_last_pack_of_a_small_folder_is_not_a_rest(num_clips: int) -> None:
    lengths = any_lengths(num_clips, seed=3)
    tokens = tokens_of(plan_packs(lengths, budget=1600), lengths)
    assert min(tokens) > 0.9 * max(tokens)


def test_images_short_and_long_clips_share_a_pack() -> None:
    image, short, long = 12, 80, 324
    order = random.Random(0).sample(range(900), 900)
    lengths = [(image, short, long)[i % 3] for i in range(900)]
    kinds = [{lengths[i] for i in packed} for packed in plan_packs(lengths, budget=2560, order=order)]
    assert kinds.count({image, short, long}) > 0.8 * len(kinds)


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("window", [8, 64])
def test_a_clip_that_was_passed_over_goes_before_any_that_came_later(window: int, mix: str) -> None:
    """Ageing: each pack opens with the oldest, so a clip waits for at most as many packs as the window has places."""
    lengths = MIXES[mix](2000)
    turn = {i: number for number, packed in enumerate(plan_packs(lengths, budget=1280, window=window)) for i in packed}
    first_seen = {}
    for number in range(max(turn.values()) + 1):
        waiting = [i for i in range(len(lengths)) if turn[i] >= number]
        assert turn[waiting[0]] == number
        for i in [i for i in waiting if turn[i] == number]:
            first_seen.setdefault(i, number)
        for i in waiting[:window]:
            first_seen.setdefault(i, number)
    assert max(turn[i] - first_seen[i] for i in turn) <= window


@pytest.mark.parametrize("seed", range(30))
def test_the_fullest_choice_is_the_best_of_all_choices(seed: int) -> None:
    draw = random.Random(seed)
    lengths = [draw.randint(1, 40) for _ in range(9)]
    room = draw.randint(0, 120)
    chosen = fullest(lengths, room)
    sums = {sum(n for n, taken in zip(lengths, choice, strict=True) if taken) for choice in product((0, 1), repeat=9)}
    assert sum(lengths[place] for place in chosen) == max(total for total in sums if total <= room)


def test_there_is_no_choice_where_there_is_no_room() -> None:
    assert fullest([3, 4], 2) == fullest([3, 4], -5) == fullest([], 9) == set()


def test_no_clip_waits_long() -> None:
    """A pack opens with the oldest clip that waits: small ones do not starve among large ones."""
    lengths = [300] * 500 + [13] * 3 + [300] * 500
    packs = plan_packs(lengths, budget=640)
    turn = {i: number for number, packed in enumerate(packs) for i in packed}
    assert all(turn[i] <= i for i in turn)


def test_clips_of_equal_length_stand_together_in_a_pack() -> None:
    lengths = realistic_lengths(500)
    for packed in plan_packs(lengths, budget=2048):
        sides = [lengths[i] for i in packed]
        assert sides == sorted(sides, reverse=True)


def test_a_clip_longer_than_the_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="must hold the longest clip of 500 tokens, got 400"):
        plan_packs([10, 500, 20], budget=400)


def test_no_clips_are_no_packs() -> None:
    assert plan_packs([], budget=10) == []
