"""Block caches: off, they change nothing; on, fewer blocks run and the clips stay close."""

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
from videogen.models.block_cache import BlockCache, Blocks, Residual
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
SMALL = {"first_block_cache": 1e-9, "mag_cache": 1e-9}  # The cache is on, but no change is ever so small.
MIDDLE = {"first_block_cache": 0.07, "mag_cache": 0.01}  # Some of the clips stay below it.
LARGE = {"first_block_cache": 0.3, "mag_cache": 0.3}


@contextmanager
def count_tokens(dit: VideoDiT) -> Iterator[list[int]]:
    """Count the tokens that each block runs on."""
    num_tokens = [0] * len(dit.blocks)

    def count(i: int, x: Tensor) -> None:
        num_tokens[i] += len(x)

    hooks = [
        block.register_forward_pre_hook(lambda _, args, i=i: count(i, args[0])) for i, block in enumerate(dit.blocks)
    ]
    yield num_tokens
    for hook in hooks:
        hook.remove()


def psnr(latent: Tensor, exact: Tensor) -> float:
    return float(10 * torch.log10((exact.max() - exact.min()) ** 2 / (latent - exact).square().mean()))


@BOTH
def test_a_threshold_that_is_never_met_changes_no_bit(rule: str, pipeline: VideoPipeline) -> None:
    expected = pipeline.sample(JOBS, CONFIG)
    cache = BlockCache(config := replace(CONFIG, **{rule: SMALL[rule]}))
    assert all(map(torch.equal, pipeline.sample(JOBS, config, block_cache=cache), expected))
    assert cache.computed_share == 1
    assert cache.num_requested == len(JOBS) * 2 * CONFIG.steps


