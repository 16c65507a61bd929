"""A clip's file is named after its prompt in any script, and a default name counts on rather than collide."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_cli import QUICK, refused
from videogen.cli.clip_files import name_clip
from videogen.cli.main import ROOT, sample
from videogen.data.files import slug
from videogen.data.video_encode import encode_video
from videogen.data.video_io import probe, read_settings


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A red circle, moving!", "a-red-circle-moving"),
        ("一只猫", "一只猫"),
        ("кошка на траве", "кошка-на-траве"),
        ("बिल्ली", "बिल्ली"),  # the vowel signs are marks, not letters
        ("café", "café"),
        ("cafe\u0301", "café"),  # the same word, spelled with a combining accent
        ("../../etc/passwd", "etc-passwd"),
        ("🦊", "clip"),
        ("a \ud83d", "a"),
    ],
)
def test_a_name_keeps_the_letters_of_every_script(prompt: str, name: str) -> None:
    assert slug(prompt) == name


def test_the_name_of_a_long_prompt_fits_a_file_system_in_every_script() -> None:
    for letter in "a猫𠀀":
        name = name_clip(Path(), letter * 1000, 2**64 - 1, set(), may_exist=True).name
        assert len(name.encode()) <= 255
        assert name.startswith(letter * 30)


def test_two_prompts_of_another_script_become_two_clips(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for prompt in ("一只猫", "一只狗"):
        assert sample([prompt, "--model", str(checkpoint), *QUICK]) == 0
    names = {path.name: read_settings(path)["prompt"] for path in (tmp_path / "out").iterdir()}
    assert names == {"一只猫-0.mp4": "一只猫", "一只狗-0.mp4": "一只狗"}


def test_the_same_command_twice_counts_on_and_an_explicit_out_refuses(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["a red circle", "a red circle", "--model", str(checkpoint), *QUICK]
    for _ in range(2):
        assert sample(words) == 0
    names = ["a-red-circle-0-2.mp4", "a-red-circle-0-3.mp4", "a-red-circle-0-4.mp4", "a-red-circle-0.mp4"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert sample([*words, "--overwrite"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    capsys.readouterr()
    refused(capsys, sample([*words, "--out", "out"]), "a-red-circle-0.mp4 exists; add --overwrite, or choose another")


def test_a_name_that_is_taken_while_the_clip_is_made_counts_on(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others take the names that were chosen for both, before the clips are whole."""
    monkeypatch.chdir(tmp_path)

    def encode_while_others_write(*args: object, **options: object) -> None:
        for name in ("a-red-circle-0.mp4", "a-red-circle-0-2.mp4"):
            (tmp_path / "out" / name).write_text("of others")
        encode_video(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("videogen.data.video_io.encode_video", encode_while_others_write)
    assert sample(["a red circle", "a red circle", "--model", str(checkpoint), *QUICK]) == 0
    out = {path.name: path for path in (tmp_path / "out").iterdir()}
    assert sorted(out) == [f"a-red-circle-0{end}.mp4" for end in ("-2", "-3", "-4", "")]
    others = {name for name, path in out.items() if path.read_bytes() == b"of others"}
    assert others == {"a-red-circle-0.mp4", "a-red-circle-0-2.mp4"}
    printed = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert printed == ["out/a-red-circle-0-3.mp4", "out/a-red-circle-0-4.mp4"]
    assert all(read_settings(Path(name))["prompt"] == "a red circle" for name in printed)


def test_two_processes_at_once_write_two_clips_under_two_names(checkpoint: Path, tmp_path: Path) -> None:
    words = ["a red circle", "--model", str(checkpoint), *QUICK]
    command = [sys.executable, str(ROOT / "sample.py"), *words]
    both = [subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate(timeout=120)[0].split("  ")[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(printed) == ["out/a-red-circle-0-2.mp4", "out/a-red-circle-0.mp4"]
    assert len({(tmp_path / name).read_bytes() for name in printed}) == 1  # the same clip, whole, twice


def test_a_folder_may_have_a_dot_in_its_name(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["a red circle", "--model", str(checkpoint), *QUICK, "--out"]
    assert sample([*words, str(tmp_path / "clips v1.2")]) == 0
    assert (tmp_path / "clips v1.2" / "a-red-circle-0.mp4").is_file()
    capsys.readouterr()
    refused(capsys, sample([*words, str(tmp_path / "clip.avi")]), ".mp4, .mov, .mkv, .webm, .gif, .png, got")


@pytest.mark.parametrize("suffix", [".mov", ".MKV"])
def test_mov_and_mkv_are_written_with_their_settings(suffix: str, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / f"clip{suffix}"
    assert sample(["a red circle", "--model", str(checkpoint), *QUICK, "--out", str(out)]) == 0
    assert probe(out)[:4] == (32, 32, 5, 8)
    assert read_settings(out)["prompt"] == "a red circle"
