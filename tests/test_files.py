"""A file has its name when it is whole and on disk, and of two writers of one name none is lost in silence."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from videogen.data import files
from videogen.data.files import atomic_file, atomic_folder, remove_unfinished, save_tensors, save_text
from videogen.data.saved_latents import read_latent, save_latent
from videogen.data.video_io import read_video, write_video


def parts_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if ".part" in path.name or path.name.endswith(".old")]


def refuse_links(source: object, target: object) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_of_two_writers_of_one_name_the_second_is_refused(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither file existed when the two began; exFAT has no links."""
    path = tmp_path / "clip.mp4"
    if not links:
        monkeypatch.setattr(os, "link", refuse_links)

    def write_both() -> None:
        with atomic_file(path, overwrite=False) as second:
            with atomic_file(path, overwrite=False) as first:
                first.write_text("first", encoding="utf-8")
            second.write_text("second", encoding="utf-8")

    with pytest.raises(FileExistsError, match=r"clip\.mp4 exists already; choose another name, or allow overwrite"):
        write_both()
    assert path.read_text(encoding="utf-8") == "first"
    assert parts_in(tmp_path) == []


def test_of_two_clips_written_to_one_name_at_once_one_is_whole_and_one_refused(tmp_path: Path) -> None:
    path, clips = tmp_path / "clip.mp4", [torch.full((9, 32, 32, 3), value, dtype=torch.uint8) for value in (20, 220)]
    with ThreadPoolExecutor(2) as pool:
        written = [pool.submit(write_video, path, clip, fps=8) for clip in clips]
    errors = [future.exception() for future in written]
    assert sorted(type(error).__name__ for error in errors) == ["FileExistsError", "NoneType"]
    kept = clips[errors.index(None)]
    assert (read_video(path).float() - kept.float()).abs().max() < 6  # H.264 of one colour
    assert parts_in(tmp_path) == []


def test_two_writers_of_one_file_that_may_be_replaced_do_not_share_a_part(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"

    def write(value: int) -> None:
        save_tensors({"x": torch.full((20_000,), value)}, path)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(40)))
    values = files_values(path)
    assert len(set(values)) == 1
    assert parts_in(tmp_path) == []


def files_values(path: Path) -> list[int]:
    from safetensors.torch import load_file

    return load_file(path)["x"].tolist()


def test_a_latent_is_not_replaced_by_another_process(tmp_path: Path) -> None:
    path = tmp_path / "clip.safetensors"
    save_latent(path, torch.zeros(1), {}, overwrite=False)
    with pytest.raises(FileExistsError, match="exists already"):
        save_latent(path, torch.ones(1), {}, overwrite=False)
    assert read_latent(path).item() == 0


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_files_have_the_mode_of_the_umask(umask: int, tmp_path: Path) -> None:
    """safetensors gives its files to their owner alone, in a folder that diffusers writes too."""
    from safetensors.torch import save_file

    before = os.umask(umask)
    try:
        save_tensors({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
        write_video(tmp_path / "x.png", torch.zeros(1, 8, 8, 3, dtype=torch.uint8), fps=1)
        with atomic_folder(tmp_path / "folder") as part:
            save_file({"x": torch.zeros(2)}, part / "x.safetensors")
    finally:
        os.umask(before)
    paths = [tmp_path / "x.safetensors", tmp_path / "x.png", tmp_path / "folder" / "x.safetensors"]
    assert {path.stat().st_mode & 0o777 for path in paths} == {0o666 & ~umask}


def test_a_file_and_its_folder_are_on_disk_before_and_after_the_file_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut leaves no empty file under a good name."""
    synced: list[tuple[str, bool]] = []
    path = tmp_path / "step" / "a.txt"

    def sync(target: Path) -> None:
        synced.append((target.relative_to(tmp_path).parts[0][:5] if target != tmp_path else ".", path.exists()))

    monkeypatch.setattr(files, "sync", sync)
    with atomic_folder(path.parent) as part:
        save_text(part / "a.txt", "text")
    assert synced[-1] == (".", True)
    assert {seen for seen, exists in synced if not exists} == {".step"}
    assert len(synced) >= 4  # the file, twice its folder, and the folder above


def test_an_error_leaves_neither_a_file_nor_a_part(tmp_path: Path) -> None:

    def write_half_of_a_folder() -> None:
        with atomic_folder(tmp_path / "folder") as part:
            save_text(part / "a.txt", "text")
            raise KeyError

    with pytest.raises(KeyError), atomic_file(tmp_path / "a.txt"):
        raise KeyError
    with pytest.raises(KeyError):
        write_half_of_a_folder()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_is_removed_and_what_it_was_replacing_comes_back(tmp_path: Path) -> None:
    for name in ("step_000002.7-ab.part", ".step_000004.7-ab.part", "checkpoint.old", "vae.old", "vae"):
        (tmp_path / name).mkdir()
        save_text(tmp_path / name / "of.txt", name)
    for name in (".config.7-ab.part.json", "config.json"):
        save_text(tmp_path / name, "{}")
    remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "config.json", "vae"]
    assert [(tmp_path / name / "of.txt").read_text() for name in ("checkpoint", "vae")] == ["checkpoint.old", "vae"]


def test_a_folder_of_a_long_name_is_written(tmp_path: Path) -> None:
    folder = tmp_path / ("n" * 255)
    with atomic_folder(folder) as part:
        assert part.name.startswith(".")
        save_text(part / "a.txt", "text")
    assert [path.name for path in folder.iterdir()] == ["a.txt"]


def test_a_name_as_long_as_the_file_system_allows_is_written(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 251 + ".txt")
    save_text(path, "text")
    assert path.read_text(encoding="utf-8") == "text"


@pytest.mark.parametrize("kind", ["fifo", "link to a fifo", "link to a device", "folder"])
def test_what_is_no_regular_file_is_not_replaced(kind: str, tmp_path: Path) -> None:
    path, other = tmp_path / "out.json", tmp_path / "other"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        if kind == "link to a fifo":
            os.mkfifo(other)
        path.symlink_to(other if other.exists() else os.devnull)
    before = path.lstat()
    with pytest.raises(ValueError, match=r"out\.json is no regular file, and is not replaced by one; remove it, or"):
        save_text(path, "{}")
    assert path.lstat().st_ino == before.st_ino
    assert parts_in(tmp_path) == []
