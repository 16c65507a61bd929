"""Wan's models take given clips as diffusers does where it has the task, and refuse what their layout cannot do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, WanPipeline, WanVideoToVideoPipeline
from diffusers.pipelines.wan import pipeline_wan_video2video
from diffusers.utils import is_ftfy_available
from PIL import Image
from torch import Tensor

from tests.conftest import seeded
from tests.test_wan_pipeline import NEGATIVE, PROMPT, SETTINGS, assert_same_frames, assert_same_latents, draw_image
from tests.wan_folders import save
from videogen.cli.main import sample
from videogen.data.video_io import probe, read_video, write_video
from videogen.sampling.known import Known
from videogen.sampling.pipeline import ClipRequest, VideoPipeline

KINDS = ("T2V 2.1", "TI2V 5B", "I2V A14B")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, DiffusionPipeline]]:
    root = tmp_path_factory.mktemp("wan_known")
    return {kind: (root / kind, save(kind, root / kind)) for kind in KINDS}


@pytest.fixture(scope="module")
def video() -> Tensor:
    """Draw a clip of smooth noise."""
    noise = torch.rand(1, 3, 3, 4, 3, generator=seeded(5))
    smooth = torch.nn.functional.interpolate(noise, size=(9, 64, 32), mode="trilinear")
    return (255 * smooth[0]).byte().permute(1, 2, 3, 0).contiguous()


@torch.no_grad()
@pytest.mark.parametrize("strength", [0.3, 0.75])
def test_video_to_video_makes_the_frames_that_diffusers_makes(
    strength: float,
    video: Tensor,
    folders: dict[str, tuple[Path, DiffusionPipeline]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not is_ftfy_available():  # diffusers' pipeline would raise a NameError
        monkeypatch.setattr(pipeline_wan_video2video, "ftfy", SimpleNamespace(fix_text=str), raising=False)
    folder, plain = folders["T2V 2.1"]
    assert isinstance(plain, WanPipeline)
    parts = {name: plain.components[name] for name in ("tokenizer", "text_encoder", "transformer", "vae", "scheduler")}
    theirs = WanVideoToVideoPipeline(**parts)
    theirs.set_progress_bar_config(disable=True)
    expected = theirs(
        video=[Image.fromarray(frame.numpy()) for frame in video],
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        height=64,
        width=32,
        num_inference_steps=8,
        guidance_scale=SETTINGS.guidance,
        strength=strength,
        generator=torch.Generator().manual_seed(5),
    ).frames[0]
    config = replace(SETTINGS, steps=8, strength=strength)
    known = [Known.clip(video, weight=0)]
    (clip,) = VideoPipeline.from_pretrained(folder)([PROMPT], config, seeds=[5], known=known)
    assert_same_frames(clip, torch.from_numpy(np.asarray(expected)))


def test_a_text_to_video_model_cannot_keep_what_it_is_given(
    video: Tensor, folders: dict[str, tuple[Path, DiffusionPipeline]]
) -> None:
    pipeline = VideoPipeline.from_pretrained(folders["T2V 2.1"][0])
    with pytest.raises(ValueError, match="makes clips from prompts alone, and other clips of a video"):
        pipeline([PROMPT], SETTINGS, known=[Known.clip(video)])


def test_ti2v_takes_key_frames_and_clips_and_keeps_them(
    video: Tensor, folders: dict[str, tuple[Path, DiffusionPipeline]]
) -> None:
    """Its first frame alone is diffusers' task (test_wan_pipeline); all others go the same way, by a level a token."""
    pipeline = VideoPipeline.from_pretrained(folders["TI2V 5B"][0])
    first, last = Known.first(draw_image(0)), Known.last(draw_image(1))
    latents = [
        pipeline.sample([ClipRequest(PROMPT, 5, known)], SETTINGS)[0]
        for known in ([first], [first, last], [first, Known.at(draw_image(2), 0.3), last], [Known.clip(video[:5])])
    ]
    assert torch.equal(latents[0][:, 0], latents[1][:, 0])
    assert not torch.isclose(latents[0][:, 1], latents[1][:, 1]).all()  # the last frame leads the middle
    given = pipeline.encode_known([Known.clip(video[:5])], SETTINGS)
    assert given.weight.mean((1, 2)).tolist() == [1, 1, 0]
    assert torch.equal(latents[3][:, :2], given.clean[:, :2])


def test_the_command_extends_a_clip_by_ti2v_and_keeps_its_frames(
    video: Tensor, folders: dict[str, tuple[Path, DiffusionPipeline]], tmp_path: Path
) -> None:
    write_video(tmp_path / "given.mp4", video, fps=8)
    words = [PROMPT, "--model", str(folders["TI2V 5B"][0]), "--steps", "2", "--video", str(tmp_path / "given.mp4")]
    assert sample([*words, "--extend", "0.5", "--out", str(tmp_path / "longer.mp4")]) == 0
    assert probe(tmp_path / "longer.mp4").num_frames == 13
    given, longer = (read_video(tmp_path / f"{name}.mp4").float() for name in ("given", "longer"))
    assert (longer[:9] - given).abs().mean() < 2  # of 255: H.264 alone lies between them


def test_the_command_varies_a_clip_by_text_to_video_and_refuses_to_keep_it(
    video: Tensor,
    folders: dict[str, tuple[Path, DiffusionPipeline]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_video(tmp_path / "given.mp4", video, fps=8)
    words = [PROMPT, "--model", str(folders["T2V 2.1"][0]), "--steps", "4", "--video", str(tmp_path / "given.mp4")]
    assert sample([*words, "--strength", "0.5", "--out", str(tmp_path / "other.mp4")]) == 0
    info = probe(tmp_path / "other.mp4")
    assert (info.width, info.height, info.num_frames, info.fps) == (32, 64, 9, 8)
    capsys.readouterr()
    assert sample([*words, "--extend", "1"]) == 2
    assert "makes clips from prompts alone, and other clips of a video (--strength)" in capsys.readouterr().err
    words[2] = str(folders["I2V A14B"][0])
    assert sample([*words, "--extend", "1"]) == 2
    assert "takes an image as its first frame, and may take another as its last" in capsys.readouterr().err


def test_same_latents_is_strict_enough_to_tell_a_strength_from_the_next(
    video: Tensor, folders: dict[str, tuple[Path, DiffusionPipeline]]
) -> None:
    pipeline = VideoPipeline.from_pretrained(folders["T2V 2.1"][0])
    request = ClipRequest(PROMPT, 5, [Known.clip(video, weight=0)])
    half, more = (pipeline.sample([request], replace(SETTINGS, strength=x))[0] for x in (0.5, 0.75))
    with pytest.raises(AssertionError):
        assert_same_latents(half, more)
