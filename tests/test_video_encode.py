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

from tests.test_video_io import waves
from videogen.data.video_encode import ENCODERS, GROWING, as_rate, encode_video
from videogen.data.video_io import probe, read_video

ENCODE_ALL = """
import hashlib, sys
from pathlib import Path
import numpy as np
from videogen.data.video_encode import ENCODERS, encode_video
frames = np.random.default_rng(0).integers(256, size=(12, 6, 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
for suffix in [*ENCODERS] * 2:
    for growing in (False, True):
        path = Path(sys.argv[1]) / f"clip{suffix}"
        encode_video(path, suffix, frames, fps=8, crf=12, growing=growing)
        print(suffix, growing, hashlib.sha256(path.read_bytes()).hexdigest())
"""


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
    assert len(outputs[0]) == 4 * len(ENCODERS)
    assert len({*outputs[0]}) == 2 * len(ENCODERS)  # the second time in the same process, too


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
