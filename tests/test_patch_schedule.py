"""Patch schedules: parsing, the patch at each noise level, and sampling in several patch sizes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import BertModel, PreTrainedTokenizerFast

from tests.conftest import tiny_dit
from videogen.cli.main import sample
from videogen.config.sample import SampleConfig
from videogen.data.video_io import read_settings
from videogen.models.checkpoint_config import read_checkpoint_info
from videogen.models.vae import VideoVAE
from videogen.packing.packs import PackedVideo, pack, repatch, unpack
from videogen.packing.patch_schedule import (
    Patch,
    draft_config,
    mean_token_share,
    parse_patch_shares,
    patch_at_sigma,
    patch_name,
    patch_schedule,
)
from videogen.sampling.pipeline import ClipRequest, VideoPipeline
from videogen.sampling.solvers import sigma_schedule
from videogen.sweep.plan import Run
from videogen.sweep.shared_calls import BatchedRuns

COARSE, FINE = (1, 4, 4), (1, 2, 2)


def test_patch_shares_are_parsed() -> None:
    assert parse_patch_shares("1x2x2") == [(FINE, 1.0)]
    assert parse_patch_shares("1x4x4:0.4, 1x2x2") == [(COARSE, 0.4), (FINE, 0.6)]
    assert parse_patch_shares("2x2x2:0.25,1x4x4:0.25,1x2x2:0.5") == [((2, 2, 2), 0.25), (COARSE, 0.25), (FINE, 0.5)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4x4", "patch must be sizes TxHxW, .* such as 1x4x4:0.4,1x2x2, got '4x4'"),
        ("1x4x4,1x2x2", "each but the last with its share"),
        ("1x4x4:0.4,", "patch must be sizes"),
        ("1x4x4:0.4,1x2x2:0.4", "must be above 0 and sum to 1, got '1x4x4:0.4,1x2x2:0.4'; leave the last one out"),
        ("1x4x4:1.2,1x2x2", "must be above 0 and sum to 1"),
        ("1x4x4:0,1x2x2", "must be above 0"),
    ],
)
def test_patch_shares_that_do_not_parse_or_sum_to_1_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_patch_shares(text)


def test_a_patch_size_that_the_model_lacks_is_refused_with_those_it_has() -> None:
    with pytest.raises(ValueError, match="patch must be of 1x2x2, 1x4x4, got 2x2x2"):
        patch_schedule(SampleConfig(patch="2x2x2:0.5,1x2x2"), [FINE, COARSE])


@pytest.mark.parametrize("shift", [1.0, 2.0, 5.0])
@pytest.mark.parametrize("steps", [1, 5, 10, 20])
def test_each_patch_size_has_its_share_of_the_steps(steps: int, shift: float) -> None:
    shares = parse_patch_shares("1x4x4:0.4,1x2x2")
    patches = [patch_at_sigma(shares, float(sigma), shift) for sigma in sigma_schedule(steps, shift=shift)[:-1]]
    num_coarse = max(1, round(0.4 * steps))  # The first step is always in the first patch size.
    assert patches == [COARSE] * num_coarse + [FINE] * (steps - num_coarse)


def test_repatching_keeps_the_latents() -> None:
    latents = [torch.randn(3, 5, 8, 4), torch.randn(3, 1, 4, 8)]
    video = pack(latents, FINE)
    coarse = repatch(video, COARSE)
    assert coarse.patch == COARSE
    assert all(map(torch.equal, unpack(coarse), latents))
    assert torch.equal(repatch(coarse, FINE).tokens, video.tokens)
    assert repatch(video, FINE) is video
    with pytest.raises(ValueError, match="cannot be cut into patches"):
        repatch(pack([torch.randn(3, 1, 6, 4)], FINE), COARSE)


# --- sampling in several patch sizes


@pytest.fixture(scope="module")
def two_sizes(vae: VideoVAE, text_encoder: BertModel, tokenizer: PreTrainedTokenizerFast) -> VideoPipeline:
    dit = tiny_dit(prediction="clean", extra_patch_sizes=[COARSE])
    return VideoPipeline(dit, vae, text_encoder, tokenizer)


def config(**changes: object) -> SampleConfig:
    return SampleConfig(**({"size": "32x32", "frames": 5, "steps": 5, "guidance": 2.0} | changes))  # type: ignore[arg-type]


def test_the_network_is_called_with_the_patches_of_the_schedule(two_sizes: VideoPipeline) -> None:
    calls: list[tuple[Patch, int]] = []

    def record(_module: object, args: tuple[PackedVideo, ...]) -> None:
        calls.append((args[0].patch, len(args[0].tokens) // len(args[0].grids)))

    hook = two_sizes.transformer.register_forward_pre_hook(record)
    two_sizes(["a red circle"], config(patch="1x4x4:0.4,1x2x2"))
    hook.remove()
    assert calls == [(COARSE, 2)] * 2 + [(FINE, 8)] * 3  # both guidance branches in one call


def test_a_schedule_of_the_base_patch_alone_changes_nothing(two_sizes: VideoPipeline) -> None:
    default, explicit = (two_sizes(["a red circle"], config(patch=patch))[0] for patch in ("", "1x2x2"))
    assert torch.equal(default, explicit)
    assert not torch.equal(default, two_sizes(["a red circle"], config(patch="1x4x4:0.4,1x2x2"))[0])


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "unipc"])
def test_a_clip_in_coarse_patches_does_not_depend_on_its_pack(two_sizes: VideoPipeline, sampler: str) -> None:
    settings = config(patch="1x4x4:0.5,1x2x2", sampler=sampler)
    jobs = [ClipRequest("a red circle", 3), ClipRequest("a large blue star moves", 4)]
    for job, latent in zip(jobs, two_sizes.sample(jobs, settings), strict=True):
        torch.testing.assert_close(latent, two_sizes.sample([job], settings)[0], atol=2e-4, rtol=0)


def test_a_size_that_the_coarse_patch_does_not_divide_is_refused_with_the_nearest(two_sizes: VideoPipeline) -> None:
    with pytest.raises(ValueError, match="multiples of 32, got 48x32; try 32x32 or 64x32"):
        two_sizes(["a red circle"], config(size="48x32", patch="1x4x4:0.5,1x2x2"))
    with pytest.raises(ValueError, match="patch must be of 1x2x2, 1x4x4, got 2x2x2"):
        two_sizes(["a red circle"], config(patch="2x2x2:0.5,1x2x2"))


def test_a_sweep_over_patches_equals_sampling_each_run_alone(two_sizes: VideoPipeline) -> None:
    runs = [Run("a red circle", 0, config(patch=patch)) for patch in ("", "1x4x4:0.4,1x2x2")]
    batch = BatchedRuns(two_sizes)
    assert [len(pack) for pack in batch.packs(runs)] == [1, 1]
    for run in runs:  # The first step of both has the same latent in other patches, and must not be reused.
        result = batch.denoise([run])[0]
        assert result.evaluations_reused == 0
        assert result.latent is not None
        torch.testing.assert_close(
            result.latent, two_sizes.sample([ClipRequest(run.prompt, 0)], run.config)[0], atol=2e-4, rtol=0
        )


def test_a_draft_has_few_steps_in_the_coarsest_patch() -> None:
    full = SampleConfig(steps=20)
    assert draft_config(full, [FINE, COARSE]) == replace(full, steps=8, patch="1x4x4:0.75,1x2x2")
    assert draft_config(full, [FINE]) == replace(full, steps=5)
    assert draft_config(replace(full, patch="1x1x1"), [FINE, (1, 1, 1)]).patch == "1x2x2:0.75,1x1x1"
    assert draft_config(replace(full, steps=2), [FINE]).steps == 1


@pytest.mark.parametrize("steps", [4, 8, 12, 20, 50])
@pytest.mark.parametrize("patches", [[FINE], [FINE, COARSE], [FINE, (1, 1, 1)]], ids=str)
def test_a_draft_costs_at_most_a_quarter_of_the_tokens(steps: int, patches: list[Patch]) -> None:
    full = SampleConfig(steps=steps, patch=patch_name(patches[-1]) if patches[-1] == (1, 1, 1) else "")
    draft = draft_config(full, patches)
    assert draft.steps * mean_token_share(draft, FINE) <= 0.25 * full.steps * mean_token_share(full, FINE)


def test_a_length_that_patches_of_two_frames_do_not_divide_is_refused_with_the_nearest(
    vae: VideoVAE, text_encoder: BertModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    dit = tiny_dit(extra_patch_sizes=[(2, 2, 2)])
    pipeline = VideoPipeline(dit, vae, text_encoder, tokenizer)
    config = SampleConfig(size="32x32", frames=17, steps=2, patch="2x2x2:0.5,1x2x2")
    message = "patches of 2 latent frames .* got 17 frames, which make 5; try 13 or 21 frames"
    with pytest.raises(ValueError, match=message):
        pipeline(["a red circle"], config)
    (clip,) = pipeline(["a red circle"], replace(config, frames=13))
    assert len(clip) == 13
    with pytest.raises(ValueError, match=r"got 1 frames, which make 1; try 5 frames"):
        pipeline(["a red circle"], replace(config, frames=1))


def test_the_sample_command_renders_a_draft(
    two_sizes: VideoPipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two_sizes.save_pretrained(tmp_path / "model")
    arguments = ["a red circle", "--model", str(tmp_path / "model"), "--size", "32x32", "--frames", "5"]
    assert read_checkpoint_info(tmp_path / "model").patches == (FINE, COARSE)
    assert sample([*arguments, "--draft", "--out", str(tmp_path / "a.mp4")]) == 0
    settings = read_settings(tmp_path / "a.mp4")
    assert (settings["steps"], settings["patch"]) == (8, "1x4x4:0.75,1x2x2")
    capsys.readouterr()
    assert sample([*arguments, "--patch", "2x2x2"]) != 0
    assert "patch must be of 1x2x2, 1x4x4, got 2x2x2" in capsys.readouterr().err
    costs = []
    for patch in ("1x2x2", "1x4x4:0.5,1x2x2"):
        assert sample([*arguments, "--size", "256x256", "--patch", patch, "--dry-run", "--json"]) == 0
        costs.append(json.loads(capsys.readouterr().out)["gflop"])
    assert costs[1] < costs[0]
