"""Encoding: the bytes depend on nothing but frames and settings, and a growing file is readable while it grows."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from numpy import ndarray

from tests.test_cli import QUICK, refused
from tests.test_video_io import waves
from videogen.cli.main import sample
from videogen.data.video_encode import CODECS, ENCODERS, GROWING, as_rate, check_encoder, encode_video
from videogen.data.video_io import probe, read_settings, read_video, write_video

ENCODE_ALL = """
import hashlib, sys
from pathlib import Path
import numpy as np
from videogen.data.video_encode import CODECS, ENCODERS, encode_video
frames = np.random.default_rng(0).integers(256, size=(12, 6, 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
for suffix in [*ENCODERS] * 2:
    for growing in (False, True):
        path = Path(sys.argv[1]) / f"clip{suffix}"
        encode_video(path, suffix, frames, fps=8, crf=12, growing=growing)
        print(suffix, growing, hashlib.sha256(path.read_bytes()).hexdigest())
    for codec in (codec for codec in CODECS if suffix in CODECS[codec]):
        encode_video(path, suffix, frames, fps=8, crf=12, codec=codec)
        print(suffix, codec, hashlib.sha256(path.read_bytes()).hexdigest())
"""
OF_CODECS = [(codec, suffix) for codec in CODECS for suffix in CODECS[codec]]


class Pipe(io.BytesIO):
    """A file that cannot go back."""

    def seekable(self) -> bool:
        return False


def test_the_bytes_do_not_depend_on_what_memory_held_before(tmp_path: Path) -> None:
    """glibc fills memory with a byte of choice: what an encoder reads without having written it then differs."""
    outputs = [
        subprocess.run(
            [sys.executable, "-c", ENCODE_ALL, tmp_path],
            env=os.environ | {"MALLOC_PERTURB_": filling},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        for filling in ("0", "85")
    ]
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) == 4 * len(ENCODERS) + 2 * len(OF_CODECS)
    assert len({*outputs[0]}) == 2 * len(ENCODERS) + len(OF_CODECS)  # the second time in the same process, too


@pytest.mark.parametrize("suffix", GROWING)
def test_a_growing_file_has_every_frame_but_the_last_at_any_moment(tmp_path: Path, suffix: str) -> None:
    frames, path, counts = waves(17), tmp_path / f"clip{suffix}", []

    def source() -> Iterator[ndarray]:
        for number, frame in enumerate(frames):
            yield frame.numpy()  # behind this line the frame is encoded
            if number:
                counts.append(probe(path).num_frames)

    encode_video(path, suffix, source(), fps=8, crf=12, tags={"comment": "settings"}, growing=True)
    assert counts == list(range(1, 17))
    assert probe(path)[:4] == (64, 48, 17, pytest.approx(8))
    difference = (read_video(path).int() - frames.int()).abs().float()
    assert difference.mean() < 4  # 4:2:0 keeps a quarter of the colour samples


def test_a_growing_file_holds_the_pictures_of_one_written_at_once(tmp_path: Path) -> None:
    frames = [*waves(17).numpy()]
    for growing in (False, True):  # without a loss, so that the encoder's choices do not matter
        encode_video(tmp_path / f"{growing}.mp4", ".mp4", frames, fps=8, crf=0, growing=growing)
    assert np.array_equal(read_video(tmp_path / "True.mp4"), read_video(tmp_path / "False.mp4"))
    assert np.array_equal(read_video(tmp_path / "True.mp4"), read_video(tmp_path / "True.mp4", reader="pyav"))


@pytest.mark.parametrize("suffix", GROWING)
def test_a_pipe_takes_a_growing_file(suffix: str) -> None:
    pipe = Pipe()
    encode_video(pipe, suffix, [*waves(5).numpy()], fps=8, crf=12, tags={"comment": "settings"}, growing=True)
    with av.open(io.BytesIO(pipe.getvalue())) as container:
        assert {key.lower(): value for key, value in container.metadata.items()}["comment"] == "settings"
        assert len([*container.decode(video=0)]) == 5


@pytest.mark.parametrize(
    ("fps", "rate"), [(24, "24"), (24000 / 1001, "24000/1001"), (29.97, "2997/100"), (0.3, "3/10")]
)
def test_a_frame_rate_is_a_fraction_that_files_hold(fps: float, rate: str) -> None:
    assert str(as_rate(fps)) == rate
    assert as_rate(1e-4) > 0


@pytest.mark.parametrize(("codec", "suffix"), OF_CODECS)
def test_a_codec_keeps_frames_rate_colours_and_settings(
    codec: str, suffix: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    frames, path = waves(17), tmp_path / f"clip{suffix}"
    write_video(path, frames, fps=8, settings={"prompt": "a cat"}, codec=codec)
    assert capfd.readouterr() == ("", "")
    assert probe(path)[:4] == (64, 48, 17, pytest.approx(8))
    assert read_settings(path) == {"prompt": "a cat"}
    assert (read_video(path).int() - frames.int()).abs().float().mean() < 4  # 4:2:0 keeps a quarter of the colours
    with av.open(str(path)) as file:
        context = file.streams.video[0].codec_context
        assert context.name == {"av1": "libdav1d"}[codec]
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (1, 1, 1, 1)


def test_a_codec_that_a_format_does_not_hold_is_refused(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["x", "--model", str(checkpoint), *QUICK]
    for suffix, codec, message in (
        (".gif", "av1", "codec av1 is written in .mp4, .mkv, .webm, and not in a .gif"),
        (".mov", "av1", "codec av1 is written in .mp4, .mkv, .webm, and not in a .mov"),
        (".png", "av1", "and not in a .png"),
    ):
        with pytest.raises(ValueError, match=message):
            write_video(tmp_path / f"clip{suffix}", waves(1), fps=8, codec=codec)
        flags = ["--frames", "1", "--codec", codec, "--out", str(tmp_path / f"clip{suffix}")]
        refused(capsys, sample([*words, *flags]), message)
    with pytest.raises(ValueError, match="a file in av1 cannot be played while it grows; leave the codec out"):
        write_video(tmp_path / "clip.mp4", waves(2), fps=8, codec="av1", on_part=lambda path: None)
    with pytest.raises(ValueError, match="codec must be av1, or left out, got 'vp8'"):
        check_encoder(".mp4", "vp8")
    with pytest.raises(ValueError, match=r"got 'hevc' \(HEVC's encoder here writes other bytes each time\)"):
        check_encoder(".mp4", "hevc")
    refused(capsys, sample([*words, "--codec", "hevc"]), "hevc")
    refused(capsys, sample([*words, "--codec", "av1", "--stream"]), "--stream writes H.264, which browsers play")
    assert list(tmp_path.iterdir()) == []


def test_a_clip_in_a_codec_is_made_again_in_it(tmp_path: Path, checkpoint: Path) -> None:
    first, again = tmp_path / "first.mp4", tmp_path / "again.mp4"
    model = ["--model", str(checkpoint)]
    assert sample(["a red circle", *model, *QUICK, "--codec", "av1", "--out", str(first)]) == 0
    assert read_settings(first)["codec"] == "av1"
    assert sample(["--from", str(first), *model, "--out", str(again)]) == 0
    assert again.read_bytes() == first.read_bytes()
