"""One judgement of a file: every kind of bad file gets its finding, and training and the doctor agree on each."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from tests.bad_files import CASES, make_cases
from tests.test_video_io import make_video
from videogen.config.train import DataConfig
from videogen.data import judgement_cache
from videogen.data.folder import VideoFolder
from videogen.data.judgement import judge_header
from videogen.data.judgement_cache import open_judgements
from videogen.data.video_io import read_video
from videogen.doctor.examine import Examination, examine

PATCH = (1, 2, 2)
NAMES = [name for name in CASES if not name.endswith(".txt")]
FOUND_BY_DECODING = {"damaged.mp4", "two sizes.mp4", "two sizes.mkv"}


@pytest.fixture(scope="session")
def bad_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with a file of every kind, which is read only."""
    return make_cases(tmp_path_factory.mktemp("bad"))


@pytest.fixture(scope="session")
def examined(bad_files: Path) -> Examination:
    return examine(DataConfig(folder=bad_files), PATCH)


def kinds_by_name(found: Examination) -> dict[str, set[str]]:
    kinds: dict[str, set[str]] = {}
    for path, finding in found.located_findings():
        kinds.setdefault(os.path.relpath(path, found.folder), set()).add(finding.kind)
    return kinds


def open_folder(folder: Path, log: list[str] | None = None, **options: object) -> VideoFolder:
    config = DataConfig(folder=folder, val_clips=0, **options)  # type: ignore[arg-type]
    return VideoFolder(config, PATCH, log=(log if log is not None else []).append)


# --- every kind of file


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_every_kind_gets_its_findings(examined: Examination, name: str) -> None:
    found = kinds_by_name(examined).get(name, set())
    assert found - {"duplicate"} == CASES[name][1]  # most of them show one picture


def test_the_table_of_cases_holds_sixty_files() -> None:
    assert len(NAMES) >= 60


def test_training_and_the_doctor_agree_on_every_file(bad_files: Path, examined: Examination) -> None:
    log: list[str] = []
    folder = open_folder(bad_files, log)  # It knows what the doctor found in the frames.
    faults = {c.path: c.judgement.fault.words for c in examined.clips if c.judgement.fault is not None}
    assert dict(folder.problems) == faults
    assert {entry.path for entry in folder.entries} == {clip.path for clip in examined.clips} - faults.keys()
    for entry, clip in zip(folder.entries, (c for c in examined.clips if c.shape is not None), strict=True):
        assert (entry.frames, entry.width, entry.height, entry.num_tokens) == clip.shape
    text = "\n".join(log)
    assert all(words in text for words in faults.values())
    assert f"{len(faults)} of {len(NAMES)} files" in text


