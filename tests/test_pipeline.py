"""The pipeline: a seed gives the same clip in any pack, and an incomplete checkpoint is refused."""

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
REQUESTS = [ClipRequest(prompt, seed) for prompt, seed in zip(PROMPTS, SEEDS, strict=True)]
WEIGHTS = "diffusion_pytorch_model.safetensors"


# --- promise 8: reproducibility


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("sampler", [*SAMPLERS, *STOCHASTIC_SAMPLERS, "unipc"])
def test_a_seed_gives_the_same_clip_alone_and_in_a_pack(pipeline: VideoPipeline, sampler: str, guidance: float) -> None:
    config = replace(pipeline.defaults, sampler=sampler, guidance=guidance)
    together = pipeline.sample(REQUESTS, config)
    for request, latent in zip(REQUESTS, together, strict=True):
        (alone,) = pipeline.sample([request], config)
        torch.testing.assert_close(alone, latent, atol=1e-4, rtol=0)  # float32 rounding errors grow over the steps.
        frames = [torch.cat(list(pipeline.frames(clip))).int() for clip in (alone, latent)]
        assert (frames[0] - frames[1]).abs().max() <= 1  # A value may lie on the border of two integers.


def test_a_repeated_call_is_bit_identical(pipeline: VideoPipeline) -> None:
    first = pipeline(PROMPTS, seeds=SEEDS)
    torch.manual_seed(77)
    torch.randn(5)
    assert all(map(torch.equal, first, pipeline(PROMPTS, seeds=SEEDS)))


def test_another_seed_or_prompt_gives_another_clip(pipeline: VideoPipeline) -> None:
    red, other_seed, other_prompt = pipeline([PROMPTS[0], PROMPTS[0], PROMPTS[2]], seeds=[1, 2, 1])
    assert not torch.equal(red, other_seed)
    assert not torch.equal(red, other_prompt)


def test_seeds_default_to_0_1_2(pipeline: VideoPipeline) -> None:
    assert all(map(torch.equal, pipeline(PROMPTS), pipeline(PROMPTS, seeds=[0, 1, 2])))


@pytest.mark.parametrize("changes", [{}, {"sampler": "dpmpp_2m_sde"}, {"position_scaling": "ntk"}], ids=str)
def test_clips_of_several_sizes_and_lengths_in_one_pack_equal_those_sampled_alone(
    pipeline: VideoPipeline, changes: dict[str, object]
) -> None:
    """Sampled with guidance, with noise added at every step, and with positions beyond the trained size."""
    config = replace(pipeline.defaults, **changes)  # type: ignore[arg-type]
    extents = [("48x32", 9), ("32x80", 1), ("16x16", 29), ("48x32", 9)]
    requests = [
        ClipRequest(PROMPTS[i % len(PROMPTS)], 7 + i, config=replace(config, size=size, frames=frames))
        for i, (size, frames) in enumerate(extents)
    ]
    together = pipeline.sample(requests, config)
    for request, latent in zip(requests, together, strict=True):
        assert request.config is not None
        (alone,) = pipeline.sample([request._replace(config=None)], request.config)
        assert latent.shape == pipeline.latent_shape(request.config)
        torch.testing.assert_close(latent, alone, atol=2e-4, rtol=0)  # Only the order of sums differs.


def test_fewer_seeds_than_prompts_are_refused(pipeline: VideoPipeline) -> None:
    with pytest.raises(ValueError, match="give as many seeds as prompts, got 2 for 3"):
        pipeline(PROMPTS, seeds=[1, 2])


# --- frames


@pytest.mark.parametrize(("size", "frames"), [("48x32", 9), ("32x64", 1), ("16x16", 13)])
def test_a_clip_has_the_size_and_length_of_its_settings(pipeline: VideoPipeline, size: str, frames: int) -> None:
    config = SampleConfig(size=size, frames=frames, steps=1)
    (clip,) = pipeline(["a red circle"], config)
    assert clip.shape == (frames, config.height, config.width, 3)
    assert clip.dtype == torch.uint8


def test_seconds_are_converted_to_frames(pipeline: VideoPipeline) -> None:
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
def test_impossible_settings_are_refused_before_the_network_is_evaluated(
    pipeline: VideoPipeline, changes: dict[str, object], message: str
) -> None:
    evaluations: list[int] = []
    with pytest.raises(ValueError, match=message):
        pipeline.sample(REQUESTS, replace(pipeline.defaults, **changes), lambda: evaluations.append(1))  # type: ignore[arg-type]
    assert evaluations == []


