"""Tables, lists and dataset.tomls that were written for other trainers are read as they are."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import fit, tiny_recipe
from tests.test_cli import refused
from videogen.cli.prompts import read_prompts
from videogen.cli.train import train
from videogen.config.clip_sets import ClipSet, read_dataset_file
from videogen.config.parsing import format_toml, load_toml
from videogen.config.sample import SampleConfig
from videogen.config.train import DataConfig, TrainConfig
from videogen.data.clip_sets import ClipSets
from videogen.data.folder import VideoFolder
from videogen.data.listing import list_folder
from videogen.training.pack_plan import split_folder

PATCH = (1, 2, 2)


def folder_of(clips: Path, out: Path, num: int, first: int = 0) -> Path:
    """Copy some clips into a folder without a table."""
    out.mkdir(parents=True)
    for path in sorted((clips / "clips").glob("*.mp4"))[first : first + num]:
        shutil.copy(path, out / path.name)
    return out


# --- tables


@pytest.mark.parametrize("text", ["text", "caption", "prompt"])
@pytest.mark.parametrize("name", ["file_name", "video", "video_path", "media_path"])
def test_a_table_of_another_trainer_gives_the_captions_of_a_folder(
    name: str, text: str, clips_folder: Path, tmp_path: Path
) -> None:
    folder = folder_of(clips_folder, tmp_path / "clips", 2)
    rows = [{name: path.name, text: f"clip {path.stem}"} for path in sorted(folder.glob("*.mp4"))]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    listing = list_folder(folder)
    assert {path.name: captions for path, captions in listing.captions.items()} == {
        row[name]: (row[text],) for row in rows
    }
    # The same table is one of prompts.
    prompts = [row.prompt for row in read_prompts(folder / "metadata.jsonl", SampleConfig(), 0)]
    assert prompts == [row[text] for row in rows]


@pytest.mark.parametrize("prompts", ["prompts.txt", "prompt.txt", "captions.txt"])
def test_a_list_of_videos_and_one_of_prompts_are_a_table(prompts: str, clips_folder: Path, tmp_path: Path) -> None:
    folder = folder_of(clips_folder, tmp_path / "set" / "videos", 2).parent
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.mp4"))]
    (folder / "videos.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    (folder / prompts).write_text("a cat\na dog\n", encoding="utf-8")
    listing = list_folder(folder)
    assert [listing.captions[path] for path in listing.clips] == [("a cat",), ("a dog",)]
    assert listing.findings == []
    (folder / prompts).write_text("a cat\n", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"videos.txt .*has 2 lines and {prompts} 1; give a prompt a video"):
        list_folder(folder).check_tables()


def test_a_prompts_file_with_two_columns_of_prompts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt,caption\na cat,a dog\n", encoding="utf-8")
    with pytest.raises(ValueError, match="row 2: unknown column 'caption'"):
        list(read_prompts(tmp_path / "p.csv", SampleConfig(), 0))


# --- dataset.toml

MUSUBI = """
[general]
resolution = [64, 32]
caption_extension = ".txt"
batch_size = 1
enable_bucket = true

[[datasets]]
video_directory = "one"
cache_directory = "cache"
target_frames = [1, 5, 9]
frame_extraction = "head"
source_fps = 30.0

[[datasets]]
image_directory = "two"
num_repeats = 3
resolution = [48, 48]
"""
DIFFUSION_PIPE = """
resolutions = [32, 64]
enable_ar_bucket = true
frame_buckets = [1, 33]

[[directory]]
path = "one"
num_repeats = 2

