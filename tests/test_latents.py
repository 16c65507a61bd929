"""Latents kept before decoding: what was denoised is never denoised twice."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.wan_folders import save
from videogen.cli.main import sample
from videogen.data.saved_latents import latent_settings
from videogen.data.video_io import read_settings
from videogen.models.dit import VideoDiT
from videogen.sampling import pipeline
from videogen.sampling.pipeline import VideoPipeline

QUICK = ["--steps", "2", "--size", "32x32", "--frames", "5"]


@pytest.fixture
def words(checkpoint: Path) -> list[str]:
    return ["a red circle", "--model", str(checkpoint), "--save-latents", *QUICK]


def forbid_denoising(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on no transformer is as much as loaded."""

    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("the transformer was loaded to decode a latent")

    monkeypatch.setattr(VideoPipeline, "load", loaded)
    monkeypatch.setattr(VideoDiT, "forward", loaded)


def failing_decode(vae: object, latent: Tensor, device: object) -> Iterator[Tensor]:
    raise OSError("no space left on device")
    yield latent


def test_a_decode_that_failed_goes_on_from_the_latent_with_the_same_command(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words += ["--num", "2"]
    assert sample([*words, "--out", str(tmp_path / "whole")]) == 0
    with monkeypatch.context() as broken:
        broken.setattr(pipeline, "decode", failing_decode)
        assert sample([*words, "--out", str(tmp_path / "out")]) == 1
    assert "no space left" in capsys.readouterr().err
    names = ["a-red-circle-0", "a-red-circle-1"]  # both: a pack's latents are safe before the first is decoded
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{name}.safetensors" for name in names]
    forbid_denoising(monkeypatch)
    assert sample([*words, "--out", str(tmp_path / "out")]) == 0
    for name in names:
        assert (tmp_path / "out" / f"{name}.mp4").read_bytes() == (tmp_path / "whole" / f"{name}.mp4").read_bytes()


def test_clips_that_were_decoded_before_another_failed_stay_as_they_are(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words += ["--num", "2", "--out", str(tmp_path)]
    assert sample(words) == 0
    first, second = (tmp_path / f"a-red-circle-{i}.mp4" for i in (0, 1))
    wanted = second.read_bytes()
    second.unlink()  # as where the second one's decode failed
    finished = first.stat().st_mtime_ns
    forbid_denoising(monkeypatch)
    assert sample(words) == 0
    assert first.stat().st_mtime_ns == finished
    assert second.read_bytes() == wanted


def test_clips_without_a_latent_are_made_beside_those_that_have_one(words: list[str], tmp_path: Path) -> None:
    assert sample([*words, "--out", str(tmp_path)]) == 0
    first = tmp_path / "a-red-circle-0.mp4"
    before = first.read_bytes()
    first.unlink()
    assert sample([*words, "--num", "3", "--out", str(tmp_path)]) == 0
    assert first.read_bytes() == before
    assert len(list(tmp_path.glob("*.mp4"))) == len(list(tmp_path.glob("*.safetensors"))) == 3


def test_from_a_latent_decodes_it(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip, again, slow = (tmp_path / f"{name}.mp4" for name in ("clip", "again", "slow"))
    assert sample([*words, "--seed", "7", "--out", str(clip)]) == 0
    model = words[1:3]
    forbid_denoising(monkeypatch)
    assert sample(["--from", str(tmp_path / "clip.safetensors"), "--out", str(again), *model]) == 0
    assert again.read_bytes() == clip.read_bytes()
    assert sample(["--from", str(tmp_path / "clip.safetensors"), "--out", str(slow), *model, "--fps", "2"]) == 0
    assert read_settings(slow) == read_settings(clip) | {"fps": 2.0}


def test_overwrite_denoises_anew(words: list[str], tmp_path: Path) -> None:
    out = tmp_path / "clip.mp4"
    for more in (["--seed", "1"], ["--seed", "2", "--overwrite"]):
        assert sample([*words, *more, "--out", str(out)]) == 0
    assert latent_settings(tmp_path / "clip.safetensors")["seed"] == 2


def test_a_clip_that_took_the_place_of_the_latents_own_is_not_taken_for_it(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words += ["--out", str(tmp_path / "clip.mp4")]
    assert sample(words) == 0
    other = [word for word in words if word != "--save-latents"]
    assert sample([*other, "--guidance", "7", "--overwrite"]) == 0
    assert sample(words) == 2
    assert "clip.mp4 exists; add --overwrite" in capsys.readouterr().err
    assert sample([*words, "--overwrite"]) == 0
    assert read_settings(tmp_path / "clip.mp4") == latent_settings(tmp_path / "clip.safetensors")


def test_a_latent_of_diffusers_weights_is_decoded_by_the_vae_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save("T2V 2.1", tmp_path / "wan")
    words = ["a cat", "--model", str(tmp_path / "wan"), "--size", "32x48", "--frames", "5", "--steps", "2"]
    assert sample([*words, "--save-latents", "--out", str(tmp_path / "a.mp4")]) == 0
    for part in ("transformer", "text_encoder"):
        for path in (tmp_path / "wan" / part).glob("*.safetensors"):
            path.rename(path.with_suffix(".away"))
    monkeypatch.setattr(
        "videogen.cli.provenance.checkpoint_id", lambda _: latent_settings(tmp_path / "a.safetensors")["checkpoint"]
    )
    forbid_denoising(monkeypatch)
    latent = ["--from", str(tmp_path / "a.safetensors"), "--model", str(tmp_path / "wan")]
    assert sample([*latent, "--out", str(tmp_path / "b.mp4")]) == 0
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_a_file_that_is_no_latent_of_this_clip_is_refused_with_a_sentence(
    words: list[str], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, kept = tmp_path / "clip.mp4", tmp_path / "clip.safetensors"
    assert sample([*words, "--out", str(out)]) == 0
    out.unlink()
    capsys.readouterr()

    def refused(said: str, *given: str) -> None:
        assert sample([*given, "--out", str(out), "--model", str(checkpoint)]) == 2
        err = capsys.readouterr().err
        assert said in err
        assert len(err.splitlines()) == 1
        assert not out.exists()

    refused("its steps is 2, not 3", *words, "--steps", "3")
    refused("its seed is 0, not 4", *words, "--seed", "4")
    refused("its steps is 2, not 3", "--from", str(kept), "--steps", "3")
    tensors = load_file(kept)
    save_file(tensors, tmp_path / "bare.safetensors")
    refused("is not a latent that --save-latents wrote", "--from", str(tmp_path / "bare.safetensors"))
    (tmp_path / "half.safetensors").write_bytes(kept.read_bytes()[:100])
    refused("is not whole", "--from", str(tmp_path / "half.safetensors"))
    refused("there is no file", "--from", str(tmp_path / "missing.safetensors"))
    other = Path(shutil.copytree(checkpoint, tmp_path / "other"))
    path = next((other / "transformer").glob("*.safetensors"))
    save_file({name: value + 1 for name, value in load_file(path).items()}, path)
    assert sample(["--from", str(kept), "--model", str(other), "--out", str(out)]) == 2
    assert "its checkpoint is" in capsys.readouterr().err
    assert torch.equal(load_file(kept)["latent"], tensors["latent"])


def test_another_rate_is_not_taken_for_the_clip_that_is_there(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words += ["--out", str(tmp_path / "clip.mp4")]
    assert sample(words) == 0
    assert sample([*words, "--fps", "16"]) == 2
    assert "clip.mp4 exists; add --overwrite" in capsys.readouterr().err
    (tmp_path / "clip.mp4").unlink()
    assert sample([*words, "--fps", "16"]) == 0
    assert read_settings(tmp_path / "clip.mp4")["fps"] == 16


def test_a_checkpoint_is_known_whatever_its_folder_is_called(
    words: list[str], own_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words[words.index("--model") + 1] = str(own_checkpoint)
    assert sample([*words, "--out", str(tmp_path / "clip.mp4")]) == 0
    renamed = own_checkpoint.rename(tmp_path / "renamed")
    latent = ["--from", str(tmp_path / "clip.safetensors"), "--model", str(renamed)]
    assert sample([*latent, "--out", str(tmp_path / "again.mp4")]) == 0
    assert "note:" not in capsys.readouterr().err