def test_without_the_doctor_training_names_the_others_with_the_same_words_when_it_reads_them(
    bad_files: Path, examined: Examination, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = open_folder(bad_files)
    for index in range(len(folder.entries)):
        for epoch in range(folder.config.windows):
            try:
                clip, entry = folder.read(index, epoch), folder.entries[index]
                assert clip.video.shape[2:] == (entry.height, entry.width)
            except ValueError as error:
                folder.report(index, str(error))
    faults = {c.path: c.judgement.fault.words for c in examined.clips if c.judgement.fault is not None}
    assert dict(folder.problems) == faults
    assert {path.name for path, _ in folder.problems[-len(FOUND_BY_DECODING) :]} == FOUND_BY_DECODING


def test_every_unusable_file_is_named(tmp_path: Path) -> None:
    make_video(tmp_path / "good.mp4")
    for number in range(30):
        (tmp_path / f"bad{number}.mp4").touch()
    for path in tmp_path.glob("*.mp4"):
        path.with_suffix(".txt").write_text("x", encoding="utf-8")
    log: list[str] = []
    open_folder(tmp_path, log)
    assert all(any(f"bad{number}.mp4" in line for line in log) for number in range(30))


def test_an_error_that_nobody_foresaw_is_about_its_file_and_ends_no_run(
    clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_table(clips, "file_name,text\na.mp4,a\nb.mp4,b\nsub/c.mp4,c\n")
    judge = judgement_cache.judge_header

    def fail_at_b(path: Path) -> object:
        return 1 / 0 if path.name == "b.mp4" else judge(path)

    monkeypatch.setattr(judgement_cache, "judge_header", fail_at_b)
    folder = open_folder(clips)
    assert set(captions_by_name(folder)) == {"a.mp4", "sub/c.mp4"}
    assert folder.problems == [(clips / "b.mp4", "ZeroDivisionError: division by zero")]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("reader", ["auto", "pyav"])
def test_a_size_that_changes_is_an_error_and_not_stretched(bad_files: Path, suffix: str, reader: str) -> None:
    for start in (0, 1.5):
        with pytest.raises(ValueError, match="its frames change size, from 96x64 to 64x96; split it there"):
            read_video(bad_files / f"two sizes{suffix}", start_seconds=start, reader=reader)  # type: ignore[arg-type]


def test_a_file_that_is_cut_off_is_read_up_to_where_it_ends(bad_files: Path) -> None:
    for name in ("cut off.mp4", "cut off.mkv"):
        info = judge_header(bad_files / name).info
        assert info is not None
        frames = read_video(bad_files / name)
        assert 0.5 < info.seconds < 1.5
        assert len(frames) == pytest.approx(info.num_frames, abs=3)  # frames that wait for a later one are lost


def test_a_recording_that_was_joined_late_begins_with_its_first_picture(bad_files: Path) -> None:
    info, frames = judge_header(bad_files / "joined late.ts").info, read_video(bad_files / "joined late.ts")
    assert info is not None
    assert 12 <= len(frames) <= 36
    assert info.seconds == pytest.approx(len(frames) / 24, abs=0.05)


def test_the_doctor_changes_nothing(bad_files: Path) -> None:
    def state() -> list[tuple[str, int, int]]:
        return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(bad_files.rglob("*"))]

    before = state()
    examine(DataConfig(folder=bad_files), PATCH)
    assert state() == before


def test_a_file_named_before_a_colon_is_read_from_the_folder_that_one_stands_in(
    bad_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bad_files)
    assert judge_header(Path("at 10:30.mp4")).info is not None
    assert len(read_video(Path("at 10:30.mp4"))) == 24


def test_a_pipe_is_named_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "pipe.txt").write_text("x", encoding="utf-8")
    assert kinds_by_name(examine(DataConfig(folder=tmp_path), PATCH)) == {"pipe.mp4": {"no_file"}}
    os.mkfifo(tmp_path / "metadata.csv")
    assert kinds_by_name(examine(DataConfig(folder=tmp_path), PATCH))["metadata.csv"] == {"bad_row"}
    with pytest.raises(ValueError, match=r"metadata\.csv is no regular file; write a table in its place"):
        open_folder(tmp_path)


def test_a_text_beside_no_clip_is_named(clips: Path) -> None:
    for name in ("a", "gone", "folder"):
        (clips / f"{name}.txt").write_text("x", encoding="utf-8")
    (clips / "folder").mkdir()
    kinds = kinds_by_name(examine(DataConfig(folder=clips), PATCH))
    assert kinds["gone.txt"] == kinds["folder.txt"] == {"caption_alone"}
    assert "a.txt" not in kinds


