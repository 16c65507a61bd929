"""The three loaders of bench packing are told apart by their plans alone, and each plan is what its trainers make."""

import random

import pytest
import torch

from tests.bench.packing import BUDGET, error_of, is_full
from tests.bench.packing_plans import (
    Buckets,
    Shape,
    best_buckets,
    bucketed,
    facts,
    kept,
    mixed_sources,
    native,
    packed,
    padded,
)
from tests.conftest import CHANNELS, draw_texts, seeded
from videogen.models.dit import VideoDiT
from videogen.packing.packs import pack
from videogen.training.flow_matching import draw_levels, draw_task

SOURCES = mixed_sources(300)
SHAPES = [native(source, 400 // (1 + (source.frames - 1) // 4)) for source in SOURCES]


def test_a_padded_batch_has_the_loss_and_the_gradient_of_the_pack(dit: VideoDiT) -> None:
    clips = [torch.randn((CHANNELS, *shape), generator=seeded(1)) for shape in ((3, 4, 8), (1, 8, 4), (2, 4, 4))]
    clean = pack(clips, (1, 2, 2))
    levels = draw_levels(clean, {"nothing": 1.0}, base_tokens=20, uniform=0.1, generator=seeded(2))
    task = draw_task(clean, draw_texts((3, 5, 2)), levels, base_tokens=20, generator=seeded(3))
    weight = dit.blocks[0].attn1.to_v.weight  # type: ignore[union-attr]
    losses = [error_of(dit, task, padded=way) for way in (False, True)]
    gradients = [torch.autograd.grad(loss, weight)[0] for loss in losses]  # type: ignore[arg-type]
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-4)  # only the order of sums differs


def test_an_optimiser_step_has_the_data_of_the_budget_as_nearly_as_batches_allow() -> None:
    draw = random.Random(0)
    for most in (300, 1300, BUDGET):
        step, steps = 0, []
        for more in (draw.randint(most // 2, most) for _ in range(2000)):
            if is_full(step, more):
                steps.append(step)
                step = 0
            step += more
        assert sum(steps) / len(steps) == pytest.approx(BUDGET, rel=0.02 if most < BUDGET else 0.3)
        assert all(abs(BUDGET - tokens) <= most / 2 for tokens in steps)
    assert not is_full(0, 2 * BUDGET)


def test_packs_and_padded_batches_leave_no_clip_out_and_buckets_do() -> None:
    for plan in (packed(SHAPES, budget=BUDGET, ranks=1, seed=0), padded(SHAPES, budget=BUDGET, ranks=1, seed=0)):
        assert sorted(i for batch in plan.batches for i in batch) == list(range(len(SOURCES)))
        assert all(sum(plan.lengths(batch)) <= BUDGET for batch in plan.batches)
    buckets = best_buckets(SOURCES, 64 * 64, budget=BUDGET)
    plan = bucketed(SOURCES, buckets, budget=BUDGET, ranks=1, seed=0)
    seen = [i for batch in plan.batches for i in batch]
    assert len(seen) == len(set(seen)) < len(SOURCES)
    assert all(len({plan.shapes[i] for i in batch}) == 1 for batch in plan.batches)
    assert all(sum(plan.lengths(batch)) <= BUDGET for batch in plan.batches)
    found = facts(plan, SOURCES, 1, BUDGET)
    assert found["dropped"] == round(1 - len(seen) / len(SOURCES), 4) == round(plan.dropped() / len(SOURCES), 4)
    assert found["padding"] == 0


def test_padding_is_what_a_batch_computes_beyond_its_clips() -> None:
    plan = padded([Shape(16 * n, 16, 1) for n in (4, 4, 2, 2)], budget=8, ranks=1, seed=0)
    assert [len(batch) for batch in plan.batches] == [2, 2]
    useful, computed = 12, sum(2 * max(plan.shapes[i].tokens for i in batch) for batch in plan.batches)
    assert facts(plan, plan.shapes, 1, 8)["padding"] == round(1 - useful / computed, 4)


def test_source_pixels_are_those_that_the_target_shows() -> None:
    source = Shape(64, 48, 17)
    assert kept(source, Shape(64, 48, 17)) == source.pixels
    assert kept(source, Shape(32, 24, 17)) == source.pixels  # smaller, but all of it
    assert kept(source, Shape(48, 48, 17)) == 48 * 48 * 17
    assert kept(source, Shape(64, 48, 9)) == 64 * 48 * 9
    assert Buckets(64 * 64, (9, 17)).shape_of(Shape(64, 64, 1)) is None  # a still where only videos are wanted
