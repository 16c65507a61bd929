"""The pipeline answers to diffusers' words, and what it does not take it refuses in a sentence."""

from __future__ import annotations

import copy
import pickle
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FirstBlockCacheConfig,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanPipeline,
)
from diffusers.callbacks import SDCFGCutoffCallback
from diffusers.utils import export_to_video
from torch import Tensor

from tests.conftest import CHANNELS, seeded
from tests.test_wan_pipeline import NEGATIVE, PROMPT, assert_same_frames, assert_same_latents
from tests.test_wan_pipeline import without_ftfy as without_ftfy
from tests.wan_folders import save
from videogen.config.sample import MINI
from videogen.data.video_io import probe, read_settings, read_video
from videogen.models.vae import VideoVAE
from videogen.sampling.clips import Clip, Clips
from videogen.sampling.pipeline import ClipRequest, VideoPipeline

A, B = "a red circle moves right", "a large blue star"
WORDS = {"height": 32, "width": 64, "num_frames": 9, "num_inference_steps": 4, "guidance_scale": 4.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    save("T2V 2.1", path := tmp_path_factory.mktemp("wan") / "T2V 2.1")
    return path


@pytest.fixture
def wan(folder: Path) -> tuple[VideoPipeline, WanPipeline]:
    """Our pipeline and diffusers' on one folder."""
    pipelines = VideoPipeline.from_pretrained(folder), WanPipeline.from_pretrained(str(folder))
    for one in pipelines:
        one.set_progress_bar_config(disable=True)
    return pipelines


@pytest.fixture
def tiny(pipeline: VideoPipeline) -> Iterator[VideoPipeline]:
    """The pipeline of our own networks, whose scheduler a test may replace."""
    yield pipeline
    pipeline.scheduler = None


def call_both(wan: tuple[VideoPipeline, WanPipeline], **words: object) -> tuple[object, object]:
    """Call both pipelines with the same words and generators of the same seed."""
    results = []
    for pipeline in wan:
        own = {"generator": torch.Generator().manual_seed(5)} | WORDS | words
        if callable(make := own["generator"]):
            own["generator"] = make()
        results.append(pipeline(**own).frames)  # type: ignore[operator]
    return results[0], results[1]


# --- the same call


def test_the_words_of_wan_pipeline_make_the_frames_of_wan_pipeline(wan: tuple[VideoPipeline, WanPipeline]) -> None:
    """Two prompts with a negative prompt each, two clips a prompt, one generator for all of them."""
    words = {"prompt": [PROMPT, "a dog"], "negative_prompt": [NEGATIVE, "rain"], "num_videos_per_prompt": 2}
    ours, theirs = call_both(wan, **words)
    assert isinstance(ours, np.ndarray)
    assert ours.dtype == np.float32
    for clip, their_clip in zip(ours, theirs, strict=True):  # type: ignore[call-overload]
        assert_same_frames(torch.from_numpy(clip) * 255, torch.from_numpy(their_clip))


@pytest.mark.parametrize(
    "changes",
    [
        {"generator": lambda: [torch.Generator().manual_seed(i) for i in (5, 6)], "prompt": [PROMPT, "a dog"]},
        {"latents": torch.randn(1, 4, 3, 4, 8, generator=seeded(3))},
        {"max_sequence_length": 24},
        {"guidance_scale": 1.0},
        {"guidance_scale": 0.5},
    ],
    ids=["generators", "latents", "max_sequence_length", "no guidance", "guidance below 1"],
)
def test_every_word_makes_the_latents_that_it_makes_in_diffusers(
    wan: tuple[VideoPipeline, WanPipeline], changes: dict[str, object]
) -> None:
    words = {"prompt": PROMPT, "negative_prompt": None, "output_type": "latent"} | changes
    if isinstance(words["prompt"], list):
        words["negative_prompt"] = ["", ""]
    ours, theirs = call_both(wan, **words)
    assert_same_latents(ours, theirs)  # type: ignore[arg-type]


def test_embedded_prompts_are_those_of_diffusers_and_make_the_same_clip(wan: tuple[VideoPipeline, WanPipeline]) -> None:
    pairs = [pipeline.encode_prompt([PROMPT], NEGATIVE if ours else [NEGATIVE], max_sequence_length=512)
             for ours, pipeline in zip((True, False), wan, strict=True)]  # fmt: skip
    for ours, theirs in zip(*pairs, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)  # float32, ours is computed without padding
    words = {"output_type": "latent", "generator": torch.Generator().manual_seed(5)} | WORDS
    embeds, negatives = pairs[1]
    embedded = wan[0](prompt_embeds=embeds, negative_prompt_embeds=negatives, **words).frames
    words["generator"] = torch.Generator().manual_seed(5)
    assert_same_latents(embedded, wan[0](PROMPT, NEGATIVE, **words).frames)


@pytest.mark.parametrize(
    "make",
    [
        lambda old: UniPCMultistepScheduler.from_config(old, flow_shift=7.0),
        lambda old: UniPCMultistepScheduler.from_config(old, solver_order=1),
        lambda old: FlowMatchEulerDiscreteScheduler(shift=5.0),
        lambda old: DPMSolverMultistepScheduler.from_config(old, flow_shift=2.0),
    ],
    ids=["shift", "order", "euler", "dpm"],
)
def test_another_scheduler_changes_the_clip_as_in_diffusers(
    wan: tuple[VideoPipeline, WanPipeline], make: object
) -> None:
    words = {"prompt": PROMPT, "output_type": "latent"}
    (before, _) = call_both(wan, **words)
    for pipeline in wan:
        pipeline.scheduler = make(wan[1].scheduler.config)  # type: ignore[operator]
    ours, theirs = call_both(wan, **words)
    assert_same_latents(ours, theirs)  # type: ignore[arg-type]
    assert not torch.equal(ours, before)  # type: ignore[arg-type]


def test_a_callback_changes_the_latents_and_interrupts_as_in_diffusers(wan: tuple[VideoPipeline, WanPipeline]) -> None:
    seen: list[list[float]] = [[], []]

    def callback(pipeline: object, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen[pipeline is wan[1]].append(float(timestep))
        if step == 1:
            tensors["latents"] = tensors["latents"] * 0.5
        if step == 2:
            pipeline._interrupt = True  # type: ignore[attr-defined]
        return tensors

    ours, theirs = call_both(wan, prompt=PROMPT, output_type="latent", callback_on_step_end=callback)
    assert_same_latents(ours, theirs)  # type: ignore[arg-type]
    assert seen[0] == seen[1]
    assert len(seen[0]) == 3


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc"])
def test_every_sampler_calls_back_once_a_step_and_takes_the_latents_back(tiny: VideoPipeline, sampler: str) -> None:
    steps: list[int] = []

    def callback(pipeline: object, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        steps.append(step)
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 2 else tensors

    config = replace(tiny.defaults, sampler=sampler, steps=3)
    result = tiny(A, config, callback_on_step_end=callback, output_type="latent")
    assert steps == [0, 1, 2]
    assert not result.frames.any()


# --- what comes back


def test_the_short_form_returns_clips_with_frames_and_other_words_return_what_diffusers_does(
    tiny: VideoPipeline,
) -> None:
    clips = tiny(A, seeds=[4])
    assert isinstance(clips, Clips)
    assert isinstance(clips[0], Clip)
    generator = torch.Generator().manual_seed(4)
    arrays = tiny(prompt=A, generator=generator).frames
    assert np.array_equal(clips.frames, arrays)
    assert np.array_equal(arrays[0], (clips[0].float() / 255).numpy())
    later = tiny(prompt=A, generator=generator).frames  # it has been drawn from
    assert not np.array_equal(later, arrays)
    video = tiny(prompt=A, seeds=[4], output_type="pt").frames
    assert torch.equal(video, torch.from_numpy(arrays).movedim(-1, 2))
    pictures = tiny(prompt=A, seeds=[4], output_type="pil", return_dict=False)[0]
    assert np.array_equal(np.stack([np.asarray(picture) for picture in pictures[0]]), clips[0].numpy())
    assert tiny(prompt=A, seeds=[4], output_type="latent").frames.shape == (1, CHANNELS, 3, 4, 6)


def test_a_clip_is_a_tensor_that_writes_itself_with_its_settings(tiny: VideoPipeline, tmp_path: Path) -> None:
    (clip,) = tiny(A, seeds=[4])
    assert type(clip[0]) is type(clip + 1) is Tensor
    for again in (copy.deepcopy(clip), pickle.loads(pickle.dumps(clip))):
        assert isinstance(again, Clip)
        assert torch.equal(again, clip)
        assert again.settings == clip.settings
    path = clip.save(tmp_path / "clip.mp4")
    assert read_video(path).shape == clip.shape
    assert probe(path).fps == tiny.defaults.fps
    settings = read_settings(path)
    assert (settings["prompt"], settings["seed"], settings["steps"]) == (A, 4, tiny.defaults.steps)
    with pytest.raises(FileExistsError):
        clip.save(path)
    clip.save(path, fps=4, overwrite=True)
    assert probe(path).fps == 4


def test_a_notebook_shows_clips_as_videos_and_a_single_frame_as_a_picture(tiny: VideoPipeline) -> None:
    config = replace(tiny.defaults, steps=1)
    assert tiny([A, B], config)._repr_html_().count("<video") == 2
    assert '<img src="data:image/png;base64,' in tiny(A, replace(config, frames=1))._repr_html_()
    assert "<video" in tiny(A, config, output_type="pil")._repr_html_()
    assert "<pre>" in tiny(A, config, output_type="latent")._repr_html_()


def test_export_to_video_keeps_the_colours_or_refuses(tiny: VideoPipeline, tmp_path: Path) -> None:
    result = tiny(A, seeds=[4])
    path = str(tmp_path / "clip.mp4")
    for frames in (result.frames[0], result[0].pil()):
        export_to_video(frames, path, fps=8, quality=10)
        difference = read_video(Path(path)).int() - result[0].int()
        assert difference.abs().float().mean() < 8  # of 255: H.264 in 4:2:0
    with pytest.raises(ValueError, match=r"255 times as much overflows; give export_to_video the frames\[i\]"):
        export_to_video(list(result[0].numpy()), path)


def test_a_bar_counts_the_steps_and_loading_shows_none(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = VideoPipeline.from_pretrained(folder)
    assert capsys.readouterr().err == ""
    pipeline(PROMPT, **WORDS)
    assert "4/4" in capsys.readouterr().err
    pipeline.set_progress_bar_config(disable=True)
    pipeline(PROMPT, **WORDS)
    assert capsys.readouterr().err == ""


# --- refusals


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"prompt": A, "prompt_embeds": torch.zeros(1, 2, 32)}, "give the prompts once"),
        ({}, "give the prompts once"),
        ({"prompt": []}, "there is no prompt"),
        ({"prompt": A, "negative_prompt": ["a", "b"]}, "as many negative prompts as prompts, or one; got 2 for 1"),
        ({"prompt": A, "num_frames": 7}, r"frames must be 1 \+ a multiple of 4, got 7; try 5 or 9"),
        ({"prompt": A, "output_type": "mp4"}, "output_type must be one of np, pt, pil, latent, got 'mp4'"),
        ({"prompt": A, "guidance_scale_2": 2.0}, "guidance_scale_2 is that of a second expert, and this model has one"),
        ({"prompt": A, "seeds": [1], "generator": torch.Generator()}, "give seeds or a generator, not both"),
        ({"prompt": A, "generator": [torch.Generator()] * 2}, "give one generator, or as many as clips; got 2 for 1"),
        ({"prompt": A, "latents": torch.zeros(1, 4, 3, 4, 4)}, r"latents must be 1 of .* = \(4, 3, 4, 6\)"),
        ({"prompt": A, "num_videos_per_prompt": 0}, "num_videos_per_prompt must be at least 1, got 0"),
        ({"prompt": A, "attention_kwargs": {"mask": 1}}, "attention_kwargs takes scale, .* got mask"),
        (
            {"prompt": A, "callback_on_step_end": SDCFGCutoffCallback()},
            "callback_on_step_end_tensor_inputs must be among latents, got prompt_embeds",
        ),
    ],
)
def test_words_that_cannot_be_meant_are_refused(
    tiny: VideoPipeline, words: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny, "sample", lambda *args, **options: pytest.fail("the network was evaluated"))
    with pytest.raises(ValueError, match=message):
        tiny(**words)