# --- captions and metadata


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Make clips a, b and sub/c without captions."""
    (tmp_path / "clips" / "sub").mkdir(parents=True)
    first = make_video(tmp_path / "clips" / "a.mp4", size="96x64")
    for name in ("b", "sub/c"):
        shutil.copy(first, tmp_path / "clips" / f"{name}.mp4")
    return tmp_path / "clips"


def captions_by_name(folder: VideoFolder) -> dict[str, tuple[str, ...]]:
    return {os.path.relpath(entry.path, folder.config.folder): entry.captions for entry in folder.entries}


def write_table(folder: Path, rows: str, name: str = "metadata.csv") -> None:
    (folder / name).write_text(rows, encoding="utf-8")


def test_each_row_of_a_file_is_a_caption_that_the_epochs_draw_in_turn(clips: Path) -> None:
    write_table(clips, "file_name,text\na.mp4,first\nb.mp4,\na.mp4,second\na.mp4,first\n")
    folder = open_folder(clips)
    assert captions_by_name(folder) == {"a.mp4": ("first", "second"), "b.mp4": ("",)}
    assert [folder.caption(0, epoch) for epoch in range(4)] == ["first", "second"] * 2
    assert folder.read(0, 1).caption == "second"
    kinds = kinds_by_name(examine(folder.config, PATCH))
    assert kinds["a.mp4"] >= {"captions"}
    assert kinds["b.mp4"] >= {"caption_empty"}
    assert kinds["sub/c.mp4"] >= {"no_caption"}


@pytest.mark.parametrize("mark", [";", "\t"])
def test_a_table_as_excel_writes_it_is_read(clips: Path, mark: str) -> None:
    rows = f'\ufefffile_name{mark}text\r\na.mp4{mark}"a cat, ""Tom""{mark} at night"\r\nsub\\c.mp4{mark}a dog\r\n'
    (clips / "metadata.csv").write_bytes(rows.encode())
    captions = captions_by_name(open_folder(clips))
    assert captions == {"a.mp4": (f'a cat, "Tom"{mark} at night',), "sub/c.mp4": ("a dog",)}
    assert kinds_by_name(examine(DataConfig(folder=clips), PATCH))["metadata.csv"] == {"separator"}


def test_names_in_the_metadata_are_found_or_named(clips: Path) -> None:
    shutil.copy(clips / "a.mp4", clips.parent / "outside.mp4")
    shutil.copy(clips / "a.mp4", clips / unicodedata.normalize("NFD", "café.mp4"))
    rows = ["file_name,text", f"{clips / 'a.mp4'},absolute", "sub/../b.mp4,up", "../outside.mp4,out"]
    rows += [f"{clips.parent / 'outside.mp4'},out", "gone.mp4,gone", "café.mp4,composed"]
    write_table(clips, "\n".join(rows))
    write_table(clips / "sub", "file_name,text\n../sub/c.mp4,from below\n")
    log: list[str] = []
    folder = open_folder(clips, log)
    names = {unicodedata.normalize("NFC", name): texts for name, texts in captions_by_name(folder).items()}
    expected = {"a.mp4": "absolute", "b.mp4": "up", "sub/c.mp4": "from below", "café.mp4": "composed"}
    assert names == {name: (text,) for name, text in expected.items()}
    assert {path.name: words for path, words in folder.problems}.keys() == {"outside.mp4", "gone.mp4"}
    assert "lies outside the folder; copy it in" in "\n".join(log)
    kinds = kinds_by_name(examine(DataConfig(folder=clips), PATCH))
    assert kinds["gone.mp4"] == {"missing"}
    assert kinds["../outside.mp4"] == {"outside"}
    assert kinds[unicodedata.normalize("NFD", "café.mp4")] >= {"name_form"}


def test_a_caption_that_is_not_utf8_is_named(clips: Path) -> None:
    (clips / "a.txt").write_bytes("café".encode("latin-1"))
    (clips / "b.txt").write_text("good", encoding="utf-8")
    folder = open_folder(clips)
    assert "is not encoded in UTF-8" in dict(folder.problems)[clips / "a.mp4"]
    assert kinds_by_name(examine(folder.config, PATCH))["a.mp4"] >= {"caption_encoding"}


def test_training_refuses_the_row_that_the_doctor_names(clips: Path) -> None:
    write_table(clips, "file_name,text\na.mp4,red\nb.mp4\n")
    found = examine(DataConfig(folder=clips), PATCH)
    ((path, finding),) = [(path, f) for path, f in found.others if f.kind == "bad_row"]
    with pytest.raises(ValueError, match=r"metadata\.csv row 3: every row needs file_name and text") as error:
        open_folder(clips)
    assert str(error.value) == f"{path} {finding.words}"


# --- links and rights


def test_a_link_that_leaves_the_folder_is_followed_only_when_asked(clips: Path, tmp_path: Path) -> None:
    shutil.move(clips / "sub", tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "c.txt").write_text("x", encoding="utf-8")
    (clips / "a.txt").write_text("x", encoding="utf-8")
    (clips / "b.mp4").unlink()
    (clips / "sub").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (clips / "linked.mp4").symlink_to(tmp_path / "elsewhere" / "c.mp4")
    (clips / "broken.mp4").symlink_to(tmp_path / "gone.mp4")
    (clips / "itself.mp4").symlink_to(clips / "itself.mp4")
    (clips / "loop").symlink_to(clips, target_is_directory=True)
    kinds = kinds_by_name(examine(DataConfig(folder=clips), PATCH))
    expected = {"sub": "link_outside", "linked.mp4": "link_outside", "broken.mp4": "link_broken"}
    expected |= {"itself.mp4": "link_broken", "loop": "link_loop"}
    assert kinds == {name: {kind} for name, kind in expected.items()}
    folder = open_folder(clips)
    assert set(captions_by_name(folder)) == {"a.mp4"}
    assert {path.name for path, _ in folder.problems} == {"sub", "linked.mp4", "broken.mp4", "itself.mp4"}
    assert "--data.follow-links reads it" in dict(folder.problems)[clips / "sub"]
    assert set(captions_by_name(open_folder(clips, follow_links=True))) == {"a.mp4", "sub/c.mp4"}


UNREADABLE = """
from pathlib import Path
from videogen.config.train import DataConfig
from videogen.data.folder import VideoFolder
folder = VideoFolder(DataConfig(folder=Path(".")), (1, 2, 2), log=print)
"""


def test_files_and_folders_that_may_not_be_read_are_named(clips: Path) -> None:
    """Where the tests run as root, the process gives up root's right to read everything."""
    for name in ("a", "b", "sub/c"):
        (clips / f"{name}.txt").write_text("x", encoding="utf-8")
    (clips / "b.mp4").chmod(0)
    (clips / "sub").chmod(0)
    command = [sys.executable, "-c", UNREADABLE]
    if os.geteuid() == 0:
        rights = "-dac_override,-dac_read_search"
        command = ["setpriv", "--bounding-set", rights, "--inh-caps", rights, *command]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    try:
        done = subprocess.run(command, cwd=clips, env=environment, capture_output=True, text=True, check=True)
    finally:
        (clips / "sub").chmod(0o755)
    assert "not used: b.mp4: Permission denied; allow this user to read it" in done.stdout
    assert "not used: sub: Permission denied: nothing in this folder is used" in done.stdout
    assert "2 of 3 files" in done.stdout


