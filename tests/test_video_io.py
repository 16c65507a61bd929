"""Reading and writing videos, on files that FFmpeg writes here."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import av
import imageio.v3 as iio
import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from videogen.data.video_io import WRITABLE, probe, read_settings, read_video, write_video

PROMPT = 'a "red" fox; speed=2\nand a \\backslash, 你好 🦊 ' * 100
H264 = ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "8")


def ffmpeg(*args: str | Path) -> None:
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, args)], check=True)


def make_video(path: Path, *options: str, size: str = "64x96", seconds: float = 1) -> Path:
    """Write FFmpeg's moving test picture at 24 frames a second."""
    ffmpeg("-f", "lavfi", "-i", f"testsrc2=size={size}:rate=24:duration={seconds}", *(options or H264), path)
    return path


def waves(num_frames: int, height: int = 48, width: int = 64) -> Tensor:
    """Return smooth drifting colours (t, h, w, 3) uint8."""
    t, y, x = torch.meshgrid(torch.arange(num_frames), torch.arange(height), torch.arange(width), indexing="ij")
    angles = torch.stack([x / 9 + t / 3, y / 7 - t / 4, (x + y) / 13], dim=-1)
    return (128 + 90 * torch.sin(angles)).to(torch.uint8)


def make_counting_video(path: Path, times: list[float]) -> Path:
    """Write a file whose frame i is gray 8·i and appears at times[i]."""
    stamps = "+".join(f"eq(N,{i})*{seconds}" for i, seconds in enumerate(times))
    source = f"nullsrc=size=64x64:rate=24,format=gray,geq=lum=8*N,trim=end_frame={len(times)},setpts='({stamps})/TB'"
    ffmpeg("-f", "lavfi", "-i", source, "-fps_mode", "vfr", "-enc_time_base", "1/24000", *H264[:4], "-crf", "1", path)
    return path


def frame_numbers(frames: Tensor) -> list[int]:
    """Return the frame numbers of frames from a counting video."""
    return [round(mean / 8) for mean in frames.float().mean(dim=(1, 2, 3)).tolist()]


def psnr(frames: Tensor, reference: Tensor) -> float:
    return float(10 * torch.log10(255**2 / (frames.float() - reference.float()).square().mean()))


def list_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- round trips


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_a_written_video_reads_back_with_its_length_size_and_fps(tmp_path: Path, suffix: str) -> None:
    frames, path = waves(17), tmp_path / f"clip{suffix}"
    write_video(path, frames, fps=24)
    back, info = read_video(path), probe(path)
    assert back.shape == frames.shape
    assert back.dtype == torch.uint8
    assert psnr(back, frames) > 30  # 4:2:0 keeps a quarter of the colour samples
    assert info[:4] == (64, 48, 17, pytest.approx(24))
    assert info.seconds == pytest.approx(17 / 24, abs=0.002)  # WebM has a clock of milliseconds


