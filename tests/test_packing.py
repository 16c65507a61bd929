"""Packing: no token is lost or padded, and its position is relative to its own clip."""

import random
from itertools import product

import pytest
import torch
from torch import Tensor

from videogen.packing.bin_packing import balance_ranks, fullest_subset, group_by_budget, plan_packs
from videogen.packing.noise import levels_per_clip, levels_per_frame, shared_level
from videogen.packing.packs import pack, patch_positions, patchify, unpack
from videogen.packing.patch_schedule import Patch

RAGGED = [(3, 1, 4, 8), (3, 5, 8, 4), (3, 1, 4, 4), (3, 4, 12, 4), (3, 6, 4, 20)]
PATCHES: list[Patch] = [(1, 2, 2), (1, 4, 4), (1, 1, 1), (1, 2, 4)]


def latents(shapes: list[tuple[int, int, int, int]] = RAGGED) -> list[Tensor]:
    return [torch.randn(shape) for shape in shapes]


@pytest.mark.parametrize("patch", PATCHES)
def test_unpack_returns_the_packed_latents_bit_for_bit(patch: Patch) -> None:
    clips = latents()
    for clip, unpacked in zip(clips, unpack(pack(clips, patch)), strict=True):
        assert torch.equal(clip, unpacked)


def test_patches_of_two_frames_unpack_to_the_same_latents() -> None:
    clips = latents([(2, 4, 4, 4), (2, 2, 8, 4)])
    packed = pack(clips, (2, 2, 2))
    assert packed.lengths == (8, 8)
    assert all(map(torch.equal, clips, unpack(packed)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_packing_keeps_the_dtype_infinities_and_signed_zeros(dtype: torch.dtype) -> None:
    clip = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 1e-7, 1.0, 2.0, 3.0], dtype=dtype).reshape(1, 2, 2, 2)
    (unpacked,) = unpack(pack([clip], (1, 2, 2)))
    assert unpacked.dtype == dtype
    assert torch.equal(unpacked, clip)
    assert torch.equal(unpacked.signbit(), clip.signbit())


def test_a_pack_has_no_padding() -> None:
    packed = pack(latents(), (1, 2, 2))
    assert packed.lengths == (8, 40, 4, 48, 120)
    assert packed.tokens.shape == (sum(packed.lengths), 3 * 1 * 2 * 2)


def test_a_token_is_ordered_like_a_convolution_weight() -> None:
    """Embedding a token by a linear layer is thus the strided convolution of Wan."""
    latent, weight = torch.randn(3, 4, 6, 8), torch.randn(5, 3, 2, 2, 2)
    convolved = torch.nn.functional.conv3d(latent[None], weight, stride=(2, 2, 2))[0].flatten(1).T
    torch.testing.assert_close(patchify(latent, (2, 2, 2)) @ weight.flatten(1).T, convolved, atol=1e-5, rtol=0)


def test_a_latent_that_the_patch_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 3, 4\) .* cannot be cut into patches of \(1, 2, 2\)"):
        pack([torch.zeros(3, 1, 3, 4)], (1, 2, 2))


@pytest.mark.parametrize("patch", PATCHES)
def test_positions_of_a_clip_do_not_depend_on_the_other_clips(patch: Patch) -> None:
    grids = pack(latents(), patch).grids
    alone = [patch_positions([grid], patch) for grid in grids]
    assert torch.equal(patch_positions(grids, patch), torch.cat(alone))
    assert torch.equal(patch_positions(grids[::-1], patch), torch.cat(alone[::-1]))


def test_the_position_of_a_base_patch_is_its_grid_index() -> None:
    positions = patch_positions([(2, 3, 4)], (1, 2, 2))
    assert positions.tolist() == [list(index) for index in product(range(2), range(3), range(4))]