@pytest.mark.parametrize(
    ("sampler", "guidance", "num_evaluations"), [("euler", 1.0, 3), ("heun", 1.0, 5), ("euler", 2.0, 6)]
)
def test_a_run_takes_the_fewest_network_evaluations(
    pipeline: VideoPipeline, sampler: str, guidance: float, num_evaluations: int
) -> None:
    evaluations: list[int] = []
    config = replace(pipeline.defaults, sampler=sampler, guidance=guidance, steps=3)
    pipeline.sample(REQUESTS[:1], config, lambda: evaluations.append(1))
    assert len(evaluations) == num_evaluations


def test_streamed_frames_equal_the_clip_decoded_at_once(pipeline: VideoPipeline) -> None:
    (latent,) = pipeline.sample(REQUESTS[:1], replace(pipeline.defaults, frames=41, steps=1))
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
    calls: list[tuple[float, list[int]]] = []

    def predict(tokens: Tensor, sigma: Tensor, rows: Sequence[int]) -> list[Tensor]:
        calls.append((float(sigma), list(rows)))
        return predict_one_for_prompts_and_zero_for_negatives(tokens, sigma, rows)

    config = SampleConfig(guidance=5.0, guidance_interval=(0.25, 0.75), cfg_zero=False)
    velocity = with_guidance(predict, [config, config], (4, 4))
    sigmas, x = (1.0, 0.75, 0.5, 0.25, 0.125), torch.zeros(8, 2)
    means = {sigma: velocity(x, torch.tensor(sigma)).mean().item() for sigma in sigmas}
    assert means == {1.0: 1.0, 0.75: 5.0, 0.5: 5.0, 0.25: 5.0, 0.125: 1.0}
    assert [sigma for sigma, rows in calls if rows == [0, 1, 2, 3]] == [0.75, 0.5, 0.25]
    assert [sigma for sigma, rows in calls if rows == [0, 1]] == [1.0, 0.125]


def test_each_clip_of_a_pack_has_its_own_guidance_and_the_second_expert_another() -> None:
    weak = SampleConfig(guidance=1.0, guidance_2=3.0, cfg_zero=False)
    strong = SampleConfig(guidance=5.0, cfg_zero=False)
    velocity = with_guidance(predict_one_for_prompts_and_zero_for_negatives, [weak, strong], (4, 4), boundary=0.5)
    for sigma, scales in ((0.9, [1.0, 5.0]), (0.5, [1.0, 5.0]), (0.4, [3.0, 5.0])):
        clips = velocity(torch.zeros(8, 2), torch.tensor(sigma)).split(4)
        assert [clip.mean().item() for clip in clips] == scales


def test_one_euler_step_is_linear_in_the_guidance(pipeline: VideoPipeline) -> None:
    clips = [
        pipeline.sample(REQUESTS[:1], replace(pipeline.defaults, guidance=guidance, cfg_zero=False, steps=1))[0]
        for guidance in (1.0, 2.0, 3.0)
    ]
    # One Euler step is linear in the velocity, and that in the guidance, up to float32 rounding.
    torch.testing.assert_close(clips[2] - clips[1], clips[1] - clips[0], atol=1e-5, rtol=0)


def test_a_negative_prompt_changes_the_clip_only_with_guidance(pipeline: VideoPipeline) -> None:
    def sample(**changes: object) -> Tensor:
        return pipeline.sample(REQUESTS[:1], replace(pipeline.defaults, **changes))[0]  # type: ignore[arg-type]

    assert not torch.equal(sample(negative="a blue star"), sample())
    assert torch.equal(sample(negative="a blue star", guidance=1.0), sample(guidance=1.0))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_network_that_predicts_clean_tokens_samples_finite_latents(pipeline: VideoPipeline, guidance: float) -> None:
    parts = tiny_dit(prediction="clean"), pipeline.vae, pipeline.text_encoder, pipeline.tokenizer
    clean = VideoPipeline(*parts, defaults=to_mapping(pipeline.defaults))
    for latent in clean.sample(REQUESTS, replace(pipeline.defaults, guidance=guidance)):
        assert latent.isfinite().all()
        assert latent.shape == (CHANNELS, 3, 4, 6)


# --- save and load