def test_a_gif_reads_back_with_its_length_size_and_fps(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.gif", waves(48), fps=24)
    info = probe(tmp_path / "clip.gif")
    assert info[:3] == (64, 48, 48)
    assert info.fps == pytest.approx(24, rel=0.01)  # a GIF counts in hundredths of a second
    assert psnr(read_video(tmp_path / "clip.gif", fps=24), waves(48)) > 25  # 256 colours a frame


def test_a_png_is_lossless_and_holds_a_single_frame(tmp_path: Path) -> None:
    write_video(tmp_path / "one.png", waves(1, 33, 17), fps=24)
    assert torch.equal(read_video(tmp_path / "one.png"), waves(1, 33, 17))
    with pytest.raises(ValueError, match="holds one frame"):
        write_video(tmp_path / "two.png", waves(2), fps=24)
    assert list_names(tmp_path) == ["one.png"]


@pytest.mark.parametrize(("width", "height"), [(2, 2), (16, 16), (48, 48), (62, 34), (130, 98)])
def test_small_and_unaligned_sizes_are_written_unchanged(tmp_path: Path, width: int, height: int) -> None:
    write_video(tmp_path / "clip.mp4", waves(5, height, width), fps=8)
    assert read_video(tmp_path / "clip.mp4").shape == (5, height, width, 3)


@pytest.mark.parametrize("fps", [1, 7.5, 24000 / 1001, 29.97, 60])
def test_whole_and_fractional_frame_rates_are_kept(tmp_path: Path, fps: float) -> None:
    write_video(tmp_path / "clip.mp4", waves(9), fps=fps)
    assert probe(tmp_path / "clip.mp4").fps == pytest.approx(fps, rel=1e-4)


def test_colours_survive_writing_and_reading(tmp_path: Path) -> None:
    colours = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [120, 60, 200]])
    frames = colours.to(torch.uint8)[:, None, None].expand(-1, 32, 64, 3)
    write_video(tmp_path / "clip.mp4", frames, fps=4, crf=1)
    assert (read_video(tmp_path / "clip.mp4").int() - frames.int()).abs().max() <= 4  # limited range has 220 levels
    assert iio.immeta(tmp_path / "clip.mp4", plugin="pyav")["profile"] == "High"


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
def test_a_file_says_its_matrix_primaries_transfer_and_range(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"clip{suffix}"
    write_video(path, waves(5), fps=8)
    program = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", path]
    described = subprocess.run(program, capture_output=True, text=True).stderr
    assert re.search(r"Video: (h264|vp9).*, yuv420p\(tv, bt709, ", described), (
        described
    )  # one name where all three agree
    with av.open(path) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.colorspace, codec.color_primaries, codec.color_trc, codec.color_range) == (1, 1, 1, 1)
    if suffix in (".mp4", ".mov"):  # the atom that players read before the stream: BT.709 three times
        video = path.read_bytes()
        kind = b"nclx" if suffix == ".mp4" else b"nclc"
        assert video[video.index(b"colr") :].startswith(b"colr" + kind + b"\0\1" * 3)


def test_frames_in_chunks_give_the_same_bytes_as_frames_in_one_tensor(tmp_path: Path) -> None:
    write_video(tmp_path / "whole.mp4", waves(17), fps=24, settings={"seed": 1})
    write_video(tmp_path / "chunks.mp4", iter(waves(17).split(5)), fps=24, settings={"seed": 1})
    assert (tmp_path / "whole.mp4").read_bytes() == (tmp_path / "chunks.mp4").read_bytes()


@pytest.mark.parametrize("suffix", WRITABLE)
def test_the_same_frames_and_settings_give_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    paths = [tmp_path / name / f"clip{suffix}" for name in ("a", "b")]
    for path in paths:
        write_video(path, waves(1 if suffix == ".png" else 24, 96, 160), fps=24, settings={"prompt": PROMPT})
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_an_mp4_starts_with_its_index(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", waves(5), fps=24)
    video = (tmp_path / "clip.mp4").read_bytes()
    assert 0 < video.index(b"moov") < video.index(b"mdat")


# --- settings


@pytest.mark.parametrize("suffix", WRITABLE)
def test_settings_are_read_back_from_every_format(tmp_path: Path, suffix: str) -> None:
    settings = {"prompt": PROMPT, "seed": 7, "guidance": 4.5, "sizes": [1, 2], "negative": None, "empty": ""}
    assert len(PROMPT) > 4000
    write_video(tmp_path / f"clip{suffix}", waves(1), fps=24, settings=settings)
    assert read_settings(tmp_path / f"clip{suffix}") == settings
    assert len(read_video(tmp_path / f"clip{suffix}")) == 1


def test_a_file_without_settings_is_refused_by_name(tmp_path: Path) -> None:
    write_video(tmp_path / "plain.mp4", waves(1), fps=24)
    foreign = make_video(tmp_path / "foreign.mp4", *H264, "-metadata", "comment=[1, 2]")
    for path in (tmp_path / "plain.mp4", foreign):
        with pytest.raises(ValueError, match=f"{path.name} carries no settings"):
            read_settings(path)


@pytest.mark.parametrize("suffix", WRITABLE)
def test_settings_may_be_as_long_as_they_are(tmp_path: Path, suffix: str) -> None:
    settings = {"prompt": "a red circle, " * 50_000}  # no argument of a program holds this
    write_video(tmp_path / f"clip{suffix}", waves(1), fps=24, settings=settings)
    assert read_settings(tmp_path / f"clip{suffix}") == settings


# --- reading by time


def test_without_fps_every_frame_is_read_once(tmp_path: Path) -> None:
    path = make_counting_video(tmp_path / "clip.mp4", [i / 24 for i in range(20)])
    assert frame_numbers(read_video(path)) == list(range(20))
    assert frame_numbers(read_video(path, start_seconds=0.5, num_frames=3)) == [12, 13, 14]


@pytest.mark.parametrize("fps", [5, 8, 10, 24, 30, 60])
def test_with_fps_each_frame_is_the_one_on_screen_at_its_time(tmp_path: Path, fps: float) -> None:
    path = make_counting_video(tmp_path / "clip.mp4", [i / 24 for i in range(20)])
    expected = [int(i / fps * 24 + 1e-6) for i in range(100)]
    assert frame_numbers(read_video(path, fps=fps)) == [number for number in expected if number < 20]
    assert frame_numbers(read_video(path, fps=fps, num_frames=3)) == expected[:3]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("reader", ["decord", "pyav"])
def test_a_variable_frame_rate_is_read_by_time(tmp_path: Path, suffix: str, reader: str) -> None:
    path = make_counting_video(tmp_path / f"vfr{suffix}", [0, 0.1, 0.2, 0.7, 0.8, 1.5])
    options = {"fps": 10, "num_frames": 14, "reader": reader}
    assert frame_numbers(read_video(path, **options)) == [0, 1, 2, 2, 2, 2, 2, 3, 4, 4, 4, 4, 4, 4]
    assert frame_numbers(read_video(path, fps=4, num_frames=3, start_seconds=0.65, reader=reader)) == [2, 4, 4]
    assert frame_numbers(read_video(path, reader=reader)) == [0, 1, 2, 3, 4, 5]


def test_frames_past_the_end_are_left_out(tmp_path: Path) -> None:
    path = make_counting_video(tmp_path / "clip.mp4", [i / 24 for i in range(12)])
    assert frame_numbers(read_video(path, fps=24, start_seconds=0.25, num_frames=100)) == [6, 7, 8, 9, 10, 11]
    with pytest.raises(ValueError, match=r"no frame at 3 s: it ends after 0\.500 s"):
        read_video(path, start_seconds=3)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".ts", ".mov", ".gif"])