def test_a_scheduler_that_does_not_run_here_or_is_not_that_of_the_settings_is_refused(tiny: VideoPipeline) -> None:
    explicit = tiny.defaults
    tiny.scheduler = DDIMScheduler()
    with pytest.raises(ValueError, match="the pipeline's scheduler is a DDIMScheduler; what runs here is one of UniPC"):
        tiny(A)
    tiny.scheduler = UniPCMultistepScheduler()
    with pytest.raises(ValueError, match="denoises no flow; build it with prediction_type='flow_prediction', use_flow"):
        tiny(A)
    tiny.scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=4.0)
    assert (tiny.defaults.sampler, tiny.defaults.shift) == ("unipc", 4.0)
    for call in (lambda: tiny(A, explicit), lambda: tiny.sample([ClipRequest(A, 0)], explicit)):
        with pytest.raises(ValueError, match="was replaced by a UniPCMultistepScheduler, which is sampler 'unipc'"):
            call()
    assert not torch.equal(tiny(A)[0], tiny(A, replace(tiny.defaults, shift=1.0))[0])


def test_a_replaced_scheduler_is_saved_with_its_settings(folder: Path, tmp_path: Path) -> None:
    pipeline = VideoPipeline.from_pretrained(folder)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    pipeline.save_pretrained(tmp_path)
    defaults = VideoPipeline.from_pretrained(tmp_path).defaults
    assert (defaults.sampler, defaults.shift) == ("flow_euler", 5.0)