[[directory]]
path = "two"
resolutions = [[64, 32]]
frame_buckets = [1]
"""


def test_a_dataset_file_of_musubi_tuner_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    path = tmp_path / "dataset.toml"
    path.write_text(MUSUBI, encoding="utf-8")
    sets, ignored = read_dataset_file(path)
    assert sets == (
        ClipSet(folder=Path("one"), size="64x32", frames=9),
        ClipSet(folder=tmp_path / "two", size="48x48", repeats=3),  # beside the file where it is not found from here
    )
    assert set(ignored) == {"batch_size", "enable_bucket", "cache_directory", "frame_extraction", "source_fps"}


def test_a_dataset_file_of_diffusion_pipe_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "dataset.toml"
    path.write_text(DIFFUSION_PIPE, encoding="utf-8")
    sets, ignored = read_dataset_file(path)
    assert sets == (
        ClipSet(folder=Path("one"), size="64x64", repeats=2, frames=33),
        ClipSet(folder=Path("two"), size="64x32", frames=1),
    )
    assert ignored == ("enable_ar_bucket", "all resolutions but the largest")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = 1", "it names no clips; give [[sets]] with a folder each"),
        ("[[directory]]\nnum_repeats = 2", "every set needs one of video_directory, image_directory, path, got 0"),
        ("[[directory]]\npath = 'a'\nmask_path = 'b'", "mask_path cannot be followed here"),
        ("[[datasets]]\nvideo_jsonl_file = 'a'", "save it as metadata.jsonl in the folder of the clips"),
        ("[[datasets]]\nvideo_directory = 'a'\ncaption_extension = '.cap'", "captions stand in .txt files"),
        ("[[datasets]]\nvideo_directory = 'a'\nresolution = [1, 2, 3]", "a resolution is a side or [width, height]"),
        ("[[sets]]\nfolder = 'a'\nrepeat = 2", "unknown key 'repeat'; did you mean 'repeats'"),
        ("[[sets]]\nfolder = 'a'\nrepeats = 0", "repeats must be above 0, got 0"),
        ("[[sets", "is not valid TOML"),
    ],
)
def test_what_a_dataset_file_cannot_mean_is_refused_in_a_sentence(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, recipe = tmp_path / "dataset.toml", tmp_path / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    recipe.write_text("", encoding="utf-8")
    refused(capsys, train([str(recipe), "--data", str(path), "--dry-run"]), message)


def test_sets_of_a_recipe_are_written_and_read_again(tmp_path: Path) -> None:
    sets = (ClipSet(folder=Path("a b"), repeats=2), ClipSet(folder=Path('"'), fps=12.0, size="64x32", frames=9))
    recipe = replace(TrainConfig(), data=DataConfig(sets=sets))
    (tmp_path / "recipe.toml").write_text(format_toml(recipe), encoding="utf-8")
    assert load_toml(TrainConfig, tmp_path / "recipe.toml") == recipe
    with pytest.raises(ValueError, match=r"data.sets names the folders; leave data.folder and data.toybox out"):
        DataConfig(sets=sets, folder=Path("clips"))


# --- reading several folders


@pytest.fixture
def sets(clips_folder: Path, tmp_path: Path) -> tuple[ClipSet, ...]:
    """Two folders of five clips with captions, the second smaller, shorter and three times as often."""
    folders = [folder_of(clips_folder, tmp_path / name, 5, first) for name, first in (("one", 0), ("two", 5))]
    for path in tmp_path.rglob("*.mp4"):
        path.with_suffix(".txt").write_text(f"clip {path.stem}", encoding="utf-8")
    return (ClipSet(folder=folders[0]), ClipSet(folder=folders[1], repeats=3, size="32x32", frames=5, fps=4.0))


def test_several_folders_are_read_as_one_each_by_its_own_settings(sets: tuple[ClipSet, ...]) -> None:
    config = DataConfig(sets=sets, max_tokens=80)
    clips = ClipSets(config, PATCH, seed=3)
    alone = VideoFolder(replace(config, sets=(), folder=sets[0].folder), PATCH, seed=3)
    assert len(clips.entries) == 10
    assert clips.entries[:5] == alone.entries
    assert all(entry.width * entry.height <= 32 * 32 and entry.frames <= 5 for entry in clips.entries[5:])
    assert len(set(clips.names())) == 10
    for index in range(5):
        assert clips.key(index, 1) == alone.key(index, 1)
        assert clips.read(index).video.equal(alone.read(index).video)
    last = clips.read(9)
    assert last.caption == f"clip {clips.entries[9].path.stem}"
    assert last.video.shape == (3, clips.entries[9].frames, clips.entries[9].height, clips.entries[9].width)


def test_a_set_is_trained_as_often_as_it_says_and_its_held_out_clips_never(
    sets: tuple[ClipSet, ...], checkpoint: Path, tmp_path: Path
) -> None:
    recipe = tiny_recipe("dit", tmp_path, checkpoint, tmp_path / "run", steps=2)
    recipe = replace(recipe, data=replace(recipe.data, folder=DataConfig.folder, sets=sets))
    clips = ClipSets(recipe.data, PATCH)
    split = split_folder(clips, recipe)
    assert len(split.val) == 1
    assert {index: split.train.count(index) for index in range(10) if index not in split.val} == {
        index: 3 if index >= 5 else 1 for index in range(10) if index not in split.val
    }
    assert "9 clips to train on" in split.describe()
    assert fit(recipe)


def test_a_dataset_file_takes_the_place_of_a_folder(
    sets: tuple[ClipSet, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.toml").write_text("", encoding="utf-8")
    (tmp_path / "dataset.toml").write_text(MUSUBI, encoding="utf-8")
    words = [str(tmp_path / "recipe.toml"), "--data", str(tmp_path / "dataset.toml"), "--dry-run", "--json"]
    assert train(words) == 0
    output = capsys.readouterr()
    assert "no meaning here have batch_size" in output.err
    plan = json.loads(output.out)
    assert sum(row["clips"] for row in plan["clips"]) == 10