def test_a_late_start_gives_the_same_frames_as_reading_from_the_beginning(tmp_path: Path, suffix: str) -> None:
    codec = {".webm": ("-c:v", "libvpx-vp9"), ".gif": ("-c:v", "gif")}.get(suffix, H264)
    path = make_video(tmp_path / f"clip{suffix}", *codec, "-g", "10", seconds=2)
    for reader in ("auto", "pyav"):
        late, whole = (read_video(path, fps=8, start_seconds=s, reader=reader) for s in (1.25, 0))
        torch.testing.assert_close(late, whole[10:], atol=0, rtol=0)


SEEK_CASES = {  # Late in most of these, decord's seeking returns the wrong frames.
    "transport stream": (".ts", *H264, "-g", "12"),
    "open groups": (".mp4", *H264, "-g", "12", "-x264-params", "open-gop=1"),
    "HEVC in MKV": (".mkv", "-c:v", "libx265", "-x265-params", "log-level=error:keyint=12"),
    "HEVC in MP4": (".mp4", "-c:v", "libx265", "-x265-params", "log-level=error:keyint=12"),
    "MPEG-2": (".mp4", "-c:v", "mpeg2video", "-q:v", "2", "-g", "12", "-bf", "2"),
    "closed groups": (".mp4", *H264, "-g", "12"),
}


