"""A run of a sweep makes the same latent in a pack as alone, and no velocity is computed twice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.sweeps import PROMPTS, Counter, plan_of
from videogen.sampling.cost import num_evaluations
from videogen.sampling.pipeline import ClipRequest, VideoPipeline
from videogen.sweep.plan import Run
from videogen.sweep.runner import sweep
from videogen.sweep.shared_calls import BatchedRuns


def sample_alone(pipeline: VideoPipeline, run: Run) -> Tensor:
    return pipeline.sample([ClipRequest(run.prompt, run.seed)], run.config)[0]


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc"])
def test_a_run_makes_the_same_latent_in_a_pack_as_alone(pipeline: VideoPipeline, sampler: str) -> None:
    words = ["guidance=1,2,3", "guidance_interval=[0,1],[0.3,0.9]", "cfg_zero=true,false", "negative=,a blue star"]
    runs = plan_of([f"sampler={sampler}", "steps=3", *words], prompts=PROMPTS).runs()
    batch = BatchedRuns(pipeline, tokens_per_pack=40 * 8)
    for pack in batch.packs(runs):
        for run, result in zip(pack, batch.denoise(pack), strict=True):
            assert result.latent is not None, result.error
            # The tolerance is float32's over the steps.
            torch.testing.assert_close(result.latent, sample_alone(pipeline, run), atol=1e-4, rtol=0)


def test_packs_leave_no_run_out_and_fit_the_budget(pipeline: VideoPipeline) -> None:
    runs = plan_of(["steps=1,2", "guidance=1,2,3", "size=32x32,48x32"], seeds=range(3)).runs()
    batch = BatchedRuns(pipeline, tokens_per_pack=40)
    packs = batch.packs(runs)
    assert sorted(run.key for pack in packs for run in pack) == sorted(run.key for run in runs)
    for pack in packs:
        assert len({(run.config.size, run.config.steps) for run in pack}) == 1
        assert 2 * sum(batch.num_tokens(run) for run in pack) <= 40


def test_an_evaluation_that_several_runs_share_is_computed_once(pipeline: VideoPipeline) -> None:
    """The steps lie at 1, 2/3 and 1/3: runs whose guidance begins at 1/3 share the first two with an unguided run."""
    interval = "guidance_interval=[0,0.4]"
    runs = plan_of(["steps=3", "shift=1", "sampler=euler", "guidance=1,2,3", interval]).runs()
    counter, batch = Counter(pipeline.transformer), BatchedRuns(pipeline)
    results = batch.denoise(runs)
    counter.hook.remove()
    assert [result.evaluations for result in results] == [3, 4, 4]
    assert counter.clips == 3 + 1  # one run, and one negative prompt at the last step for both guidance scales
    assert sum(result.evaluations - result.evaluations_reused for result in results) == counter.clips
    for run, result in zip(runs, results, strict=True):
        assert result.latent is not None
        torch.testing.assert_close(result.latent, sample_alone(pipeline, run), atol=1e-4, rtol=0)


def test_a_later_pack_reuses_the_first_step_of_the_same_noise(pipeline: VideoPipeline) -> None:
    batch = BatchedRuns(pipeline)
    batch.denoise(plan_of(["steps=2", "sampler=euler"]).runs())
    counter = Counter(pipeline.transformer)
    (result,) = batch.denoise(plan_of(["steps=3", "sampler=dpmpp_2m"]).runs())
    counter.hook.remove()
    assert result.evaluations == 6
    assert counter.clips == 4


def test_runs_of_transposed_sizes_and_one_seed_share_no_evaluation(pipeline: VideoPipeline) -> None:
    """Their noise has the same numbers in another shape."""
    runs = plan_of(["size=32x64,64x32", "guidance=1"]).runs()
    batch = BatchedRuns(pipeline)
    for pack in batch.packs(runs):
        for run, result in zip(pack, batch.denoise(pack), strict=True):
            assert result.latent is not None, result.error
            torch.testing.assert_close(result.latent, sample_alone(pipeline, run), atol=1e-4, rtol=0)


def test_euler_reuses_what_heun_evaluated(pipeline: VideoPipeline) -> None:
    batch = BatchedRuns(pipeline)
    batch.denoise(plan_of(["steps=2", "sampler=heun", "guidance=1"]).runs())
    (result,) = batch.denoise(plan_of(["steps=2", "sampler=euler", "guidance=1"]).runs())
    assert (result.evaluations, result.evaluations_reused) == (2, 2)


def test_a_sweep_encodes_each_text_once(pipeline: VideoPipeline, tmp_path: Path) -> None:
    counter = Counter(pipeline.text_encoder)
    sweep(pipeline, plan_of(["steps=1,2", "guidance=1,2"], prompts=PROMPTS, seeds=[0, 1]), tmp_path / "s")
    counter.hook.remove()
    assert counter.calls <= 3  # two prompts and the empty one; those of equal length share a call


@pytest.mark.parametrize("sampler", ["euler", "heun", "unipc"])
def test_a_run_counts_as_many_evaluations_as_its_clip_alone(pipeline: VideoPipeline, sampler: str) -> None:
    runs = plan_of([f"sampler={sampler}", "steps=3", "guidance=1,2"]).runs()
    results = BatchedRuns(pipeline).denoise(runs)
    assert [result.evaluations for result in results] == [num_evaluations(run.config) for run in runs]
