"""The three loaders of bench packing differ in their plans alone, and each plan is the one of its trainers."""

import random

import pytest
import torch

from tests.bench.packing import BUDGET, is_step_full, task_loss
from tests.bench.packing_plans import (
    Buckets,
    Shape,
    choose_buckets,
    measure_plan,
    mixed_sources,
    native_shape,
    plan_buckets,
    plan_packed,
    plan_padded,
    visible_pixels,
)
from tests.conftest import CHANNELS, draw_texts, seeded
from videogen.models.dit import VideoDiT
from videogen.packing.packs import pack
from videogen.training.flow_matching import sample_levels, sample_task

SOURCES = mixed_sources(300)
SHAPES = [native_shape(source, 400 // (1 + (source.frames - 1) // 4)) for source in SOURCES]


def test_a_padded_batch_has_the_loss_and_the_gradient_of_the_pack(dit: VideoDiT) -> None:
    clips = [torch.randn((CHANNELS, *shape), generator=seeded(1)) for shape in ((3, 4, 8), (1, 8, 4), (2, 4, 4))]
    clean = pack(clips, (1, 2, 2))
    levels = sample_levels(clean, {"nothing": 1.0}, base_tokens=20, uniform=0.1, generator=seeded(2))
    task = sample_task(clean, draw_texts((3, 5, 2)), levels, base_tokens=20, generator=seeded(3))
    weight = dit.blocks[0].attn1.to_v.weight  # type: ignore[union-attr]
    losses = [task_loss(dit, task, padded=is_padded) for is_padded in (False, True)]
    gradients = [torch.autograd.grad(loss, weight)[0] for loss in losses]  # type: ignore[arg-type]
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-4)  # only the order of sums differs


def test_an_optimiser_step_is_as_near_to_the_token_budget_as_whole_batches_allow() -> None:
    rng = random.Random(0)
    for largest_batch in (300, 1300, BUDGET):
        tokens, step_tokens = 0, []
        for batch_tokens in (rng.randint(largest_batch // 2, largest_batch) for _ in range(2000)):
            if is_step_full(tokens, batch_tokens):
                step_tokens.append(tokens)
                tokens = 0
            tokens += batch_tokens
        assert sum(step_tokens) / len(step_tokens) == pytest.approx(BUDGET, rel=0.02 if largest_batch < BUDGET else 0.3)
        assert all(abs(BUDGET - total) <= largest_batch / 2 for total in step_tokens)
    assert not is_step_full(0, 2 * BUDGET)


def test_packs_and_padded_batches_contain_every_clip_and_buckets_drop_some() -> None:
    for plan in (
        plan_packed(SHAPES, budget=BUDGET, ranks=1, seed=0),
        plan_padded(SHAPES, budget=BUDGET, ranks=1, seed=0),
    ):
        assert sorted(i for batch in plan.batches for i in batch) == list(range(len(SOURCES)))
        assert all(sum(plan.lengths(batch)) <= BUDGET for batch in plan.batches)
    buckets = choose_buckets(SOURCES, 64 * 64, budget=BUDGET)
    plan = plan_buckets(SOURCES, buckets, budget=BUDGET, ranks=1, seed=0)
    bucketed = [i for batch in plan.batches for i in batch]
    assert len(bucketed) == len(set(bucketed)) < len(SOURCES)
    assert all(len({plan.shapes[i] for i in batch}) == 1 for batch in plan.batches)
    assert all(sum(plan.lengths(batch)) <= BUDGET for batch in plan.batches)
    measures = measure_plan(plan, SOURCES, 1, BUDGET)
    assert measures["dropped"] == round(1 - len(bucketed) / len(SOURCES), 4) == round(plan.dropped() / len(SOURCES), 4)
    assert measures["padding"] == 0


def test_padding_is_the_share_of_computed_tokens_that_belong_to_no_clip() -> None:
    plan = plan_padded([Shape(16 * n, 16, 1) for n in (4, 4, 2, 2)], budget=8, ranks=1, seed=0)
    assert [len(batch) for batch in plan.batches] == [2, 2]
    useful, computed = 12, sum(2 * max(plan.shapes[i].tokens for i in batch) for batch in plan.batches)
    assert measure_plan(plan, plan.shapes, 1, 8)["padding"] == round(1 - useful / computed, 4)


def test_visible_pixels_are_the_source_pixels_in_the_scaled_and_cropped_clip() -> None:
    source = Shape(64, 48, 17)
    assert visible_pixels(source, Shape(64, 48, 17)) == source.pixels
    assert visible_pixels(source, Shape(32, 24, 17)) == source.pixels  # smaller, but all of it
    assert visible_pixels(source, Shape(48, 48, 17)) == 48 * 48 * 17
    assert visible_pixels(source, Shape(64, 48, 9)) == 64 * 48 * 9
    assert Buckets(64 * 64, (9, 17)).shape_of(Shape(64, 64, 1)) is None  # an image has no bucket among those of videos
