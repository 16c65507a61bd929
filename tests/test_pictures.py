"""Pictures are read as a person sees them: transparency on a background, deep ones scaled, animations in time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.test_video_io import make_video, psnr, waves
from videogen.cli.known_material import load_material
from videogen.cli.provenance import apply_recorded_settings, provenance
from videogen.cli.sample_arguments import SampleArgs
from videogen.data.pictures import check_background, read_image_file
from videogen.data.video_io import probe, read_video
from videogen.models.checkpoint_config import read_checkpoint_info


def half_transparent() -> Image.Image:
    """Red, of which the left half is gone and the rest half there."""
    alpha = np.zeros((16, 16), np.uint8)
    alpha[:, 8:] = 128
    return Image.fromarray(np.dstack([np.full((16, 16), 255), np.zeros((16, 16, 2)), alpha]).astype("uint8"), "RGBA")


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tiff", ".avif"])
def test_a_transparent_picture_is_laid_on_white(suffix: str, tmp_path: Path) -> None:
    half_transparent().save(tmp_path / f"x{suffix}", **({"lossless": True} if suffix == ".webp" else {}))
    frames = read_video(tmp_path / f"x{suffix}")[0]
    tolerance = 6 if suffix == ".avif" else 1  # AVIF is lossy
    assert (frames[8, 2].int() - 255).abs().max() <= tolerance
    assert (frames[8, 12].int() - torch.tensor([255, 127, 127])).abs().max() <= tolerance
    on_black = read_image_file(tmp_path / f"x{suffix}", "black")[0]
    assert on_black[8, 2].max() <= tolerance


def test_palettes_and_greys_with_transparency_are_laid_on_white_too(tmp_path: Path) -> None:
    palette = Image.new("P", (16, 16), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.save(tmp_path / "palette.png", transparency=1)
    Image.new("LA", (16, 16), (0, 0)).save(tmp_path / "grey.png")
    Image.new("L", (16, 16), 9).save(tmp_path / "key.png", transparency=9)
    for name in ("palette", "grey", "key"):
        assert int(read_video(tmp_path / f"{name}.png").min()) == 255


def test_a_transparent_video_is_laid_on_white_too(tmp_path: Path) -> None:
    frames = [half_transparent(), half_transparent().rotate(180)]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:], duration=100, disposal=2)
    gif = read_video(tmp_path / "x.gif")
    assert (gif.shape, gif[0, 8, 2].tolist()) == ((2, 16, 16, 3), [255, 255, 255])
    cut = "geq=r=255:g=0:b=0:a=255*gt(X\\,16),format=rgba"
    path = make_video(tmp_path / "x.mov", "-vf", f"format=rgba,{cut}", "-c:v", "qtrle", size="32x32", seconds=0.1)
    clip = read_video(path)
    assert (clip[0, 8, 2].tolist(), clip[0, 8, 30].tolist()) == ([255, 255, 255], [255, 0, 0])


def test_the_background_is_a_colour() -> None:
    check_background("#80ff00")
    with pytest.raises(ValueError, match="a background is a colour such as white, black or #80ff00, got 'whight'"):
        check_background("whight")


def test_a_clip_records_the_background_of_its_image_and_from_takes_it_again(checkpoint: Path, tmp_path: Path) -> None:
    half_transparent().save(tmp_path / "x.png")
    args = SampleArgs(model=checkpoint, image=(str(tmp_path / "x.png"),), background="black")
    recorded = provenance(args) | {"prompt": "x", "seed": 0}
    assert apply_recorded_settings(SampleArgs(), recorded).background == "black"
    assert "background" not in provenance(replace(args, background="white"))
    (piece,) = load_material(args, read_checkpoint_info(checkpoint)).known
    assert piece.frames[0, 8, 2].tolist() == [0, 0, 0]


# --- deep pictures


def test_a_float_tiff_from_0_to_1_is_scaled(tmp_path: Path) -> None:
    Image.fromarray(np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)).save(tmp_path / "x.tiff")
    assert read_video(tmp_path / "x.tiff")[0, ..., 0].flatten().tolist() == list(range(256))
    assert probe(tmp_path / "x.tiff") == (16, 16, 1, 1.0, 0.0)


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_numbers_of_no_known_range_are_refused(kind: type, tmp_path: Path) -> None:
    Image.fromarray(np.arange(256, dtype=kind).reshape(16, 16) * 100).save(tmp_path / "x.tif")
    with pytest.raises(ValueError, match=r"x\.tif: .*its numbers reach from 0 to 25500; save it in 8 or 16 bits"):
        read_video(tmp_path / "x.tif")


# --- animations


@pytest.mark.parametrize("suffix", [".webp", ".png", ".apng", ".avif"])
def test_an_animation_is_read_by_time_as_a_gif_is(suffix: str, tmp_path: Path) -> None:
    path, pictures = tmp_path / f"x{suffix}", [Image.fromarray(frame.numpy()) for frame in waves(4)]
    options = {".webp": {"lossless": True}, ".avif": {"quality": 100, "subsampling": "4:4:4"}}.get(suffix, {})
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=[100, 100, 200, 100], **options)
    assert probe(path) == (64, 48, 4, 8.0, 0.5)
    frames = read_video(path)
    assert psnr(frames, waves(4)) > 35
    shown = read_video(path, fps=10)  # the third is on screen for two of them
    assert [len(shown), torch.equal(shown[2], shown[3]), torch.equal(shown[1], shown[2])] == [5, True, False]
    assert torch.equal(read_video(path, start_seconds=0.35, num_frames=1)[0], frames[2])
    assert read_video(path, size=(32, 24)).shape == (4, 24, 32, 3)
    assert torch.equal(torch.from_numpy(read_image_file(path)[0]), frames[0])


def test_a_damaged_animation_is_named(tmp_path: Path) -> None:
    pictures = [Image.fromarray(frame.numpy()) for frame in waves(3)]
    pictures[0].save(tmp_path / "x.webp", save_all=True, append_images=pictures[1:], duration=100)
    whole = (tmp_path / "x.webp").read_bytes()
    (tmp_path / "x.webp").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cannot read .*x\.webp: Pillow finds no whole picture"):
        read_video(tmp_path / "x.webp")
