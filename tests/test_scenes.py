"""A file with cuts is read scene by scene: each is a clip of its own, none reaches across a cut."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from videogen.config.train import DataConfig
from videogen.data.folder import VideoFolder
from videogen.data.video_io import write_video
from videogen.training import folder_run

CUTS = (0.0, 20.0, 20.5, 45.0, 64.0)  # of the film: one scene is too short to be a clip
COLOURS = (40, 220, 120, 200)
FPS = 8


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a folder with a film of 64 seconds and four scenes, and a short clip."""
    folder = tmp_path_factory.mktemp("films")
    frames = torch.zeros(int(CUTS[-1] * FPS), 32, 32, 3, dtype=torch.uint8)
    for start, end, colour in zip(CUTS, CUTS[1:], COLOURS, strict=False):
        frames[int(start * FPS) : int(end * FPS)] = colour
    frames[torch.arange(len(frames)), :, torch.arange(len(frames)) % 32] = 128  # a line moves through every scene
    write_video(folder / "film.mp4", frames, fps=FPS)
    write_video(folder / "short.mp4", frames[:16], fps=FPS)
    (folder / "film.txt").write_text("a grey film")
    (folder / "short.txt").write_text("a grey clip")
    return folder


def test_each_scene_of_a_film_is_a_clip_and_none_reaches_across_a_cut(film: Path) -> None:
    said: list[str] = []
    folder = VideoFolder(DataConfig(folder=film, scenes_over=60.0, windows=8), (1, 2, 2), log=said.append)
    assert [name.partition("#")[0] for name in folder.names()] == ["film.mp4"] * 3 + ["short.mp4"]
    assert len(set(folder.names())) == 4
    assert not any("shows two scenes" in line for line in said)  # as none does
    assert any("film.mp4 has cuts: its 3 scenes are clips each" in line for line in said)
    for index, colour in enumerate((40, 120, 200, 40)):
        for epoch in range(8):
            clip = folder.read(index, epoch)
            assert (clip.video.median() * 127.5 + 127.5 - colour).abs() < 6
            assert clip.video.flatten(2).std(dim=2).max() < 0.5  # one scene's grey with the line, never two greys
        assert clip.caption == ("a grey clip" if index == 3 else "a grey film")
    assert len({folder.start_seconds(0, epoch) for epoch in range(8)}) == 8


def test_a_film_is_one_clip_unless_its_scenes_are_asked_for(film: Path) -> None:
    assert VideoFolder(DataConfig(folder=film), (1, 2, 2)).names() == ["film.mp4", "short.mp4"]


@pytest.mark.parametrize(("small", "scenes_over"), [(66.0, 0.0), (65.0, 60.0)])  # the folder has 66 seconds
def test_all_files_of_a_small_folder_are_cut_and_films_alone_of_a_large_one(
    small: float, scenes_over: float, film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_run, "SMALL_FOLDER_SECONDS", small)
    assert folder_run.find_scenes_over(DataConfig(folder=film)).scenes_over == scenes_over
    assert folder_run.find_scenes_over(DataConfig(folder=film, scenes_over=5.0)).scenes_over == 5.0


def test_a_short_clip_is_cut_at_its_scenes_and_one_without_cuts_keeps_its_name(tmp_path: Path) -> None:
    frames = torch.full((40, 32, 32, 3), 40, dtype=torch.uint8)
    frames[24:] = 220
    frames[torch.arange(40), :, torch.arange(40) % 32] = 128
    write_video(tmp_path / "cut.mp4", frames, fps=FPS)
    write_video(tmp_path / "whole.mp4", frames[:24], fps=FPS)
    (tmp_path / "cut.txt").write_text("grey, then white")
    (tmp_path / "whole.txt").write_text("grey")
    folder = VideoFolder(DataConfig(folder=tmp_path, scenes_over=0.0), (1, 2, 2))
    assert [name.partition("=")[0] for name in folder.names()] == ["cut.mp4#t", "cut.mp4#t", "whole.mp4"]
    assert [folder.read(index).video.median() > 0 for index in range(3)] == [False, True, False]
