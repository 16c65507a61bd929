"""Latents saved before decoding: a denoised clip is not denoised again."""

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
from videogen.models.dit_network import DiT
from videogen.sampling import clip_sampler

QUICK = ["--steps", "2", "--size", "32x32", "--frames", "5"]


@pytest.fixture
def arguments(checkpoint: Path) -> list[str]:
    return ["a red circle", "--model", str(checkpoint), "--save-latents", *QUICK]


def forbid_denoising(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make it an error to load or call the transformer."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the transformer was loaded to decode a latent")

    monkeypatch.setattr("videogen.cli.sample.load", refuse)
    monkeypatch.setattr(DiT, "forward", refuse)


def failing_decode(vae: object, latent: Tensor, device: object) -> Iterator[Tensor]:
    raise OSError("no space left on device")
    yield latent


def test_the_same_command_decodes_the_saved_latents_after_a_failed_decode(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments += ["--num", "2", "--no-exact"]
    assert sample([*arguments, "--out", str(tmp_path / "whole")]) == 0
    with monkeypatch.context() as patched:
        patched.setattr(clip_sampler, "decode_frames", failing_decode)
        assert sample([*arguments, "--out", str(tmp_path / "out")]) == 1
    assert "no space left" in capsys.readouterr().err
    names = ["a-red-circle-0", "a-red-circle-1"]  # All latents of a pack are saved before any is decoded.
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{name}.safetensors" for name in names]
    forbid_denoising(monkeypatch)
    assert sample([*arguments, "--out", str(tmp_path / "out")]) == 0
    for name in names:
        assert (tmp_path / "out" / f"{name}.mp4").read_bytes() == (tmp_path / "whole" / f"{name}.mp4").read_bytes()


def test_clips_decoded_before_another_failed_are_not_written_again(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments += ["--num", "2", "--out", str(tmp_path)]
    assert sample(arguments) == 0
    first, second = (tmp_path / f"a-red-circle-{i}.mp4" for i in (0, 1))
    second_bytes, first_mtime = second.read_bytes(), first.stat().st_mtime_ns
    second.unlink()  # as if its decode had failed
    forbid_denoising(monkeypatch)
    assert sample(arguments) == 0
    assert first.stat().st_mtime_ns == first_mtime
    assert second.read_bytes() == second_bytes


def test_clips_without_a_saved_latent_are_sampled_and_the_others_decoded(arguments: list[str], tmp_path: Path) -> None:
    assert sample([*arguments, "--out", str(tmp_path)]) == 0
    first = tmp_path / "a-red-circle-0.mp4"
    first_bytes = first.read_bytes()
    first.unlink()
    assert sample([*arguments, "--num", "3", "--out", str(tmp_path)]) == 0
    assert first.read_bytes() == first_bytes
    assert len(list(tmp_path.glob("*.mp4"))) == len(list(tmp_path.glob("*.safetensors"))) == 3


def test_from_decodes_a_saved_latent(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip, decoded, slow = (tmp_path / f"{name}.mp4" for name in ("clip", "decoded", "slow"))
    assert sample([*arguments, "--seed", "7", "--out", str(clip)]) == 0
    model = arguments[1:3]
    forbid_denoising(monkeypatch)
    assert sample(["--from", str(tmp_path / "clip.safetensors"), "--out", str(decoded), *model]) == 0
    assert decoded.read_bytes() == clip.read_bytes()
    assert sample(["--from", str(tmp_path / "clip.safetensors"), "--out", str(slow), *model, "--fps", "2"]) == 0
    assert read_settings(slow) == read_settings(clip) | {"fps": 2.0}


def test_overwrite_denoises_again(arguments: list[str], tmp_path: Path) -> None:
    out = tmp_path / "clip.mp4"
    for options in (["--seed", "1"], ["--seed", "2", "--overwrite"]):
        assert sample([*arguments, *options, "--out", str(out)]) == 0
    assert latent_settings(tmp_path / "clip.safetensors")["seed"] == 2


def test_a_clip_with_other_settings_than_the_latent_beside_it_is_not_overwritten(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments += ["--out", str(tmp_path / "clip.mp4")]
    assert sample(arguments) == 0
    without_latents = [argument for argument in arguments if argument != "--save-latents"]
    assert sample([*without_latents, "--guidance", "7", "--overwrite"]) == 0
    assert sample(arguments) == 2
    assert "clip.mp4 exists; add --overwrite" in capsys.readouterr().err
    assert sample([*arguments, "--overwrite"]) == 0
    assert read_settings(tmp_path / "clip.mp4") == latent_settings(tmp_path / "clip.safetensors")


def test_a_saved_latent_of_a_wan_folder_is_decoded_with_the_vae_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save("T2V 2.1", tmp_path / "wan")
    arguments = ["a cat", "--model", str(tmp_path / "wan"), "--size", "32x48", "--frames", "5", "--steps", "2"]
    assert sample([*arguments, "--save-latents", "--out", str(tmp_path / "a.mp4")]) == 0
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


def test_a_file_that_is_no_latent_of_this_clip_is_refused(
    arguments: list[str], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, latent_path = tmp_path / "clip.mp4", tmp_path / "clip.safetensors"
    assert sample([*arguments, "--out", str(out)]) == 0
    out.unlink()
    capsys.readouterr()

    def assert_refused(message: str, *options: str) -> None:
        assert sample([*options, "--out", str(out), "--model", str(checkpoint)]) == 2
        stderr = capsys.readouterr().err
        assert message in stderr
        assert len(stderr.splitlines()) == 1
        assert not out.exists()

    assert_refused("its steps is 2, not 3", *arguments, "--steps", "3")
    assert_refused("its seed is 0, not 4", *arguments, "--seed", "4")
    assert_refused("its steps is 2, not 3", "--from", str(latent_path), "--steps", "3")
    tensors = load_file(latent_path)
    save_file(tensors, tmp_path / "bare.safetensors")
    assert_refused("is not a latent that --save-latents wrote", "--from", str(tmp_path / "bare.safetensors"))
    (tmp_path / "half.safetensors").write_bytes(latent_path.read_bytes()[:100])
    assert_refused("is not whole", "--from", str(tmp_path / "half.safetensors"))
    assert_refused("there is no file", "--from", str(tmp_path / "missing.safetensors"))
    other = Path(shutil.copytree(checkpoint, tmp_path / "other"))
    path = next((other / "transformer").glob("*.safetensors"))
    save_file({name: value + 1 for name, value in load_file(path).items()}, path)
    assert sample(["--from", str(latent_path), "--model", str(other), "--out", str(out)]) == 2
    assert "its checkpoint is" in capsys.readouterr().err
    assert torch.equal(load_file(latent_path)["latent"], tensors["latent"])


def test_a_clip_with_another_frame_rate_is_not_overwritten(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments += ["--out", str(tmp_path / "clip.mp4")]
    assert sample(arguments) == 0
    assert sample([*arguments, "--fps", "16"]) == 2
    assert "clip.mp4 exists; add --overwrite" in capsys.readouterr().err
    (tmp_path / "clip.mp4").unlink()
    assert sample([*arguments, "--fps", "16"]) == 0
    assert read_settings(tmp_path / "clip.mp4")["fps"] == 16


def test_a_renamed_checkpoint_folder_still_decodes_its_latents(
    arguments: list[str], own_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments[arguments.index("--model") + 1] = str(own_checkpoint)
    assert sample([*arguments, "--out", str(tmp_path / "clip.mp4")]) == 0
    renamed = own_checkpoint.rename(tmp_path / "renamed")
    latent = ["--from", str(tmp_path / "clip.safetensors"), "--model", str(renamed)]
    assert sample([*latent, "--out", str(tmp_path / "decoded.mp4")]) == 0
    assert "note:" not in capsys.readouterr().err
