"""The pipeline: the same seed is the same clip, and a checkpoint is whole or refused."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.conftest import CHANNELS, tiny_dit
from videogen.config.parsing import to_mapping
from videogen.config.sample import SampleConfig
from videogen.data import files
from videogen.models.hub import checkpoint_id
from videogen.models.streaming import to_uint8
from videogen.sampling.denoiser import with_guidance
from videogen.sampling.pipeline import ClipRequest, VideoPipeline
from videogen.sampling.solvers import SAMPLERS, STOCHASTIC_SAMPLERS

PROMPTS = ("a red circle moves right", "", "a large blue star")
SEEDS = (3, 1, 4)
JOBS = [ClipRequest(prompt, seed) for prompt, seed in zip(PROMPTS, SEEDS, strict=True)]
WEIGHTS = "diffusion_pytorch_model.safetensors"


# --- promise 8


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("sampler", [*SAMPLERS, *STOCHASTIC_SAMPLERS, "unipc"])
def test_a_seed_is_the_same_clip_alone_or_in_a_batch(pipeline: VideoPipeline, sampler: str, guidance: float) -> None:
    config = replace(pipeline.defaults, sampler=sampler, guidance=guidance)
    together = pipeline.sample(JOBS, config)
    for job, both in zip(JOBS, together, strict=True):
        (alone,) = pipeline.sample([job], config)
        torch.testing.assert_close(alone, both, atol=1e-4, rtol=0)  # float32 rounding, grown over the steps
        frames = [torch.cat(list(pipeline.frames(latent))).int() for latent in (alone, both)]
        assert (frames[0] - frames[1]).abs().max() <= 1  # a value at the border of two


def test_the_same_call_twice_is_the_same_to_the_last_bit(pipeline: VideoPipeline) -> None:
    first = pipeline(PROMPTS, seeds=SEEDS)
    torch.manual_seed(77)
    torch.randn(5)
    assert all(map(torch.equal, first, pipeline(PROMPTS, seeds=SEEDS)))


def test_two_seeds_and_two_prompts_are_different_clips(pipeline: VideoPipeline) -> None:
    red, other_seed, other_prompt = pipeline([PROMPTS[0], PROMPTS[0], PROMPTS[2]], seeds=[1, 2, 1])
    assert not torch.equal(red, other_seed)
    assert not torch.equal(red, other_prompt)


def test_seeds_default_to_0_1_2(pipeline: VideoPipeline) -> None:
    assert all(map(torch.equal, pipeline(PROMPTS), pipeline(PROMPTS, seeds=[0, 1, 2])))


@pytest.mark.parametrize("changes", [{}, {"sampler": "dpmpp_2m_sde"}, {"position_scaling": "ntk"}], ids=str)
def test_clips_of_several_sizes_and_lengths_share_a_pack_and_are_what_they_are_alone(
    pipeline: VideoPipeline, changes: dict[str, object]
) -> None:
    """With guidance, fresh noise on the way, and places past the trained size."""
    config = replace(pipeline.defaults, **changes)  # type: ignore[arg-type]
    extents = [("48x32", 9), ("32x80", 1), ("16x16", 29), ("48x32", 9)]
    jobs = [
        ClipRequest(PROMPTS[i % len(PROMPTS)], 7 + i, config=replace(config, size=size, frames=frames))
        for i, (size, frames) in enumerate(extents)
    ]
    together = pipeline.sample(jobs, config)
    for job, latent in zip(jobs, together, strict=True):
        assert job.config is not None
        (alone,) = pipeline.sample([job._replace(config=None)], job.config)
        assert latent.shape == pipeline.latent_shape(job.config)
        torch.testing.assert_close(latent, alone, atol=2e-4, rtol=0)  # only the order of sums differs


def test_as_many_seeds_as_prompts(pipeline: VideoPipeline) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        pipeline(PROMPTS, seeds=[1, 2])


# --- frames


@pytest.mark.parametrize(("size", "frames"), [("48x32", 9), ("32x64", 1), ("16x16", 13)])
def test_frames_and_size_are_those_asked_for(pipeline: VideoPipeline, size: str, frames: int) -> None:
    config = SampleConfig(size=size, frames=frames, steps=1)
    (clip,) = pipeline(["a red circle"], config)
    assert clip.shape == (frames, config.height, config.width, 3)
    assert clip.dtype == torch.uint8


def test_seconds_become_frames(pipeline: VideoPipeline) -> None:
    (clip,) = pipeline(["a red circle"], SampleConfig(size="16x16", seconds=1.0, fps=8.0, steps=1))
    assert len(clip) == 9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 8}, r"frames must be 1 \+ a multiple of 4, got 8; try 5 or 9"),
        ({"size": "40x32"}, "width and height must be multiples of 16, got 40x32; try 32x32 or 48x32"),
        ({"sampler": "ddim"}, "sampler must be one of euler, heun, .*got 'ddim'"),
    ],
)
def test_what_cannot_be_made_is_refused_before_the_network_is_asked(
    pipeline: VideoPipeline, changes: dict[str, object], message: str
) -> None:
    ticks: list[int] = []
    with pytest.raises(ValueError, match=message):
        pipeline.sample(JOBS, replace(pipeline.defaults, **changes), lambda: ticks.append(1))  # type: ignore[arg-type]
    assert ticks == []


@pytest.mark.parametrize(
    ("sampler", "guidance", "evaluations"), [("euler", 1.0, 3), ("heun", 1.0, 5), ("euler", 2.0, 6)]
)
def test_the_network_is_asked_no_more_than_needed(
    pipeline: VideoPipeline, sampler: str, guidance: float, evaluations: int
) -> None:
    ticks: list[int] = []
    config = replace(pipeline.defaults, sampler=sampler, guidance=guidance, steps=3)
    pipeline.sample(JOBS[:1], config, lambda: ticks.append(1))
    assert len(ticks) == evaluations


def test_a_streamed_clip_is_the_whole_clip(pipeline: VideoPipeline) -> None:
    (latent,) = pipeline.sample(JOBS[:1], replace(pipeline.defaults, frames=41, steps=1))
    parts = list(pipeline.frames(latent))
    assert len(parts) > 1
    assert torch.equal(torch.cat(parts), to_uint8(pipeline.vae.decode(latent[None])[0]))


def test_pixels_are_rounded_and_clipped() -> None:
    video = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0, 1 / 127.5]).reshape(1, 1, 1, 6).expand(3, 1, 1, 6)
    assert to_uint8(video)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255, 128]


# --- guidance


def predict_one_for_prompts_and_zero_for_negatives(tokens: Tensor, sigma: Tensor, rows: Sequence[int]) -> list[Tensor]:
    return [torch.full((4, 2), 1.0 - row // 2) for row in rows]


def test_guidance_outside_its_interval_evaluates_the_prompt_alone() -> None:
    rows_asked: list[tuple[float, list[int]]] = []

    def predict(tokens: Tensor, sigma: Tensor, rows: Sequence[int]) -> list[Tensor]:
        rows_asked.append((float(sigma), list(rows)))
        return predict_one_for_prompts_and_zero_for_negatives(tokens, sigma, rows)

    config = SampleConfig(guidance=5.0, guidance_interval=(0.25, 0.75), cfg_zero=False)
    velocity = with_guidance(predict, [config, config], (4, 4))
    sigmas, x = (1.0, 0.75, 0.5, 0.25, 0.125), torch.zeros(8, 2)
    means = {sigma: velocity(x, torch.tensor(sigma)).mean().item() for sigma in sigmas}
    assert means == {1.0: 1.0, 0.75: 5.0, 0.5: 5.0, 0.25: 5.0, 0.125: 1.0}
    assert [sigma for sigma, rows in rows_asked if rows == [0, 1, 2, 3]] == [0.75, 0.5, 0.25]
    assert [sigma for sigma, rows in rows_asked if rows == [0, 1]] == [1.0, 0.125]


def test_clips_of_a_pack_have_guidance_of_their_own_and_the_second_expert_another() -> None:
    weak = SampleConfig(guidance=1.0, guidance_2=3.0, cfg_zero=False)
    strong = SampleConfig(guidance=5.0, cfg_zero=False)
    velocity = with_guidance(predict_one_for_prompts_and_zero_for_negatives, [weak, strong], (4, 4), boundary=0.5)
    for sigma, scales in ((0.9, [1.0, 5.0]), (0.5, [1.0, 5.0]), (0.4, [3.0, 5.0])):
        clips = velocity(torch.zeros(8, 2), torch.tensor(sigma)).split(4)
        assert [clip.mean().item() for clip in clips] == scales


def test_guidance_strengthens_what_the_prompt_adds(pipeline: VideoPipeline) -> None:
    clips = [
        pipeline.sample(JOBS[:1], replace(pipeline.defaults, guidance=guidance, cfg_zero=False, steps=1))[0]
        for guidance in (1.0, 2.0, 3.0)
    ]
    # one Euler step is linear in the velocity
    torch.testing.assert_close(clips[2] - clips[1], clips[1] - clips[0], atol=1e-5, rtol=0)


def test_a_negative_prompt_changes_the_clip_only_with_guidance(pipeline: VideoPipeline) -> None:
    def sample(**changes: object) -> Tensor:
        return pipeline.sample(JOBS[:1], replace(pipeline.defaults, **changes))[0]  # type: ignore[arg-type]

    assert not torch.equal(sample(negative="a blue star"), sample())
    assert torch.equal(sample(negative="a blue star", guidance=1.0), sample(guidance=1.0))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_network_that_puts_out_the_clean_clip_samples_too(pipeline: VideoPipeline, guidance: float) -> None:
    parts = tiny_dit(prediction="clean"), pipeline.vae, pipeline.text_encoder, pipeline.tokenizer
    clean = VideoPipeline(*parts, defaults=to_mapping(pipeline.defaults))
    for latent in clean.sample(JOBS, replace(pipeline.defaults, guidance=guidance)):
        assert latent.isfinite().all()
        assert latent.shape == (CHANNELS, 3, 4, 6)


# --- save and load


def test_a_saved_pipeline_is_bit_identical(pipeline: VideoPipeline, checkpoint: Path) -> None:
    loaded = VideoPipeline.load(checkpoint)
    assert loaded.defaults == pipeline.defaults
    latents = (one.sample(JOBS, one.defaults) for one in (pipeline, loaded))
    assert all(map(torch.equal, *latents))
    assert all(map(torch.equal, pipeline(PROMPTS, seeds=SEEDS), loaded(PROMPTS, seeds=SEEDS)))


def test_a_checkpoint_is_a_diffusers_folder_of_safetensors(checkpoint: Path) -> None:
    index = json.loads((checkpoint / "model_index.json").read_text(encoding="utf-8"))
    assert {"transformer", "vae", "text_encoder", "tokenizer"} <= index.keys()
    assert index["transformer"] == ["videogen.models.dit", "VideoDiT"]
    assert index["vae"] == ["videogen.models.vae", "VideoVAE"]
    assert {path.suffix for path in checkpoint.rglob("*") if path.is_file()} <= {".json", ".safetensors", ".txt"}
    assert isinstance(VideoPipeline.from_pretrained(checkpoint), VideoPipeline)


def test_a_checkpoint_opens_without_naming_its_class(checkpoint: Path, pipeline: VideoPipeline) -> None:
    opened = VideoPipeline.from_pretrained(str(checkpoint))
    assert isinstance(opened, DiffusionPipeline)
    assert {*opened.components} == {*pipeline.components}


def test_a_checkpoint_has_a_name_and_a_hash_that_change_with_it(own_checkpoint: Path, checkpoint: Path) -> None:
    first = checkpoint_id(checkpoint)
    assert first["sha256"] == checkpoint_id(own_checkpoint)["sha256"]
    edit(own_checkpoint / "vae" / WEIGHTS, lambda weights: weights["mask_token"].add_(1e-3))
    assert checkpoint_id(own_checkpoint)["sha256"] != first["sha256"]


def test_a_large_file_is_known_again_by_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "HASHED_WHOLE", 1000)
    monkeypatch.setattr(files, "SAMPLE_BYTES", 16)
    path = tmp_path / "model.safetensors"
    content = bytearray(torch.randint(256, (100_000,), generator=torch.Generator().manual_seed(0)).byte().numpy())
    path.write_bytes(content)
    found = files.file_digest(path)
    assert found == files.file_digest(path)
    for place in (0, 15, 99_999):  # the header and the end are always read
        other = content.copy()
        other[place] ^= 1
        path.write_bytes(other)
        assert files.file_digest(path) != found
    path.write_bytes(content + b"x")
    assert files.file_digest(path) != found


def edit(path: Path, change: object) -> None:
    weights = {name: value.clone() for name, value in load_file(path).items()}
    change(weights)  # type: ignore[operator]
    save_file(weights, path, metadata={"format": "pt"})


BROKEN: list[tuple[str, object, str]] = [
    ("transformer", lambda w: w.pop("proj_out.bias"), r"transformer lacks proj_out\.bias; its weights .* config\.json"),
    ("vae", lambda w: w.pop("mask_token"), "vae lacks mask_token; its weights .* its config"),
    ("transformer", lambda w: w.update(more=torch.ones(1)), "transformer has an extra weight more; its weights"),
    (
        "transformer",
        lambda w: w.update({"proj_out.bias": torch.ones(3)}),
        r"transformer: proj_out\.bias is \(3,\) and its config\.json asks for \(16,\)",
    ),
]


@pytest.mark.parametrize(("part", "change", "message"), BROKEN, ids=["missing", "missing in vae", "extra", "shape"])
def test_a_checkpoint_whose_weights_do_not_fit_is_refused(
    own_checkpoint: Path, part: str, change: object, message: str
) -> None:
    edit(own_checkpoint / part / WEIGHTS, change)
    with pytest.raises(ValueError, match=message):
        VideoPipeline.load(own_checkpoint)


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        (["model_index.json"], r"is not a checkpoint folder: it has no model_index\.json"),
        (["transformer/config.json"], r"transformer has no config\.json; the checkpoint is not complete"),
        ([f"vae/{WEIGHTS}"], r"vae holds no \.safetensors weights; the checkpoint is not complete"),
        (["text_encoder/config.json", "text_encoder/model.safetensors"], "text_encoder"),
        (["tokenizer/tokenizer.json"], "tokenizer"),
    ],
)
def test_a_checkpoint_with_a_missing_file_is_refused(own_checkpoint: Path, gone: Sequence[str], message: str) -> None:
    for name in gone:
        (own_checkpoint / name).unlink()
    with pytest.raises((ValueError, OSError), match=message):  # of the text part transformers says it
        VideoPipeline.load(own_checkpoint)


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere is not a checkpoint folder: it has no model_index\.json"):
        VideoPipeline.load(tmp_path / "nowhere")


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_a_file_that_was_cut_is_refused(own_checkpoint: Path, part: str) -> None:
    path = own_checkpoint / part / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=part):
        VideoPipeline.load(own_checkpoint)


# --- promise 9


def test_weights_that_are_not_finite_stop_with_a_clear_error(own_checkpoint: Path) -> None:
    edit(own_checkpoint / "transformer" / WEIGHTS, lambda w: w["proj_out.bias"].fill_(float("nan")))
    with pytest.raises(FloatingPointError, match="the latents are not finite; lower the guidance or check the weights"):
        VideoPipeline.load(own_checkpoint)(["a red circle"])


def test_frames_that_are_not_finite_stop_with_a_clear_error(own_checkpoint: Path) -> None:
    edit(own_checkpoint / "vae" / WEIGHTS, lambda w: w["decoder.linear.bias"].fill_(float("inf")))
    with pytest.raises(FloatingPointError, match="the decoded frames are not finite; check the weights"):
        VideoPipeline.load(own_checkpoint)(["a red circle"])