def test_loading_and_saving_show_no_bars_of_the_libraries(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    VideoPipeline.load(checkpoint).save_pretrained(tmp_path / "saved")
    assert capfd.readouterr().err == ""


def test_a_saved_and_loaded_pipeline_makes_bit_identical_clips(pipeline: VideoPipeline, checkpoint: Path) -> None:
    loaded = VideoPipeline.load(checkpoint)
    assert loaded.defaults == pipeline.defaults
    config = pipeline.defaults
    assert all(map(torch.equal, pipeline.sample(REQUESTS, config), loaded.sample(REQUESTS, config)))
    assert all(map(torch.equal, pipeline(PROMPTS, seeds=SEEDS), loaded(PROMPTS, seeds=SEEDS)))


def test_loaded_networks_are_frozen_but_for_the_transformer_and_those_that_are_given(checkpoint: Path) -> None:
    vae = VideoPipeline.load(checkpoint).vae.requires_grad_(True)

    def trainable(pipeline: VideoPipeline) -> list[str]:
        networks = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
        return sorted(name for name, part in networks.items() if any(p.requires_grad for p in part.parameters()))

    assert trainable(VideoPipeline.load(checkpoint)) == ["transformer"]
    assert trainable(VideoPipeline.from_pretrained(checkpoint)) == ["transformer"]
    assert trainable(VideoPipeline.load(checkpoint, options={"vae": vae})) == ["transformer", "vae"]


def test_a_checkpoint_is_a_diffusers_folder_of_safetensors(checkpoint: Path) -> None:
    index = json.loads((checkpoint / "model_index.json").read_text(encoding="utf-8"))
    assert {"transformer", "vae", "text_encoder", "tokenizer"} <= index.keys()
    assert index["transformer"] == ["videogen.models.dit", "VideoDiT"]
    assert index["vae"] == ["videogen.models.vae", "VideoVAE"]
    assert {path.suffix for path in checkpoint.rglob("*") if path.is_file()} <= {".json", ".safetensors", ".txt"}
    assert isinstance(VideoPipeline.from_pretrained(checkpoint), VideoPipeline)


def test_a_checkpoint_opens_as_a_diffusion_pipeline_with_all_components(
    checkpoint: Path, pipeline: VideoPipeline
) -> None:
    opened = VideoPipeline.from_pretrained(str(checkpoint))
    assert isinstance(opened, DiffusionPipeline)
    assert {*opened.components} == {*pipeline.components}


def test_the_hash_of_a_checkpoint_changes_with_its_weights(own_checkpoint: Path, checkpoint: Path) -> None:
    first = checkpoint_id(checkpoint)
    assert first["sha256"] == checkpoint_id(own_checkpoint)["sha256"]
    edit_weights(own_checkpoint / "vae" / WEIGHTS, lambda weights: weights["mask_token"].add_(1e-3))
    assert checkpoint_id(own_checkpoint)["sha256"] != first["sha256"]


def test_a_large_file_is_hashed_by_samples_that_include_both_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_FULLY_HASHED_BYTES", 1000)
    monkeypatch.setattr(files, "SAMPLE_BYTES", 16)
    path = tmp_path / "model.safetensors"
    content = bytearray(torch.randint(256, (100_000,), generator=torch.Generator().manual_seed(0)).byte().numpy())
    path.write_bytes(content)
    digest = files.file_digest(path)
    assert digest == files.file_digest(path)
    for position in (0, 15, 99_999):  # The header and the end of the file are always read.
        changed = content.copy()
        changed[position] ^= 1
        path.write_bytes(changed)
        assert files.file_digest(path) != digest
    path.write_bytes(content + b"x")
    assert files.file_digest(path) != digest


def edit_weights(path: Path, change: object) -> None:
    """Apply a change to the weights of a file."""
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
def test_weights_that_do_not_fit_the_config_are_refused(
    own_checkpoint: Path, part: str, change: object, message: str
) -> None:
    edit_weights(own_checkpoint / part / WEIGHTS, change)
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
    with pytest.raises((ValueError, OSError), match=message):  # Of the text encoder it is transformers that raises.
        VideoPipeline.load(own_checkpoint)


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere is not a checkpoint folder: it has no model_index\.json"):
        VideoPipeline.load(tmp_path / "nowhere")


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_a_truncated_weights_file_is_refused(own_checkpoint: Path, part: str) -> None:
    path = own_checkpoint / part / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=part):
        VideoPipeline.load(own_checkpoint)


# --- promise 9: finite values


def test_latents_that_are_not_finite_raise_a_floating_point_error(own_checkpoint: Path) -> None:
    edit_weights(own_checkpoint / "transformer" / WEIGHTS, lambda w: w["proj_out.bias"].fill_(float("nan")))
    with pytest.raises(FloatingPointError, match="the latents are not finite; lower the guidance or check the weights"):
        VideoPipeline.load(own_checkpoint)(["a red circle"])


def test_frames_that_are_not_finite_raise_a_floating_point_error(own_checkpoint: Path) -> None:
    edit_weights(own_checkpoint / "vae" / WEIGHTS, lambda w: w["decoder.linear.bias"].fill_(float("inf")))
    with pytest.raises(FloatingPointError, match="the decoded frames are not finite; check the weights"):
        VideoPipeline.load(own_checkpoint)(["a red circle"])
