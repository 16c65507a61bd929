"""Approximate reuse of blocks: nothing where it is off, less work where it is on, and how far that leads away."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.conftest import draw_texts, tiny_dit
from tests.test_wan_pipeline import PROMPT, SETTINGS
from tests.wan_folders import save
from videogen.config.sample import SampleConfig
from videogen.models.block_cache import BlockCache, Change, rows_of
from videogen.models.dit import VideoDiT
from videogen.packing.noise import shared_level
from videogen.packing.packs import pack
from videogen.sampling import denoiser
from videogen.sampling.pipeline import ClipRequest, VideoPipeline
from videogen.sweep.axes import read_axes
from videogen.sweep.plan import Plan, Run
from videogen.sweep.shared_calls import BatchedRuns

CONFIG = SampleConfig(size="48x32", frames=9, steps=12, guidance=2.0, negative="left", shift=2.0)
JOBS = [
    ClipRequest("a large red circle moves right on a black background", 1),
    ClipRequest("blue", 2),
    ClipRequest("a star", 3),
]
BOTH = pytest.mark.parametrize("rule", ["first_block_cache", "mag_cache"])
SMALL = {"first_block_cache": 1e-9, "mag_cache": 1e-9}  # on, but nothing is ever so near
MIDDLE = {"first_block_cache": 0.07, "mag_cache": 0.01}  # some of the clips stay below
LARGE = {"first_block_cache": 0.3, "mag_cache": 0.3}


@contextmanager
def counted(dit: VideoDiT) -> Iterator[list[int]]:
    """How many tokens each block has seen."""
    seen = [0] * len(dit.blocks)

    def count(i: int, x: Tensor) -> None:
        seen[i] += len(x)

    hooks = [
        block.register_forward_pre_hook(lambda _, args, i=i: count(i, args[0])) for i, block in enumerate(dit.blocks)
    ]
    yield seen
    for hook in hooks:
        hook.remove()


def psnr(one: Tensor, other: Tensor) -> float:
    return float(10 * torch.log10((other.max() - other.min()) ** 2 / (one - other).square().mean()))


@BOTH
def test_a_cache_that_is_never_near_enough_changes_no_bit(rule: str, pipeline: VideoPipeline) -> None:
    wanted = pipeline.sample(JOBS, CONFIG)
    cache = BlockCache(config := replace(CONFIG, **{rule: SMALL[rule]}))
    for one, other in zip(pipeline.sample(JOBS, config, block_cache=cache), wanted, strict=True):
        assert torch.equal(one, other)
    assert cache.share == 1
    assert cache.asked == len(JOBS) * 2 * CONFIG.steps


def test_settings_of_zero_make_no_cache(pipeline: VideoPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("videogen.models.block_cache.BlockCache", None)  # it would be called
    pipeline.sample(JOBS[:1], CONFIG)


@BOTH
@pytest.mark.parametrize("together", [True, False], ids=["branches in one call", "one after the other"])
def test_a_threshold_computes_fewer_blocks_and_stays_near(
    rule: str, together: bool, pipeline: VideoPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not together:
        monkeypatch.setattr(denoiser, "TOKENS_PER_CALL", 0)
    wanted = pipeline.sample(JOBS, CONFIG)
    tokens, calls = 3 * (3 * 2 * 3), 2 * CONFIG.steps  # of three clips; both branches of every step
    cache = BlockCache(config := replace(CONFIG, **{rule: LARGE[rule]}))
    with counted(pipeline.transformer) as seen:
        made = pipeline.sample(JOBS, config, block_cache=cache)
    assert seen[0] == (tokens * calls if rule == "first_block_cache" else seen[1])
    assert seen[1] < 0.8 * tokens * calls
    assert cache.share == pytest.approx(sum(seen) / (2 * tokens * calls))
    for one, other in zip(made, wanted, strict=True):
        assert not torch.equal(one, other)
        assert psnr(one, other) > 25


@BOTH
def test_each_clip_of_a_pack_decides_alone(rule: str, pipeline: VideoPipeline) -> None:
    config = replace(CONFIG, **{rule: MIDDLE[rule]})
    caches = [BlockCache(config) for _ in range(4)]
    together = pipeline.sample(JOBS, config, block_cache=caches[3])
    for job, cache, one in zip(JOBS, caches, together, strict=False):
        (alone,) = pipeline.sample([job], config, block_cache=cache)
        torch.testing.assert_close(one, alone, atol=1e-4, rtol=0)  # float32, over the steps
    assert sum(cache.computed for cache in caches[:3]) == pytest.approx(caches[3].computed)
    shares = [cache.share for cache in caches[:3]]
    assert len(set(shares)) > 1, "all of them decided alike: this proves little"


@torch.no_grad()
@pytest.mark.parametrize("clips", [[1], [0, 2], [2], [0, 1, 2]])
def test_some_clips_of_a_ragged_pack_go_through_the_blocks_as_in_the_whole(clips: list[int]) -> None:
    model = tiny_dit()
    video = pack([torch.randn(4, t, h, w) for t, h, w in ((1, 4, 4), (3, 4, 2), (2, 2, 6))], (1, 2, 2))
    text, levels = draw_texts((3, 7, 5)), shared_level(torch.tensor([0.4]), len(video.tokens))
    wanted = model(video, levels, text)
    rows = list(rows_of(video.lengths, clips))

    def around(x: Tensor, lengths: tuple[int, ...], blocks: object) -> Tensor:
        out = torch.full_like(x, torch.nan)
        out[rows] = blocks(blocks(x[rows], slice(0, 1), clips), slice(1, None), clips)  # type: ignore[operator]
        return out

    made = model(video, levels, text, around=around)
    torch.testing.assert_close(made[rows], wanted[rows], atol=1e-5, rtol=0)
    assert made.isnan().any(1).sum() == len(video.tokens) - len(rows)


def test_magcache_keeps_its_bound() -> None:
    """Sizes that halve at each call: the error of one reuse is a half, of a second three quarters more."""
    cache, ones = BlockCache(replace(CONFIG, mag_cache=1.3)), torch.ones(2, 2)
    cache.changes["a"] = Change(None, ones, 1.0, 0.5)
    assert [cache._bounded("a", ones) for _ in range(3)] == [True, True, False]
    assert cache.changes["a"].error == 1.25
    assert cache._seen("a", ones / 8).trend == pytest.approx((torch.ones(2, 2) / 8).norm().item() ** (1 / 3))
    assert not cache._bounded("b", ones)
    assert not cache._bounded("a", torch.ones(3, 2)), "another patch size"


@BOTH
def test_two_experts_do_not_mix_what_they_remember(rule: str, tmp_path: Path) -> None:
    save("T2V A14B", tmp_path)
    ours = VideoPipeline.from_pretrained(tmp_path)
    config = replace(SETTINGS, steps=20, **{rule: LARGE[rule]})
    cache = BlockCache(config)
    ours.sample([ClipRequest(PROMPT, 5)], config, block_cache=cache)
    assert {key[0] for key in cache.changes} == {0, 1}  # type: ignore[index]
    assert len(cache.changes) == 4
    assert cache.share < 1


@BOTH
def test_a_sweep_varies_it_and_says_what_it_saved(rule: str, pipeline: VideoPipeline) -> None:
    runs = [Run(JOBS[0].prompt, 1, replace(CONFIG, **{rule: value})) for value in (0.0, LARGE[rule])]
    packer = BatchedRuns(pipeline)
    assert len(packer.packs(runs)) == 2
    exact, near = (packer.denoise([run])[0] for run in runs)
    assert exact.latent is not None
    assert near.latent is not None, near.error
    assert torch.equal(near.latent, pipeline.sample(JOBS[:1], runs[1].config)[0])
    assert near.evaluations == exact.evaluations == 2 * CONFIG.steps
    assert near.evaluations_reused > 0
    assert psnr(near.latent, exact.latent) > 25


@BOTH
def test_a_sweep_measures_reuse_against_none(rule: str) -> None:
    runs = [Run(JOBS[0].prompt, 1, replace(CONFIG, **{rule: value})) for value in (0.0, 0.1)]
    plan = Plan(bases=tuple(runs[:1]), axes=read_axes([f"{rule}=0,0.1"]), defaults=CONFIG, reference_steps=48)
    assert [run.config for run in plan.runs()] == [run.config for run in runs]
    exact, near = (plan.reference(run) for run in runs)
    assert exact == near
    assert exact is not None
    assert exact.config.first_block_cache == exact.config.mag_cache == 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mag_cache": -0.1}, "mag_cache must be 0 or more, got -0.1"),
        ({"mag_cache": 0.1, "first_block_cache": 0.1}, "set one of them to 0"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SampleConfig(**settings)  # type: ignore[arg-type]