@pytest.mark.parametrize("options", SEEK_CASES.values(), ids=SEEK_CASES)
def test_seeking_gives_the_right_frames_in_every_codec(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Frame i is gray 16 + 2.9·i, so that its level tells its number."""
    suffix, *codec = options
    path = tmp_path / f"clip{suffix}"
    source = "nullsrc=size=64x64:rate=24:duration=3.2,format=gray,geq=lum=16+2.9*N,format=yuv420p"
    ffmpeg("-f", "lavfi", "-i", source, *codec, path)
    for start, step in ((0, 3), (18, 3), (30, 1), (47, 6), (60, 2)):
        frames = read_video(path, fps=24 / step, start_seconds=start / 24, num_frames=3)
        expected = read_video(path, reader="pyav")[[start, start + step, start + 2 * step]]
        assert (frames.int() - expected.int()).abs().float().mean() < 1
    levels = read_video(path).float().mean(dim=(1, 2, 3))
    assert len(levels) == pytest.approx(77, abs=1)
    assert (levels.diff() > 0).all()  # in order, none twice


def test_frames_with_oblong_pixels_are_resized_to_square_ones(tmp_path: Path) -> None:
    path = make_video(tmp_path / "clip.mp4", *H264, "-vf", "setsar=4/3", size="96x64")
    assert probe(path)[:2] == (128, 64)
    assert read_video(path, num_frames=2).shape == (2, 64, 128, 3)
    assert read_video(path, num_frames=2, size=(64, 32)).shape == (2, 32, 64, 3)
    plain = read_video(make_video(tmp_path / "plain.mp4", size="96x64"), num_frames=2, size=(128, 64))
    assert (read_video(path, num_frames=2).int() - plain.int()).abs().float().mean() < 1


def test_a_video_whose_title_is_not_utf8_is_read(tmp_path: Path) -> None:
    path = make_video(tmp_path / "clip.avi", "-c:v", "mpeg4", "-metadata", "title=cafe")
    path.write_bytes(path.read_bytes().replace(b"cafe", b"caf\xe9"))
    assert len(read_video(path)) == probe(path).num_frames == 24


def test_a_transform_of_each_chunk_equals_the_transform_of_the_whole_video(tmp_path: Path) -> None:
    path = make_video(tmp_path / "clip.mp4", seconds=2)
    assert torch.equal(read_video(path, transform=lambda chunk: chunk[:, ::2]), read_video(path)[:, ::2])


# --- the two readers

PIXEL_FORMATS = {
    "plain": (),
    "bt709": ("-vf", "scale=out_color_matrix=bt709", *H264, "-colorspace", "bt709"),
    "full range": ("-vf", "scale=out_range=pc", "-c:v", "libx264", "-pix_fmt", "yuvj420p", "-color_range", "pc"),
    "10 bits": ("-c:v", "libx264", "-pix_fmt", "yuv420p10le"),
    "4:4:4": ("-c:v", "libx264", "-pix_fmt", "yuv444p"),
    "variable rate": ("-vf", "setpts='if(lt(N,9),N,9+(N-9)*3)/24/TB'", "-fps_mode", "vfr", *H264),
}


@pytest.mark.parametrize("ffmpeg_options", PIXEL_FORMATS.values(), ids=PIXEL_FORMATS)
def test_both_readers_give_the_same_pixels(tmp_path: Path, ffmpeg_options: tuple[str, ...]) -> None:
    path = make_video(tmp_path / "clip.mp4", *ffmpeg_options)
    for options in ({}, {"fps": 10.0}, {"fps": 50.0, "start_seconds": 0.3}, {"size": (40, 30), "num_frames": 4}):
        by_decord, by_pyav = (read_video(path, reader=reader, **options) for reader in ("decord", "pyav"))
        assert by_decord.shape == by_pyav.shape
        assert (by_decord.int() - by_pyav.int()).abs().max() <= 2


def test_a_size_that_decord_cannot_read_is_read_by_pyav(tmp_path: Path) -> None:
    path = make_video(tmp_path / "clip.mp4", size="48x48")
    with pytest.raises(ValueError, match=r"decord cannot read .*clip\.mp4.*use reader='auto'"):
        read_video(path, reader="decord")
    assert torch.equal(read_video(path), read_video(path, reader="pyav"))
    padded = make_video(tmp_path / "padded.mp4", "-vf", "pad=64:48", *H264[:4], "-qp", "0", size="48x48")
    lossless = make_video(tmp_path / "lossless.mp4", *H264[:4], "-qp", "0", size="48x48")
    # The same picture, padded to a size that decord can read.
    by_decord, by_pyav = read_video(padded, reader="decord")[:, :, :40], read_video(lossless)[:, :, :40]
    assert (by_decord.int() - by_pyav.int()).abs().max() <= 2


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif"])
def test_without_decord_every_file_is_read_by_pyav(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"clip{suffix}"
    write_video(path, waves(17), fps=8)
    by_pyav = read_video(path, reader="pyav")
    monkeypatch.setitem(sys.modules, "decord", None)
    assert torch.equal(read_video(path), by_pyav)
    assert torch.equal(
        read_video(path, fps=4, start_seconds=1.0, size=(32, 24)), read_video(path, fps=4, size=(32, 24))[4:]
    )
    if suffix != ".gif":  # which Pillow reads
        with pytest.raises(ValueError, match=r"decord cannot be imported .*; use reader='auto'"):
            read_video(path, reader="decord")


@pytest.mark.parametrize("rotation", [("-display_rotation", d) for d in ("90", "180", "270")] + [("-display_hflip",)])
def test_a_video_is_read_as_it_is_displayed(tmp_path: Path, rotation: tuple[str, ...]) -> None:
    plain = make_video(tmp_path / "plain.mp4", size="64x128")
    ffmpeg(*rotation, "-i", plain, "-c", "copy", tmp_path / "rotated.mp4")
    degrees = int(rotation[1]) if len(rotation) == 2 else 0
    expected = read_video(plain).rot90(degrees // 90, dims=(1, 2)) if degrees else read_video(plain).flip(2)
    info = probe(tmp_path / "rotated.mp4")
    assert (info.height, info.width) == expected.shape[1:3]
    for reader in ("auto", "pyav"):
        assert torch.equal(read_video(tmp_path / "rotated.mp4", reader=reader), expected)
    if degrees == 180:
        assert torch.equal(read_video(tmp_path / "rotated.mp4", reader="decord"), expected)


@pytest.mark.parametrize("reader", ["auto", "pyav"])
def test_frames_hidden_by_an_edit_list_are_not_read(tmp_path: Path, reader: str) -> None:
    plain = make_video(tmp_path / "plain.mp4")
    ffmpeg("-ss", "0.3", "-i", plain, "-c", "copy", tmp_path / "cut.mp4")
    cut = read_video(tmp_path / "cut.mp4", reader=reader)
    assert torch.equal(cut, read_video(plain)[-len(cut) :])
    assert probe(tmp_path / "cut.mp4")[2:4] == (len(cut), pytest.approx(24))


@pytest.mark.parametrize("suffix", [".avi", ".ts", ".mkv", ".webm", ".mov", ".gif"])
def test_every_container_is_read_to_its_last_frame(tmp_path: Path, suffix: str) -> None:
    codec = {".webm": ("-c:v", "libvpx-vp9"), ".gif": ("-c:v", "gif")}.get(suffix, ("-c:v", "mpeg4", "-q:v", "2"))
    path = make_video(tmp_path / f"clip{suffix}", *codec)
    assert len(read_video(path)) == probe(path).num_frames == 24
    assert probe(path).fps == pytest.approx(24, rel=0.01)


def test_resizing_does_not_alias(tmp_path: Path) -> None:
    path = make_video(tmp_path / "clip.mp4", size="256x128")
    resized = read_video(path, size=(64, 32), num_frames=5)
    assert resized.shape == (5, 32, 64, 3)
    mean = read_video(path, num_frames=5).float().unflatten(1, (32, 4)).unflatten(3, (64, 4)).mean(dim=(2, 4))
    assert psnr(resized, mean) > 25  # bicubic is near the mean of each 4x4; every fourth pixel is not: 15 dB


# --- images


def test_an_image_is_a_video_of_one_frame(tmp_path: Path) -> None:
    for suffix in (".png", ".jpg", ".webp"):
        path = tmp_path / f"image{suffix}"
        Image.fromarray(waves(1)[0].numpy()).save(path, quality=95)
        assert probe(path) == (64, 48, 1, 1.0, 0.0)
        assert psnr(read_video(path, fps=24, num_frames=17), waves(1)) > 25  # (1, h, w, 3): chroma is halved
        assert read_video(path, size=(32, 24)).shape == (1, 24, 32, 3)


def test_an_image_is_rotated_by_its_exif_data(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6  # a quarter turn to the right
    Image.fromarray(waves(1)[0].numpy()).save(tmp_path / "rotated.png", exif=exif)
    assert torch.equal(read_video(tmp_path / "rotated.png"), waves(1).rot90(-1, dims=(1, 2)))
    assert probe(tmp_path / "rotated.png")[:2] == (48, 64)


def test_an_image_of_16_bits_is_read_as_8_bits(tmp_path: Path) -> None:
    Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 257).save(tmp_path / "deep.png")
    assert read_video(tmp_path / "deep.png")[..., 0].flatten().tolist() == list(range(256))


def test_importing_video_io_loads_neither_torch_nor_a_video_library() -> None:
    program = "import sys, videogen.data.video_io; print({'torch', 'decord', 'av', 'imageio'} & set(sys.modules))"
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "set()"
