"""Sweeps: runs of a pack are the runs alone, and the network is asked nothing twice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.sweeps import PROMPTS, Counter, plan_of
from videogen.sampling.cost import num_evaluations
from videogen.sampling.pipeline import Job, VideoPipeline
from videogen.sweep.plan import Run
from videogen.sweep.runner import sweep
from videogen.sweep.shared_calls import Packer


def alone(pipeline: VideoPipeline, run: Run) -> Tensor:
    return pipeline.sample([Job(run.prompt, run.seed)], run.config)[0]


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc"])
def test_a_run_in_a_pack_is_the_run_alone(pipeline: VideoPipeline, sampler: str) -> None:
    words = ["guidance=1,2,3", "guidance_interval=[0,1],[0.3,0.9]", "cfg_zero=true,false", "negative=,a blue star"]
    runs = plan_of([f"sampler={sampler}", "steps=3", *words], prompts=PROMPTS).runs()
    packer = Packer(pipeline, tokens_at_once=40 * 8)
    for pack in packer.packs(runs):
        for run, made in zip(pack, packer.make(pack), strict=True):
            assert made.latent is not None, made.error
            torch.testing.assert_close(made.latent, alone(pipeline, run), atol=1e-4, rtol=0)  # float32 over the steps


def test_packs_lose_nothing_and_fit_the_budget(pipeline: VideoPipeline) -> None:
    runs = plan_of(["steps=1,2", "guidance=1,2,3", "size=32x32,48x32"], seeds=range(3)).runs()
    packer = Packer(pipeline, tokens_at_once=40)
    packs = packer.packs(runs)
    assert sorted(run.key for pack in packs for run in pack) == sorted(run.key for run in runs)
    for pack in packs:
        assert len({(run.config.size, run.config.steps) for run in pack}) == 1
        assert 2 * sum(packer.count_tokens(run) for run in pack) <= 40


def test_the_network_is_asked_once_what_many_runs_ask(pipeline: VideoPipeline) -> None:
    """Three steps at 1, 2/3 and 1/3: guidance that begins at 1/3 shares what comes before with no guidance at all."""
    late = "guidance_interval=[0,0.4]"
    runs = plan_of(["steps=3", "shift=1", "sampler=euler", "guidance=1,2,3", late]).runs()
    counter, packer = Counter(pipeline.transformer), Packer(pipeline)
    made = packer.make(runs)
    counter.hook.remove()
    assert [one.evaluations for one in made] == [3, 4, 4]
    assert counter.clips == 3 + 1  # one walk, and the negative prompt where it is asked for at last, for both at once
    assert sum(one.evaluations - one.evaluations_reused for one in made) == counter.clips
    for run, one in zip(runs, made, strict=True):
        assert one.latent is not None
        torch.testing.assert_close(one.latent, alone(pipeline, run), atol=1e-4, rtol=0)


def test_another_pack_of_the_same_noise_begins_where_the_first_did(pipeline: VideoPipeline) -> None:
    packer = Packer(pipeline)
    packer.make(plan_of(["steps=2", "sampler=euler"]).runs())
    counter = Counter(pipeline.transformer)
    (made,) = packer.make(plan_of(["steps=3", "sampler=dpmpp_2m"]).runs())
    counter.hook.remove()
    assert made.evaluations == 6
    assert counter.clips == 4


def test_a_turned_clip_of_the_same_seed_is_another_clip(pipeline: VideoPipeline) -> None:
    """Their noise is the same numbers in another shape."""
    runs = plan_of(["size=32x64,64x32", "guidance=1"]).runs()
    packer = Packer(pipeline)
    for pack in packer.packs(runs):
        for run, made in zip(pack, packer.make(pack), strict=True):
            assert made.latent is not None, made.error
            torch.testing.assert_close(made.latent, alone(pipeline, run), atol=1e-4, rtol=0)


def test_euler_walks_where_heun_looked(pipeline: VideoPipeline) -> None:
    packer = Packer(pipeline)
    packer.make(plan_of(["steps=2", "sampler=heun", "guidance=1"]).runs())
    (made,) = packer.make(plan_of(["steps=2", "sampler=euler", "guidance=1"]).runs())
    assert (made.evaluations, made.evaluations_reused) == (2, 2)


def test_texts_are_read_once_a_sweep(pipeline: VideoPipeline, tmp_path: Path) -> None:
    counter = Counter(pipeline.text_encoder)
    sweep(pipeline, plan_of(["steps=1,2", "guidance=1,2"], prompts=PROMPTS, seeds=[0, 1]), tmp_path / "s")
    counter.hook.remove()
    assert counter.calls <= 3  # two prompts and the empty one, those of equal length together


@pytest.mark.parametrize("sampler", ["euler", "heun", "unipc"])
def test_evaluations_are_those_of_the_clip_alone(pipeline: VideoPipeline, sampler: str) -> None:
    runs = plan_of([f"sampler={sampler}", "steps=3", "guidance=1,2"]).runs()
    assert [made.evaluations for made in Packer(pipeline).make(runs)] == [num_evaluations(run.config) for run in runs]
