"""sample.py with pictures, clips and masks: what is written and said, and what is refused before anything loads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.bad_files import CASES
from tests.conftest import seeded
from tests.test_cli import refused
from videogen.cli.known_material import read_clip
from videogen.cli.main import sample
from videogen.data.files import content_id
from videogen.data.saved_latents import read_latent
from videogen.data.video_io import probe, read_settings, read_video, write_video
from videogen.doctor.mend_video import Mending, mended_pictures

NUM, FPS = 9, 12.0  # of the given clip, whose rate is not the checkpoint's own


def draw_clip(num: int, width: int = 48, height: int = 32, seed: int = 0) -> Tensor:
    """Draw a clip that is smooth in space and time, so that H.264 keeps it."""
    noise = torch.rand(1, 3, 3, 3, 4, generator=seeded(seed))
    smooth = torch.nn.functional.interpolate(noise, size=(num, height, width), mode="trilinear")
    return (255 * smooth[0]).byte().permute(1, 2, 3, 0).contiguous()


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """A clip of the tiny checkpoint's size."""
    write_video(tmp_path / "given.mp4", draw_clip(NUM), fps=FPS)
    return tmp_path / "given.mp4"


@pytest.fixture
def words(checkpoint: Path) -> list[str]:
    return ["a red circle", "--model", str(checkpoint), "--steps", "2"]


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make it an error to load the model."""
    monkeypatch.setattr("videogen.cli.sample.load", lambda *args: pytest.fail("the model was loaded"))


def assert_kept(result: Tensor, frames: Tensor) -> None:
    """Compare up to H.264, through which both went once more."""
    assert result.shape == frames.shape
    assert (result.float() - frames.float()).abs().mean() < 2


# --- what is written


def test_a_clip_is_extended_by_the_seconds_asked_for_and_keeps_its_rate_and_frames(
    words: list[str], given: Path, tmp_path: Path
) -> None:
    assert sample([*words, "--video", str(given), "--extend", "1", "--out", str(tmp_path / "a.mp4")]) == 0
    info = probe(tmp_path / "a.mp4")
    assert (info.num_frames, info.fps, info.width, info.height) == (NUM + 12, FPS, 48, 32)
    assert_kept(read_video(tmp_path / "a.mp4")[:NUM], read_video(given))


def test_a_clip_is_extended_backward(words: list[str], given: Path, tmp_path: Path) -> None:
    assert sample([*words, "--video", str(given), "--extend", "-1", "--out", str(tmp_path / "a.mp4")]) == 0
    frames = read_video(tmp_path / "a.mp4")
    assert len(frames) == 12 + NUM
    assert_kept(frames[12:], read_video(given))


@pytest.mark.parametrize("num", [10, 12])
def test_frames_that_fill_no_latent_frame_are_kept_as_well(num: int, words: list[str], tmp_path: Path) -> None:
    write_video(tmp_path / "given.mp4", draw_clip(num), fps=FPS)
    for seconds, place in ((0.7, slice(num)), (-0.7, slice(8, 8 + num))):
        out = tmp_path / f"{seconds}.mp4"
        video = ["--video", str(tmp_path / "given.mp4"), f"--extend={seconds}"]
        assert sample([*words, *video, "--out", str(out)]) == 0
        frames = read_video(out)
        assert len(frames) == 8 + num
        assert_kept(frames[place], read_video(tmp_path / "given.mp4"))


def test_two_clips_are_joined_by_a_made_middle(words: list[str], given: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.mp4"
    write_video(other, draw_clip(11, seed=1), fps=FPS)
    out = tmp_path / "a.mp4"
    assert sample([*words, "--video", str(given), "--join", str(other), "--extend", "1", "--out", str(out)]) == 0
    frames = read_video(out)
    assert len(frames) == NUM + 11 + 11  # the latent frame that ends in the other's first frame has three of its own
    assert_kept(frames[:NUM], read_video(given))
    assert_kept(frames[-11:], read_video(other))


def test_a_loop_ends_before_its_first_frame_comes_again(words: list[str], given: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.mp4"
    assert sample([*words, "--video", str(given), "--loop", "--extend", "1", "--out", str(out)]) == 0
    frames = read_video(out)
    assert len(frames) == NUM + 11
    assert_kept(frames[:NUM], read_video(given))


def test_only_what_a_mask_shows_white_is_made_anew(words: list[str], given: Path, tmp_path: Path) -> None:
    mask = torch.zeros(32, 48, dtype=torch.uint8)
    mask[8:24, 8:24] = 255
    Image.fromarray(mask.numpy()).save(tmp_path / "mask.png")
    out = tmp_path / "a.mp4"
    assert sample([*words, "--video", str(given), "--mask", str(tmp_path / "mask.png"), "--out", str(out)]) == 0
    change = (read_video(out).float() - read_video(given).float()).abs().mean(-1)
    assert change[:, mask == 255].mean() > 10
    assert change[:, mask == 0].mean() < 3
    write_video(tmp_path / "mask.mp4", mask[None, :, :, None].expand(NUM, -1, -1, 3), fps=FPS)
    again = tmp_path / "b.mp4"
    assert sample([*words, "--video", str(given), "--mask", str(tmp_path / "mask.mp4"), "--out", str(again)]) == 0
    assert torch.equal(read_video(again), read_video(out))


def test_a_picture_is_masked_too(words: list[str], tmp_path: Path) -> None:
    Image.fromarray(draw_clip(1)[0].numpy()).save(tmp_path / "picture.png")
    mask = Image.new("L", (48, 32))
    mask.paste(255, (0, 0, 16, 16))
    mask.save(tmp_path / "mask.png")
    files = ["--video", str(tmp_path / "picture.png"), "--mask", str(tmp_path / "mask.png")]
    assert sample([*words, *files, "--out", str(tmp_path / "a.png")]) == 0
    before, after = read_video(tmp_path / "picture.png"), read_video(tmp_path / "a.png")
    assert torch.equal(before[:, 16:], after[:, 16:])
    assert not torch.equal(before[:, :16, :16], after[:, :16, :16])


def test_images_are_shown_at_their_times(words: list[str], tmp_path: Path) -> None:
    names = []
    for seed in range(3):
        Image.fromarray(draw_clip(1, seed=seed)[0].numpy()).save(tmp_path / f"{seed}.png")
        names.append(str(tmp_path / f"{seed}.png"))
    flags = ["--image", names[0], "--image", f"{names[1]}@0.5", "--image", f"{names[2]}@last"]
    out = tmp_path / "a.mp4"
    assert sample([*words, *flags, "--frames", "17", "--save-latents", "--out", str(out)]) == 0
    assert (
        sample([*words, "--image", names[0], "--frames", "17", "--save-latents", "--out", str(tmp_path / "b.mp4")]) == 0
    )
    latents = [read_latent(tmp_path / f"{name}.safetensors") for name in ("a", "b")]
    is_same = [torch.equal(one, other) for one, other in zip(latents[0].unbind(1), latents[1].unbind(1), strict=True)]
    assert is_same == [True, False, False, False, False]
    assert read_settings(out)["image"] == [names[0], f"{names[1]}@0.5", f"{names[2]}@last"]


# --- again, and on


@pytest.mark.parametrize(("name", "transfer"), [("hdr.mp4", "PQ"), ("hlg.mov", "HLG")])
def test_an_hdr_clip_is_mapped_to_sdr_as_the_doctors_copy_is(
    name: str, transfer: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    CASES[name][0](path := tmp_path / name)
    fps = probe(path).fps
    doctors = np.stack([picture.pixels for picture in mended_pictures(path, Mending(transfer=transfer))])
    assert np.array_equal(read_clip(path, fps).numpy(), doctors)
    write_video(tmp_path / "once.mp4", torch.from_numpy(doctors), fps=fps)
    once, washed_out = read_video(tmp_path / "once.mp4"), read_video(path)
    out = tmp_path / "out.mp4"
    assert sample([*words, "--video", str(path), "--extend", "0.2", "--out", str(out)]) == 0
    assert f"note: {path} is HDR ({transfer}); its brightness is mapped to that of SDR" in capsys.readouterr().err
    written = read_video(out)[: len(doctors)]
    assert_kept(written, once)
    assert (written.float() - washed_out.float()).abs().mean() > 5


@pytest.mark.parametrize("flags", [["--extend", "1"], ["--strength", "0.5"], ["--loop", "--extend", "0.7"]], ids=str)
def test_from_repeats_a_clip_with_what_was_given(
    flags: list[str], words: list[str], given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, again = tmp_path / "first.mp4", tmp_path / "again.mp4"
    assert sample([*words, "--steps", "4", "--video", str(given), *flags, "--out", str(first)]) == 0
    settings = read_settings(first)
    assert settings["video_sha256"] == [content_id(given)]
    assert sample(["--from", str(first), *words[1:3], "--out", str(again)]) == 0
    assert first.read_bytes() == again.read_bytes()
    write_video(given, draw_clip(NUM, seed=7), fps=FPS, overwrite=True)
    capsys.readouterr()
    refused(capsys, sample(["--from", str(first), *words[1:3], "--out", str(tmp_path / "c.mp4")]), "give the same with")


def test_a_clip_made_here_is_extended_by_its_latent_and_not_encoded_again(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, longer = tmp_path / "first.mp4", tmp_path / "longer.mp4"
    assert sample([*words, "--frames", "9", "--save-latents", "--out", str(first)]) == 0
    extend = ["--video", str(first), "--extend", "1", "--save-latents", "--out", str(longer)]
    with monkeypatch.context() as patched:
        patched.setattr("videogen.models.vae_network.VAE.posterior", lambda *args: pytest.fail("the VAE encoded"))
        assert sample([*words, *extend]) == 0
    latents = [read_latent(path.with_suffix(".safetensors")) for path in (first, longer)]
    assert torch.equal(latents[1][:, :3], latents[0])
    assert probe(longer).num_frames == 17
    longer.unlink()  # and the same command decodes what it made
    monkeypatch.setattr("videogen.cli.sample.load", lambda *args: pytest.fail("the model was loaded"))
    assert sample([*words, *extend]) == 0
    assert probe(longer).num_frames == 17


def test_a_latent_of_another_clip_is_not_taken_for_this_one(
    words: list[str], given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sample([*words, "--frames", "5", "--save-latents", "--out", str(tmp_path / "other.mp4")]) == 0
    (tmp_path / "other.safetensors").rename(given.with_suffix(".safetensors"))
    assert sample([*words, "--video", str(given), "--extend", "1", "--out", str(tmp_path / "a.mp4")]) == 0
    assert "is the latent of another clip or checkpoint; " in capsys.readouterr().err


def test_a_dry_run_counts_the_windows_of_an_extension(
    words: list[str], given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sample([*words, "--video", str(given), "--extend", "2", "--dry-run", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["frames"], row["windows"], row["tokens"]) == (33, 6, 18)  # three latent frames are the model's own
    assert row["evaluations"] == 6 * 4


# --- size and shape


def test_a_clip_is_fitted_and_the_command_says_how(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(draw_clip(1, width=100, height=50)[0].numpy()).save(tmp_path / "wide.png")
    flags = [*words, "--image", str(tmp_path / "wide.png"), "--dry-run"]
    assert sample(flags) == 0
    output = capsys.readouterr()
    assert "wide.png is 100x50 and the clip 48x32: 25% is cropped left and right; --fit pad keeps it" in output.err
    assert sample([*flags, "--fit", "pad"]) == 0
    assert "bars of black are added" in capsys.readouterr().err
    assert sample([*flags, "--fit", "size"]) == 0
    output = capsys.readouterr()
    assert "size 96x48" in output.out  # cut to the strides, which is less than anybody sees
    assert output.err == ""


def test_a_given_clip_sets_size_and_rate_unless_flags_do(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_video(tmp_path / "large.mp4", draw_clip(NUM, width=100, height=70), fps=FPS)
    flags = [*words, "--video", str(tmp_path / "large.mp4"), "--strength", "0.5", "--dry-run", "--json"]
    rows = []
    for more in ([], ["--size", "32x32"], ["--fps", "6"]):
        assert sample([*flags, *more]) == 0
        rows.append(json.loads(capsys.readouterr().out))
    assert [(row["size"], row["frames"]) for row in rows] == [("96x64", 9), ("32x32", 9), ("96x64", 5)]


# --- what is refused

BOTH = ["--video", "given.mp4"]
REFUSED: list[tuple[list[str], str]] = [
    (["--extend", "1"], "--extend needs the clip that it works on; give it with --video"),
    (["--loop"], "--loop needs the clip that it works on"),
    (["--mask", "black.png"], "--mask needs the clip that it works on"),
    (["--strength", "0.5"], "strength below 1 begins with a video; give one with --video"),
    (BOTH, "say what to do with it, by --extend, --join, --loop, --mask or --strength"),
    ([*BOTH, "--join", "given.mp4"], "--join needs to know how long the made part is; give it with --extend SECONDS"),
    ([*BOTH, "--loop", "--extend", "-1"], "--loop needs to know how long"),
    ([*BOTH, "--loop", "--join", "given.mp4", "--extend", "1"], "give one of them"),
    (
        [*BOTH, "--extend", "0.1"],
        "is less than a latent frame, which holds 4 frames (0.333333 s); give at least 0.17 s",
    ),
    ([*BOTH, "--extend", "1", "--frames", "9"], "--extend says how long the clip becomes; leave --frames out"),
    ([*BOTH, "--extend", "1", "--strength", "0.5"], "make one after the other"),
    ([*BOTH, "--mask", "small.png"], "small.png is 16x16 and given.mp4 48x32; give a mask of 48x32"),
    ([*BOTH, "--mask", "black.png"], "black.png is all black; white is made anew"),
    ([*BOTH, "--mask", "white.png"], "white.png is all white; white is made anew"),
    ([*BOTH, "--strength", "0.5", "--frames", "5"], "given.mp4 has 9 frames and the clip 5; leave --frames and"),
    ([*BOTH, "--strength", "0.1"], "strength 0.1 leaves none of 2 steps; give at least 0.5"),
    (["--video", "none.mp4", "--extend", "1"], "none.mp4"),
    (["--video", "black.png", "--extend", "-1"], "has 1 frames, and a clip is extended backward from at least 5"),
    (["--image", "black.png@5"], "black.png at 5 s lies behind a clip of 9 frames (1.125 s); make it longer"),
    (["--image", "black.png", "--image", "white.png"], "black.png and white.png are shown in the same latent frame"),
    (
        ["--image", "black.png@last", "--image", "white.png@1"],
        "are shown in the same latent frame, which holds 4; give",
    ),
    (["--image", "black.png", "--image", "black.png@last", "--frames", "1"], "frames must be more than 1"),
    (["--sweep", "strength=0.5,1"], "strength below 1 begins with a video"),
    (["--image", "text.png"], "Pillow finds no whole picture in it"),
]


@pytest.mark.usefixtures("unloaded", "given")
@pytest.mark.parametrize(("flags", "message"), REFUSED, ids=[" ".join(flags) for flags, _ in REFUSED])
def test_what_cannot_be_made_is_refused_before_the_model_is_loaded(
    flags: list[str],
    message: str,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, size, colour in (("black", (48, 32), 0), ("white", (48, 32), 255), ("small", (16, 16), 0)):
        Image.new("L", size, colour).save(f"{name}.png")
    Path("text.png").write_text("no picture", encoding="utf-8")
    refused(capsys, sample([*words, *flags]), message)
    assert not Path("out").exists()


@pytest.mark.usefixtures("unloaded")
def test_rows_of_another_size_than_the_given_clip_are_refused(
    words: list[str], given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.csv").write_text("prompt,size\nx,32x32\n", encoding="utf-8")
    flags = ["--prompts", str(tmp_path / "prompts.csv"), "--video", str(given), "--extend", "1"]
    refused(capsys, sample([*words[1:], *flags]), "has size 48x32, and a row of the prompts file or a sweep says 32x32")
