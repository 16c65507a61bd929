"""A clip records the files that it was made from by the hash of their content, not by their names."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from tests.sweeps import QUICK as SMALL
from tests.test_cli import QUICK, refused
from videogen.cli.main import sample
from videogen.cli.provenance import check_recorded_files, digests, provenance
from videogen.cli.sample_arguments import SampleArgs
from videogen.data.files import content_id, file_digest
from videogen.data.video_io import read_settings, read_video, write_video
from videogen.sampling.pipeline import VideoPipeline
from videogen.sweep.results import read_rows
from videogen.training.lora import save_lora

FILE = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def loras(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two LoRAs of equal size, saved as training does."""
    folders = [tmp_path_factory.mktemp("lora") for _ in range(2)]
    for seed, folder in enumerate(folders):
        model = VideoPipeline.load(checkpoint).transformer
        torch.manual_seed(seed)
        model.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
        save_lora(model, folder)
    return folders


@pytest.fixture
def style_lora(loras: list[Path], tmp_path: Path) -> Path:
    """A copy of the first LoRA under another name."""
    return Path(shutil.copy(loras[0] / FILE, tmp_path / "style_lora.safetensors"))


@pytest.fixture
def model(checkpoint: Path) -> list[str]:
    """The flag that chooses the tiny checkpoint."""
    return ["--model", str(checkpoint)]


def test_content_id_depends_on_content_and_not_on_the_name(loras: list[Path], style_lora: Path, tmp_path: Path) -> None:
    first = content_id(style_lora)
    assert first == file_digest(style_lora).hex()[:16] == content_id(loras[0] / FILE) != content_id(loras[1] / FILE)
    folder = Path(shutil.copytree(loras[0], tmp_path / "copy"))
    assert content_id(folder) == content_id(loras[0]) != content_id(loras[1])
    shutil.copy(loras[1] / FILE, folder)
    assert content_id(folder) == content_id(loras[1])


