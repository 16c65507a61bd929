"""`--stream`: frames can be seen before the last window is denoised, and are those of a clip that is written whole."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import av
import pytest
import torch
from torch import Tensor

from tests.test_cli import QUICK, refused
from videogen.cli.main import sample
from videogen.cli.streams import StandardOutput
from videogen.data import video_io
from videogen.data.video_encode import encode_video
from videogen.data.video_io import probe, read_settings, read_video
from videogen.sampling.clip_sampler import ClipSampler


@pytest.fixture
def words(checkpoint: Path) -> list[str]:
    """A command whose clip is made in nine windows of two or three latent frames, 41 frames in all."""
    return ["a red circle", "--model", str(checkpoint), "--steps", "2", "--seconds", "5"]


def look_at_each_window(monkeypatch: pytest.MonkeyPatch, look: Callable[[], object]) -> None:
    sampled = ClipSampler.sample

    def sample_window(self: ClipSampler, *args: object, **options: object) -> list[Tensor]:
        look()
        return sampled(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(ClipSampler, "sample", sample_window)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_frames_are_in_the_part_file_before_the_last_window_and_are_those_without_streaming(
    suffix: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        video_io, "encode_video", lambda *args, **options: encode_video(*args, **(options | {"crf": 0}))
    )
    assert sample([*words, "--out", str(tmp_path / f"whole{suffix}")]) == 0
    seen: list[tuple[str, int]] = []

    def look() -> None:
        seen.extend((path.name, probe(path).num_frames) for path in (tmp_path / "out").glob("*"))

    look_at_each_window(monkeypatch, look)
    capsys.readouterr()
    path = tmp_path / "out" / f"clip{suffix}"
    assert sample([*words, "--stream", "--json", "--out", str(path)]) == 0
    out, err = capsys.readouterr()
    assert {name.startswith(".clip.") and name.endswith(f".part{suffix}") for name, _ in seen} == {True}
    assert seen[0][0] in err
    assert [num for _, num in seen] == [8, 12, 16, 20, 24, 28, 32, 36]  # nine of the first window, and four of each
    assert torch.equal(read_video(path), read_video(tmp_path / f"whole{suffix}"))
    assert read_settings(path) == read_settings(tmp_path / f"whole{suffix}")
    row = json.loads(out)
    assert 0 < row["first_frames_seconds"] < row["seconds"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == [path.name]


def test_a_pipe_has_the_first_frames_before_the_last_window(
    words: list[str], tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    written, sizes = bytearray(), list[int]()
    monkeypatch.setattr(StandardOutput, "write", lambda self, data: written.extend(data) or len(data))
    look_at_each_window(monkeypatch, lambda: sizes.append(len(written)))
    assert sample([*words, "--stream", "--out", "-"]) == 0
    out, err = capfdbinary.readouterr()
    assert out == b""  # nothing but the clip goes there
    assert b"-  (" in err
    assert b", the first frames in " in err
    with av.open(io.BytesIO(bytes(written[: sizes[-1]]))) as container:
        assert len([*container.decode(video=0)]) == 36
    (tmp_path / "kept.mp4").write_bytes(written)
    assert probe(tmp_path / "kept.mp4").num_frames == len(read_video(tmp_path / "kept.mp4")) == 41
    assert read_settings(tmp_path / "kept.mp4")["prompt"] == "a red circle"


def test_a_clip_of_one_window_goes_to_standard_output_itself(
    checkpoint: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert sample(["a red circle", "--model", str(checkpoint), *QUICK, "--stream", "--quiet", "--out", "-"]) == 0
    with av.open(io.BytesIO(capfdbinary.readouterr().out)) as container:
        assert len([*container.decode(video=0)]) == 5


def test_a_stopped_stream_leaves_no_file_and_a_closed_pipe_is_a_failure(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = iter(range(9))

    def stop(error: type[BaseException], *_: object) -> None:
        if next(numbers) == 3:
            raise error

    with monkeypatch.context() as patch:
        look_at_each_window(patch, partial(stop, KeyboardInterrupt))
        assert sample([*words, "--stream", "--out", str(tmp_path / "clip.mp4")]) == 130
    assert list(tmp_path.iterdir()) == []
    numbers = iter(range(9))
    monkeypatch.setattr(StandardOutput, "write", partial(stop, BrokenPipeError))
    assert sample([*words, "--stream", "--out", "-"]) == 1
    assert "failed: what read the clip from standard output has closed it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--out", "-"], "--out - is a pipe, which takes a clip as it is made; add --stream"),
        (["--out", "-", "--stream", "--num", "2"], "--out - is one pipe for 2 clips; give a folder"),
        (["--out", "clip.gif", "--stream"], "clip.gif cannot be played while it grows"),
        (["--out", "clip.png", "--stream", "--frames", "1"], "clip.png cannot be played while it grows"),
        (["--stream", "--save-latents"], "--save-latents keeps all of a clip before any frame, and --stream shows"),
        (["--stream", "--sweep", "steps=1,2"], "a sweep looks at whole clips, and --stream shows frames before"),
        (["--sweep", "steps=1,2", "--out", "-"], "--out of a sweep is a folder, got -"),
    ],
)
def test_what_cannot_be_streamed_is_refused(
    flags: list[str],
    message: str,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(capsys, sample(["a red circle", "--model", str(checkpoint), *QUICK, *flags]), message)
    assert list(tmp_path.iterdir()) == []


def test_a_video_is_not_written_to_a_terminal(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    words = ["a red circle", "--model", str(checkpoint), *QUICK, "--stream", "--out", "-"]
    refused(capsys, sample(words), "--out - writes a video, and here to a terminal; pipe it on")