def test_slicing_is_honoured_and_tiles_and_foreign_caches_are_refused(tiny: VideoPipeline, vae: VideoVAE) -> None:
    latents = torch.randn(2, CHANNELS, 2, 4, 4, generator=seeded())
    together = vae.decode(latents)
    vae.enable_slicing()
    sizes: list[int] = []
    hook = vae.decoder.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    torch.testing.assert_close(vae.decode(latents), together, atol=1e-5, rtol=0)  # float32, the order of sums differs
    torch.testing.assert_close(vae.encode(together), torch.cat([vae.encode(clip[None]) for clip in together]))
    vae.disable_slicing()
    hook.remove()
    assert len(sizes) % 2 == 0
    with pytest.raises(ValueError, match="VideoVAE has no tiles: it decodes a few frames at a time"):
        tiny.vae.enable_tiling()
    with pytest.raises(ValueError, match=r"FirstBlockCacheConfig does not fit this transformer.*first_block_cache"):
        tiny.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))


def test_the_words_of_diffusers_are_not_imported_by_the_core() -> None:
    import subprocess

    code = "import sys, videogen.sampling.clip_sampler; print('videogen.sampling.diffusers_call' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "False"


def test_the_snippet_of_the_shipped_model_card_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = (MINI / "README.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", card, flags=re.S)
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "mini").symlink_to(MINI)
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "card", "exec"), {})
    assert probe(tmp_path / "circle.mp4").num_frames == 17