def test_a_clip_records_the_hashes_of_its_loras_and_is_repeated_byte_for_byte(
    loras: list[Path], style_lora: Path, model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, again = tmp_path / "clip.mp4", tmp_path / "again.mp4"
    words = ["a red circle", *model, *QUICK, "--lora", f"{style_lora}=0.5", str(loras[1])]
    assert sample([*words, "--out", str(clip)]) == 0
    settings = read_settings(clip)
    assert settings["lora"] == [f"{style_lora}=0.5", str(loras[1])]
    assert settings["lora_sha256"] == [content_id(style_lora), content_id(loras[1])]
    assert sample(["--from", str(clip), *model, "--out", str(again)]) == 0
    assert again.read_bytes() == clip.read_bytes()
    assert "note:" not in capsys.readouterr().err


def test_from_refuses_a_lora_file_whose_content_has_changed(
    loras: list[Path], style_lora: Path, model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, again, moved = tmp_path / "clip.mp4", ["--out", str(tmp_path / "again.mp4")], tmp_path / "moved.safetensors"
    assert sample(["a red circle", *model, *QUICK, "--lora", str(style_lora), "--out", str(clip)]) == 0
    was, now = content_id(style_lora), content_id(loras[1] / FILE)
    style_lora.rename(moved)
    capsys.readouterr()
    refused(capsys, sample(["--from", str(clip), *model, *again]), f"there is no LoRA {style_lora}")
    shutil.copy(loras[1] / FILE, style_lora)
    refused(
        capsys,
        sample(["--from", str(clip), *model, *again]),
        f"made with lora ['{style_lora}'] of ['{was}'], and what lies there now is ['{now}']; "
        "give the same with --lora",
    )
    # The same content under another name is taken without a note, and other content only where --lora names it.
    assert sample(["--from", str(clip), *model, *again, "--lora", str(moved)]) == 0
    assert "note:" not in capsys.readouterr().err
    assert sample(["--from", str(clip), *model, *again, "--overwrite", "--lora", str(style_lora)]) == 0
    assert f"note: {clip} was made with lora ['{style_lora}'] of ['{was}'], not ['{now}']" in capsys.readouterr().err


def test_a_saved_latent_is_not_decoded_when_the_lora_file_has_changed(
    loras: list[Path], style_lora: Path, model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = tmp_path / "clip.mp4"
    words = ["x", *model, *QUICK, "--lora", str(style_lora), "--save-latents", "--out", str(clip)]
    assert sample(words) == 0
    clip.unlink()
    shutil.copy(loras[1] / FILE, style_lora)
    capsys.readouterr()
    refused(capsys, sample(words), "is the latent of another clip: its lora_sha256 is")
    assert not clip.exists()


def test_a_sweep_does_not_resume_when_the_lora_file_has_changed(
    loras: list[Path], style_lora: Path, model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sweep"
    words = ["x", *model, *SMALL, "--sweep", "steps=1,2", "--reference", "0", "--out", str(out)]
    words += ["--lora", str(style_lora)]
    assert sample(words) == 0
    rows = read_rows(out)
    shutil.copy(loras[1] / FILE, style_lora)
    capsys.readouterr()
    refused(capsys, sample(words), "holds another sweep (its lora_sha256 differs); choose another --out")
    shutil.copy(loras[0] / FILE, style_lora)
    assert sample(words) == 0
    assert read_rows(out) == rows
    clip = next((out / "clips").glob("*.mp4"))
    assert read_settings(clip)["lora_sha256"] == [content_id(style_lora)]


@pytest.mark.parametrize("name", ["gguf", "image", "video", "join", "mask", "storyboard"])
def test_gguf_and_image_files_are_recorded_and_checked_by_content(name: str, checkpoint: Path, tmp_path: Path) -> None:
    path, clip = tmp_path / "file", tmp_path / "clip.mp4"
    path.write_bytes(b"one")
    args = SampleArgs(model=checkpoint, **{name: {"gguf": (path,), "image": (f"{path}@last",)}.get(name, path)})  # type: ignore[arg-type]
    recorded = provenance(args)
    assert recorded[f"{name}_sha256"] == [content_id(path)]
    check_recorded_files(clip, recorded, args, [])
    path.write_bytes(b"two")
    flag = f"--{name.replace('_', '-')}"
    with pytest.raises(ValueError, match=f"give the same with {flag}$"):
        check_recorded_files(clip, recorded, args, ["--model", str(checkpoint)])
    check_recorded_files(clip, recorded, args, [flag, str(path)])
    path.unlink()
    with pytest.raises(ValueError, match=f"there is no file {path}; give another with {flag}$"):
        digests(args)


def test_a_clip_without_recorded_hashes_is_repeated_without_a_check(
    checkpoint: Path, style_lora: Path, tmp_path: Path
) -> None:
    args = SampleArgs(model=checkpoint, lora=(str(style_lora),))
    recorded = {key: value for key, value in provenance(args).items() if key != "lora_sha256"}
    check_recorded_files(tmp_path / "clip.mp4", recorded, args, [])


def test_from_repeats_the_precision_and_notes_another_device(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, again = tmp_path / "first.mp4", tmp_path / "again.mp4"
    model = ["--model", str(checkpoint)]
    assert sample(["x", "--dtype", "bfloat16", "--out", str(first), *model, *QUICK]) == 0
    assert sample(["--from", str(first), "--out", str(again), *model]) == 0
    assert again.read_bytes() == first.read_bytes()
    capsys.readouterr()
    settings = read_settings(first) | {"device": "cuda"}
    write_video(again, read_video(first), fps=8, settings=settings, overwrite=True)
    assert sample(["--from", str(again), "--out", str(tmp_path / "cpu.mp4"), *model]) == 0
    assert "again.mp4 was made on cuda, and cpu rounds otherwise" in capsys.readouterr().err