# --- judgements on disk


def test_a_file_is_judged_once_until_it_changes(clips: Path, tmp_path: Path) -> None:
    calls: list[Path] = []

    def count_found(**options: object) -> int:
        with open_judgements(tmp_path / "known.sqlite") as known:
            for name in ("a.mp4", "b.mp4"):
                known.judge(clips / name, **options)  # type: ignore[arg-type]
            return known.num_found

    def deep(path: Path) -> object:
        calls.append(path)
        return judge_header(path)

    assert count_found() == 0
    assert count_found() == 2
    assert count_found(deep=deep) == 0  # what is known from headers is not enough
    assert count_found(deep=deep) == 2
    assert count_found() == 2
    assert len(calls) == 2
    os.utime(clips / "a.mp4")
    assert count_found(deep=deep) == 1


def test_judgements_read_back_are_those_that_were_kept(examined: Examination, bad_files: Path) -> None:
    again = examine(DataConfig(folder=bad_files), PATCH)
    assert again.clips == examined.clips


def test_a_damaged_or_forbidden_cache_is_left_out(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (clips / "a.txt").write_text("x", encoding="utf-8")
    (tmp_path / "videogen").mkdir()
    (tmp_path / "videogen" / "judgements.sqlite").write_bytes(b"no database at all" * 100)
    for cache in (tmp_path, clips / "a.mp4"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
        assert len(open_folder(clips).entries) == 1