@pytest.mark.parametrize("patch", [(1, 4, 4), (2, 2, 2), (2, 4, 8), (3, 6, 2)])
def test_the_position_of_a_coarse_patch_is_the_mean_of_its_base_patches(patch: Patch) -> None:
    pt, ph, pw = patch
    grid = (2, 3, 2)
    base_grid = (grid[0] * pt, grid[1] * ph // 2, grid[2] * pw // 2)
    base = patch_positions([base_grid], (1, 2, 2)).reshape(*base_grid, 3)
    means = [
        base[f * pt : (f + 1) * pt, r * ph // 2 : (r + 1) * ph // 2, c * pw // 2 : (c + 1) * pw // 2].mean((0, 1, 2))
        for f, r, c in product(*map(range, grid))
    ]
    torch.testing.assert_close(patch_positions([grid], patch), torch.stack(means), atol=1e-12, rtol=0)  # float64


def test_noise_levels_reach_the_tokens_of_their_clip_or_frame() -> None:
    grids = ((2, 1, 2), (1, 2, 2))
    lengths = (4, 4)
    clips = levels_per_clip(torch.tensor([0.25, 0.75]), lengths)
    assert clips.per_token().flatten().tolist() == [0.25] * 4 + [0.75] * 4
    frames = levels_per_frame([torch.tensor([0.0, 0.5]), torch.tensor([1.0])], grids)
    assert frames.per_token().flatten().tolist() == [0.0, 0.0, 0.5, 0.5] + [1.0] * 4
    assert shared_level(torch.tensor([0.3]), 8).per_token().tolist() == [[torch.tensor(0.3).item()]] * 8


def realistic_lengths(num: int, seed: int = 0) -> list[int]:
    """The 35 buckets of techniques 3.4: 48-96 px, 1-33 frames, 12..324 tokens at 16 px and 4 frames a token."""
    sides = [(48, 48), (48, 64), (64, 64), (64, 80), (64, 96), (80, 80), (96, 96)]
    buckets = [(w // 16) * (h // 16) * (1 + (t - 1) // 4) for w, h in sides for t in (1, 9, 17, 25, 33)]
    rng = random.Random(seed)
    return [rng.choice(buckets) for _ in range(num)]


def any_lengths(num: int, seed: int = 0) -> list[int]:
    """Clips of any size: 12 to 400 tokens."""
    rng = random.Random(seed)
    return [rng.randint(12, 400) for _ in range(num)]


MIXES = {"35 sizes": realistic_lengths, "any size": any_lengths}


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("budget", [512, 1024, 2048, 2560, 65536])
def test_a_plan_holds_every_clip_once_and_fits_the_budget(budget: int, mix: str) -> None:
    lengths = MIXES[mix](1500)
    packs = plan_packs(lengths, budget=budget)
    assert sorted(i for packed in packs for i in packed) == list(range(len(lengths)))
    assert max(sum(lengths[i] for i in packed) for packed in packs) <= budget


@pytest.mark.parametrize("budget", [512, 1024, 2048])
def test_packs_of_a_realistic_mix_are_more_than_95_percent_full(budget: int) -> None:
    lengths = realistic_lengths(3000)
    packs = plan_packs(lengths, budget=budget)[:-1]  # The last pack holds the remaining clips.
    fill = sum(lengths[i] for packed in packs for i in packed) / (budget * len(packs))
    assert fill > 0.95


def test_a_plan_is_a_pure_function_of_its_arguments() -> None:
    lengths = realistic_lengths(300)
    order = random.Random(1).sample(range(300), 200)
    order_before = list(order)
    first, second = (plan_packs(lengths, budget=700, order=order) for _ in range(2))
    assert first == second
    assert order == order_before
    assert sorted(i for packed in first for i in packed) == sorted(order)
    assert first != plan_packs(lengths, budget=700, order=order[::-1])


def tokens_of(packs: list[list[int]], lengths: list[int]) -> list[int]:
    return [sum(lengths[i] for i in packed) for packed in packs]


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("multiple", [3, 4, 8])
def test_packs_are_as_few_as_possible_if_the_budget_is_a_few_times_the_longest_clip(multiple: int, mix: str) -> None:
    """An epoch of a hundred such packs is more than 99% full."""
    lengths = MIXES[mix](3000)
    budget = multiple * max(lengths)
    packs = plan_packs(lengths, budget=budget)
    assert len(packs) == -(-sum(lengths) // budget)
    assert len(packs) < 100 or sum(lengths) / (budget * len(packs)) > 0.99


@pytest.mark.parametrize("budget", [8192, 65536])
def test_a_budget_of_more_clips_than_the_window_is_over_99_percent_full(budget: int) -> None:
    lengths = realistic_lengths(200 * budget // 80)
    packs = plan_packs(lengths, budget=budget)
    assert sum(lengths) / (budget * len(packs)) > 0.99


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("num_ranks", [2, 3, 8, 64])
def test_ranks_have_equally_many_tokens_in_every_step(num_ranks: int, mix: str) -> None:
    """Each rank takes every num_ranks-th pack; the last pack of an epoch is as large as the others."""
    lengths = MIXES[mix](4000)
    stream = [n for _ in range(3) for n in tokens_of(plan_packs(lengths, budget=1280), lengths)]
    for start in range(0, len(stream) - num_ranks, num_ranks):
        step = stream[start : start + num_ranks]
        assert max(step) <= 1.02 * sum(step) / num_ranks
    shares = [sum(stream[rank : len(stream) // num_ranks * num_ranks : num_ranks]) for rank in range(num_ranks)]
    assert max(shares) <= 1.01 * sum(shares) / num_ranks


@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_balancing_ranks_removes_most_of_their_idle_time(ranks: int) -> None:
    """Full packs of one long clip and of many short ones have as many tokens, but not as much work."""
    rng = random.Random(3)
    lengths = [rng.choice([16, 64, 100, 400, 1000]) for _ in range(1500)]
    packs = plan_packs(lengths, budget=2000)

    def work(pack: list[int]) -> int:
        return sum(lengths[i] ** 2 for i in pack)

    def utilization(order: list[list[int]]) -> float:
        steps = [list(map(work, order[i : i + ranks])) for i in range(0, len(order) - ranks + 1, ranks)]
        return sum(map(sum, steps)) / (ranks * sum(map(max, steps)))

    balanced = list(balance_ranks(packs, work, ranks, steps=8))
    assert sorted(balanced) == sorted(packs)
    assert balanced == list(balance_ranks(iter(packs), work, ranks, steps=8))
    if ranks == 1:
        assert balanced == packs
    else:
        assert 1 - utilization(balanced) < 0.4 * (1 - utilization(packs))


@pytest.mark.parametrize("num_clips", [9, 40, 300])
def test_the_packs_of_a_small_folder_are_evenly_filled(num_clips: int) -> None:
    lengths = any_lengths(num_clips, seed=3)
    tokens = tokens_of(plan_packs(lengths, budget=1600), lengths)
    assert min(tokens) > 0.9 * max(tokens)


def test_most_packs_mix_images_with_short_and_long_clips() -> None:
    image, short, long = 12, 80, 324
    order = random.Random(0).sample(range(900), 900)
    lengths = [(image, short, long)[i % 3] for i in range(900)]
    kinds = [{lengths[i] for i in packed} for packed in plan_packs(lengths, budget=2560, order=order)]
    assert kinds.count({image, short, long}) > 0.8 * len(kinds)


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("window", [8, 64])
def test_a_clip_waits_for_at_most_as_many_packs_as_the_window_is_long(window: int, mix: str) -> None:
    """Each pack opens with the clip that has waited longest."""
    lengths = MIXES[mix](2000)
    packs = plan_packs(lengths, budget=1280, window=window)
    pack_of = {i: number for number, packed in enumerate(packs) for i in packed}
    first_seen = {}
    for number in range(max(pack_of.values()) + 1):
        waiting = [i for i in range(len(lengths)) if pack_of[i] >= number]
        assert pack_of[waiting[0]] == number
        for i in [*(i for i in waiting if pack_of[i] == number), *waiting[:window]]:
            first_seen.setdefault(i, number)
    assert max(pack_of[i] - first_seen[i] for i in pack_of) <= window


@pytest.mark.parametrize("seed", range(30))
def test_the_fullest_subset_is_the_best_of_all_subsets(seed: int) -> None:
    rng = random.Random(seed)
    lengths = [rng.randint(1, 40) for _ in range(9)]
    room = rng.randint(0, 120)
    chosen = fullest_subset(lengths, room)
    sums = {sum(n for n, used in zip(lengths, subset, strict=True) if used) for subset in product((0, 1), repeat=9)}
    assert sum(lengths[place] for place in chosen) == max(total for total in sums if total <= room)


def test_the_fullest_subset_is_empty_if_no_clip_fits() -> None:
    assert fullest_subset([3, 4], 2) == fullest_subset([3, 4], -5) == fullest_subset([], 9) == set()


def test_short_clips_do_not_starve_among_long_ones() -> None:
    lengths = [300] * 500 + [13] * 3 + [300] * 500
    packs = plan_packs(lengths, budget=640)
    pack_of = {i: number for number, packed in enumerate(packs) for i in packed}
    assert all(pack_of[i] <= i for i in pack_of)


def test_clips_of_equal_length_are_neighbours_in_a_pack() -> None:
    lengths = realistic_lengths(500)
    for packed in plan_packs(lengths, budget=2048):
        packed_lengths = [lengths[i] for i in packed]
        assert packed_lengths == sorted(packed_lengths, reverse=True)


def test_a_clip_longer_than_the_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="must hold the longest clip of 500 tokens, got 400"):
        plan_packs([10, 500, 20], budget=400)


def test_a_plan_without_clips_has_no_packs() -> None:
    assert plan_packs([], budget=10) == []


def test_neighbours_are_grouped_in_order_up_to_the_budget_and_a_long_item_is_alone() -> None:
    lengths = [3, 4, 3, 1, 12, 10, 2, 8, 1]
    groups = list(group_by_budget(range(len(lengths)), lengths.__getitem__, 10))
    assert groups == [[0, 1, 2], [3], [4], [5], [6, 7], [8]]
    assert list(group_by_budget([], len, 10)) == []