def test_settings_of_zero_make_no_cache(pipeline: VideoPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("videogen.models.block_cache.BlockCache", None)  # A call would fail.
    pipeline.sample(JOBS[:1], CONFIG)


@BOTH
@pytest.mark.parametrize("together", [True, False], ids=["branches in one call", "one after the other"])
def test_a_large_threshold_runs_fewer_blocks_and_the_clips_stay_close(
    rule: str, together: bool, pipeline: VideoPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not together:
        monkeypatch.setattr(denoiser, "TOKENS_PER_CALL", 0)
    exact_latents = pipeline.sample(JOBS, CONFIG)
    tokens, calls = 3 * (3 * 2 * 3), 2 * CONFIG.steps  # of three clips; both branches of every step
    cache = BlockCache(config := replace(CONFIG, **{rule: LARGE[rule]}))
    with count_tokens(pipeline.transformer) as num_tokens:
        latents = pipeline.sample(JOBS, config, block_cache=cache)
    assert num_tokens[0] == (tokens * calls if rule == "first_block_cache" else num_tokens[1])
    assert num_tokens[1] < 0.8 * tokens * calls
    assert cache.computed_share == pytest.approx(sum(num_tokens) / (2 * tokens * calls))
    for latent, exact in zip(latents, exact_latents, strict=True):
        assert not torch.equal(latent, exact)
        assert psnr(latent, exact) > 25


@BOTH
def test_each_clip_of_a_pack_decides_alone(rule: str, pipeline: VideoPipeline) -> None:
    config = replace(CONFIG, **{rule: MIDDLE[rule]})
    caches = [BlockCache(config) for _ in range(4)]
    together = pipeline.sample(JOBS, config, block_cache=caches[3])
    for job, cache, packed in zip(JOBS, caches, together, strict=False):
        (alone,) = pipeline.sample([job], config, block_cache=cache)
        torch.testing.assert_close(packed, alone, atol=1e-4, rtol=0)  # float32, over the steps
    assert sum(cache.num_computed for cache in caches[:3]) == pytest.approx(caches[3].num_computed)
    shares = [cache.computed_share for cache in caches[:3]]
    assert len(set(shares)) > 1, "all clips decided alike, so this test proves little"


@torch.no_grad()
@pytest.mark.parametrize("clips", [[1], [0, 2], [2], [0, 1, 2]])
def test_the_blocks_run_on_some_clips_of_a_ragged_pack_as_on_the_whole_pack(clips: list[int]) -> None:
    model = tiny_dit()
    video = pack([torch.randn(4, t, h, w) for t, h, w in ((1, 4, 4), (3, 4, 2), (2, 2, 6))], (1, 2, 2))
    text, levels = draw_texts((3, 7, 5)), shared_level(torch.tensor([0.4]), len(video.tokens))
    whole = model(video, levels, text)
    clip_rows = torch.arange(len(video.tokens)).split(video.lengths)
    rows = torch.cat([clip_rows[i] for i in clips])

    def run_blocks(x: Tensor, lengths: tuple[int, ...], blocks: Blocks) -> Tensor:
        out = torch.full_like(x, torch.nan)
        out[rows] = blocks(blocks(x[rows], slice(0, 1), clips), slice(1, None), clips)
        return out

    partial = model(video, levels, text, run_blocks=run_blocks)
    torch.testing.assert_close(partial[rows], whole[rows], atol=1e-5, rtol=0)
    assert partial.isnan().any(1).sum() == len(video.tokens) - len(rows)


def test_magcache_keeps_its_error_bound() -> None:
    """The norm halves at each call: the error of one skip is a half, and a second adds three quarters."""
    cache, ones = BlockCache(replace(CONFIG, mag_cache=1.3)), torch.ones(2, 2)
    cache.residuals["a"] = Residual(None, ones, 1.0, 0.5)
    assert [cache._try_skip("a", ones) for _ in range(3)] == [True, True, False]
    assert cache.residuals["a"].error == 1.25
    ratio = cache._with_norm_ratio("a", ones / 8).norm_ratio
    assert ratio == pytest.approx((torch.ones(2, 2) / 8).norm().item() ** (1 / 3))
    assert not cache._try_skip("b", ones)
    assert not cache._try_skip("a", torch.ones(3, 2)), "another patch size"


@BOTH
def test_two_experts_keep_their_own_residuals(rule: str, tmp_path: Path) -> None:
    save("T2V A14B", tmp_path)
    pipeline = VideoPipeline.from_pretrained(tmp_path)
    config = replace(SETTINGS, steps=20, **{rule: LARGE[rule]})
    cache = BlockCache(config)
    pipeline.sample([ClipRequest(PROMPT, 5)], config, block_cache=cache)
    assert {key[0] for key in cache.residuals} == {0, 1}  # type: ignore[index]
    assert len(cache.residuals) == 4
    assert cache.computed_share < 1


@BOTH
def test_a_sweep_varies_the_threshold_and_counts_the_reused_evaluations(rule: str, pipeline: VideoPipeline) -> None:
    runs = [Run(JOBS[0].prompt, 1, replace(CONFIG, **{rule: value})) for value in (0.0, LARGE[rule])]
    batch = BatchedRuns(pipeline)
    assert len(batch.packs(runs)) == 2
    exact, cached = (batch.denoise([run])[0] for run in runs)
    assert exact.latent is not None
    assert cached.latent is not None, cached.error
    assert torch.equal(cached.latent, pipeline.sample(JOBS[:1], runs[1].config)[0])
    assert cached.evaluations == exact.evaluations == 2 * CONFIG.steps
    assert cached.evaluations_reused > 0
    assert psnr(cached.latent, exact.latent) > 25


@BOTH
def test_the_reference_of_a_cached_run_has_no_cache(rule: str) -> None:
    runs = [Run(JOBS[0].prompt, 1, replace(CONFIG, **{rule: value})) for value in (0.0, 0.1)]
    plan = Plan(bases=tuple(runs[:1]), axes=read_axes([f"{rule}=0,0.1"]), defaults=CONFIG, reference_steps=48)
    assert [run.config for run in plan.runs()] == [run.config for run in runs]
    reference, cached_reference = (plan.reference(run) for run in runs)
    assert reference == cached_reference
    assert reference is not None
    assert reference.config.first_block_cache == reference.config.mag_cache == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mag_cache": -0.1}, "mag_cache must be 0 or more, got -0.1"),
        ({"mag_cache": 0.1, "first_block_cache": 0.1}, "set one of them to 0"),
    ],
)
def test_invalid_thresholds_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SampleConfig(**settings)  # type: ignore[arg-type]
