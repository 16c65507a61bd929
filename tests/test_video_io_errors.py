"""Errors of reading and writing videos: each names the file and the reason, and no file is left half-written."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.test_video_io import ffmpeg, list_names, make_video, waves
from videogen.data.video_io import WRITABLE, probe, read_settings, read_video, write_video


def test_the_error_of_an_unreadable_file_names_it_and_the_reason(tmp_path: Path) -> None:
    video = make_video(tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "half.mp4").write_bytes(video[: len(video) // 2])
    (tmp_path / "text.mp4").write_text("this is no video")
    (tmp_path / "text.png").write_text("this is no picture")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    ffmpeg("-f", "lavfi", "-i", "sine=duration=0.2", tmp_path / "sound.mp4")
    reasons = {"half.mp4": "Invalid data", "text.mp4": "Invalid data", "text.png": "Pillow"}
    reasons |= {"empty.mp4": "", "folder.mp4": "is a folder", "sound.mp4": "no picture", "gone.mp4": "does not exist"}
    for name, reason in reasons.items():
        for function in (probe, read_video, read_settings):
            with pytest.raises(ValueError, match=f"cannot read .*{name}: .*{reason}"):
                function(tmp_path / name)


def test_the_error_of_a_damaged_file_names_it(tmp_path: Path) -> None:
    video = bytearray(make_video(tmp_path / "clip.mp4").read_bytes())
    start = video.index(b"mdat") + len(video) // 3
    video[start : start + 2000] = bytes(2000)
    (tmp_path / "broken.mp4").write_bytes(video)
    with pytest.raises(ValueError, match=r"cannot read .*broken\.mp4: Invalid data"):
        read_video(tmp_path / "broken.mp4")


def test_a_changed_file_is_inspected_again(tmp_path: Path) -> None:
    for size in ((64, 48), (32, 16)):
        write_video(tmp_path / "clip.mp4", waves(3, size[1], size[0]), fps=8, overwrite=True)
        assert probe(tmp_path / "clip.mp4")[:2] == size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fps": 0}, "fps must be above 0, got 0"),
        ({"start_seconds": -1}, "start_seconds must be 0 or more, got -1"),
        ({"num_frames": 0}, "num_frames must be at least 1, got 0"),
        ({"size": (0, 4)}, r"size must be .*got \(0, 4\)"),
        ({"reader": "cv2"}, "reader must be one of auto, decord, pyav, got 'cv2'"),
    ],
)
def test_arguments_of_read_video_out_of_range_are_refused(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_video(make_video(tmp_path / "clip.mp4"), **options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("clip.avi", {}, r"\.mp4, \.mov, \.mkv, \.webm, \.gif or \.png, got 'clip\.avi'"),
        ("clip.mp4", {"fps": 0}, "fps of a .mp4 must be above 0"),
        ("clip.gif", {"fps": 120}, "at most 100, got 120"),
        ("clip.mp4", {"crf": 60}, "crf must be from 0"),
        ("clip.mp4", {"frames": waves(2, 33, 49)}, "even sizes, got 49x33; try 48x32 or 50x34"),
        ("clip.webm", {"frames": waves(2, 32, 49)}, "even sizes, got 49x32; try 48x32 or 50x32"),
        ("clip.mp4", {"frames": waves(0)}, "there are no frames"),
        ("clip.mp4", {"frames": iter([])}, "there are no frames"),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_no_file(
    tmp_path: Path, name: str, options: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / name, **({"frames": waves(2), "fps": 24} | options))
    assert list_names(tmp_path) == []


@pytest.mark.parametrize("frames", [waves(2).float(), waves(2)[0], waves(2)[..., :2], waves(2).movedim(-1, 1)])
def test_frames_of_another_shape_or_dtype_fail_an_assertion(tmp_path: Path, frames: Tensor) -> None:
    with pytest.raises(AssertionError):
        write_video(tmp_path / "clip.mp4", frames, fps=24)


def test_an_existing_file_is_kept_unless_overwrite_is_set(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folders" / "clip.mp4"
    write_video(path, waves(2), fps=24)
    with pytest.raises(FileExistsError, match=r"clip\.mp4 exists already"):
        write_video(path, waves(5), fps=24)
    assert probe(path).num_frames == 2
    write_video(path, waves(5), fps=24, overwrite=True)
    assert probe(path).num_frames == 5


# --- failures while writing


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif"])
@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_write_leaves_the_previous_file_alone(
    tmp_path: Path, suffix: str, interruption: type[BaseException]
) -> None:
    path = tmp_path / f"clip{suffix}"
    write_video(path, waves(3), fps=24)
    previous_bytes = path.read_bytes()

    def chunks() -> Iterator[Tensor]:
        yield waves(9)
        raise interruption

    with pytest.raises(interruption):
        write_video(path, chunks(), fps=24, overwrite=True)
    assert list_names(tmp_path) == [path.name]
    assert path.read_bytes() == previous_bytes


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no RLIMIT_FSIZE")
@pytest.mark.parametrize("suffix", WRITABLE)
def test_a_full_disk_is_an_error_that_leaves_no_file(tmp_path: Path, suffix: str) -> None:
    import resource

    shape = (1 if suffix == ".png" else 30, 128, 128, 3)
    frames = torch.randint(256, shape, generator=torch.Generator().manual_seed(0))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # Larger files fail, here and in FFmpeg.
    try:
        with pytest.raises(OSError, match=rf"could not write .*clip\{suffix}: .*; [\d,]+ MB are free") as error:
            write_video(tmp_path / "out" / f"clip{suffix}", frames.to(torch.uint8), fps=24)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(str(error.value).splitlines()) == 1
    assert list_names(tmp_path / "out") == []


def test_a_stream_without_timestamps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it has no times; ffmpeg can rewrite it"):
        read_video(make_video(tmp_path / "raw.h264"))
