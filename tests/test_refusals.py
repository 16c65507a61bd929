"""What can be refused is refused before anything is loaded, in one sentence; what can be written is written."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path

import pytest

from tests.test_cli import QUICK, refused
from videogen.cli.main import sample
from videogen.config.sample import SampleConfig
from videogen.data.files import check_writable
from videogen.data.video_encode import ENCODERS
from videogen.data.video_io import probe, read_settings, read_video


@pytest.fixture
def loads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test in which a command loads a model."""
    for name in ("load", "load_decoder"):
        monkeypatch.setattr(f"videogen.cli.sample.{name}", lambda *args: pytest.fail("a model was loaded"))
    monkeypatch.setattr("videogen.cli.sweep.load", lambda *args: pytest.fail("a model was loaded"))


@pytest.fixture
def words(checkpoint: Path) -> list[str]:
    """A command but for its --out."""
    return ["a red circle", "--model", str(checkpoint), *QUICK]


# --- files


@pytest.mark.parametrize("name", ["take:1.mp4", "file:x.webm", "-y.gif", "a b%d'\"é.mp4", f"{'n' * 251}.mp4"])
def test_every_legal_name_is_written_and_read_back(
    name: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FFmpeg takes a colon in a relative path for a protocol; a name may have 255 bytes, and a part file adds to it."""
    monkeypatch.chdir(tmp_path)
    assert sample([*words, f"--out={name}"]) == 0
    assert os.listdir() == [name]  # noqa: PTH208
    assert probe(Path(name)).num_frames == len(read_video(Path(name))) == 5
    assert read_settings(Path(name))["prompt"] == "a red circle"


@pytest.mark.usefixtures("loads_nothing")
def test_a_name_that_is_too_long_is_refused(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, sample([*words, "--out", str(tmp_path / f"{'n' * 252}.mp4")]), "File name too long; give another")
    latent = [*words, "--save-latents", "--out", str(tmp_path / f"{'n' * 246}.mp4")]
    assert len(latent[-1]) < 255 + len(str(tmp_path))  # the clip's name would do, that of its latent is too long
    refused(capsys, sample(latent), "characters): File name too long; give another --out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("loads_nothing")
@pytest.mark.parametrize("sweep", [[], ["--sweep", "steps=1,2"]], ids=["clip", "sweep"])
def test_a_folder_that_cannot_be_written_is_refused_by_its_reason(
    sweep: list[str],
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)  # root may write everywhere
    refused(
        capsys, sample([*words, *sweep, "--out", str(tmp_path / "deep" / "er")]), "cannot write", "Permission denied"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("loads_nothing")
@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_a_folder_in_the_place_of_the_file_is_refused(
    more: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "clip.mp4").mkdir()
    refused(capsys, sample([*words, *more, "--out", str(tmp_path / "clip.mp4")]), "there is a folder of that name")


@pytest.mark.usefixtures("loads_nothing")
def test_a_fifo_in_the_place_of_the_file_is_refused(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even --overwrite does not replace it, for its reader would wait for ever."""
    os.mkfifo(tmp_path / "clip.mp4")
    told = "it is no regular file, and is not replaced by one"
    refused(capsys, sample([*words, "--overwrite", "--out", str(tmp_path / "clip.mp4")]), told)


def test_a_trial_leaves_what_is_there_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_text("mine", encoding="utf-8")
    check_writable(tmp_path / "clip.mp4")
    check_writable(tmp_path / "new" / "folder" / "clip.mp4")
    assert [path.read_text(encoding="utf-8") for path in tmp_path.rglob("*")] == ["mine"]


@pytest.mark.usefixtures("loads_nothing")
def test_a_missing_or_poor_ffmpeg_is_refused_and_a_png_needs_none(
    words: list[str],
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = ["--out", str(tmp_path / "clips" / "clip.mp4")]
    monkeypatch.setitem(ENCODERS, ".mp4", ENCODERS[".mp4"]._replace(codec="libx999"))
    refused(capsys, sample([*words, *out]), "has no encoder libx999, which a .mp4 needs")
    monkeypatch.setitem(sys.modules, "av.codec", None)
    refused(capsys, sample([*words, *out]), "a .mp4 is written by PyAV, which cannot be imported: ")
    refused(capsys, sample([*words, "--sweep", "steps=1,2", "--out", str(tmp_path / "s")]), "cannot be imported")
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "av.codec", None)
    assert sample([*words, "--frames", "1", "--out", str(tmp_path / "picture.png")]) == 0


# --- settings


@pytest.mark.usefixtures("loads_nothing")
def test_the_guidance_of_a_second_expert_is_refused_where_there_is_none(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out")]
    refused(capsys, sample([*words, *out, "--guidance-2", "3"]), "has one transformer; leave --guidance-2 3 out")
    refused(capsys, sample([*words, *out, "--sweep", "guidance_2=3,4"]), "has one transformer")


@pytest.mark.usefixtures("loads_nothing")
@pytest.mark.parametrize("text", ["a cat \ud83d", os.fsdecode(b"caf\xe9")], ids=["half an emoji", "Latin-1"])
def test_a_text_that_no_encoder_reads_is_refused(
    text: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reason = "half a character, or bytes that are not UTF-8"
    refused(capsys, sample([text, *words[1:]]), f"the prompt holds {reason}: {text!a}")
    refused(capsys, sample([*words, f"--negative={text}"]), reason)
    table = tmp_path / "prompts.jsonl"
    table.write_text(json.dumps({"prompt": "a cat"}) + "\n" + json.dumps({"prompt": text}) + "\n", encoding="utf-8")
    refused(capsys, sample(["--prompts", str(table), *words[1:]]), f"row 2: the prompt holds {reason}")
    with pytest.raises(ValueError, match=f"negative holds {reason}"):
        SampleConfig(negative=text)
