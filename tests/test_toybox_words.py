"""Captions and folders of the toybox: captions describe the scene, folders hold clips with their ground truth."""

import csv
import json
import os
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from tests.scenes import SCENE
from videogen.cli.main import main
from videogen.toybox import Scene, caption, draw_scene, render, write_folder
from videogen.toybox.world.backgrounds import PAINTERS
from videogen.toybox.world.captions import (
    BACKGROUND_WORDS,
    CAMERA_WORDS,
    COLOUR_WORDS,
    JOINT_VERBS,
    KIND_WORDS,
    MOTION_VERBS,
    RELATION_WORDS,
    SIZE_WORDS,
)
from videogen.toybox.world.events import EVENTS
from videogen.toybox.world.motions import MOTIONS
from videogen.toybox.world.scenes import CAMERAS, spatial_relation
from videogen.toybox.world.shapes import SIGNED_DISTANCES
from videogen.toybox.world.things import BACKGROUNDS, COLOURS, KINDS, SHAPES

# --- captions


def test_every_name_has_a_renderer_and_words() -> None:
    assert set(SHAPES) == set(SIGNED_DISTANCES)
    assert set(KINDS) == set(KIND_WORDS)
    assert set(CAMERAS) == set(CAMERA_WORDS)
    assert {"behind", *JOINT_VERBS} == set(EVENTS)
    assert set(BACKGROUNDS) == set(PAINTERS) == set(BACKGROUND_WORDS)
    assert set(COLOURS) == set(COLOUR_WORDS)
    assert set(MOTIONS) == set(MOTION_VERBS)


def contains_any(text: str, phrases: tuple[str, ...]) -> bool:
    return any(f" {phrase} " in f" {text.replace(',', ' ')} " for phrase in phrases)


def test_a_caption_names_the_colour_and_kind_of_every_thing(scenes: list[Scene]) -> None:
    for seed, scene in enumerate(scenes):
        text = caption(scene, seed)
        for thing in scene.things:
            colours = COLOUR_WORDS[thing.colour] if thing.colour else ("",)
            names = tuple(f"{colour} {kind}".strip() for colour in colours for kind in KIND_WORDS[thing.kind])
            assert contains_any(text.replace(":", ""), names), text


def test_captions_of_clips_describe_every_motion_and_captions_of_images_none(scenes: list[Scene]) -> None:
    for seed, scene in enumerate(scenes):
        text = caption(scene, seed)
        for thing in scene.things:
            if scene.event or spatial_relation(scene):
                continue
            verbs = tuple(form for verb in MOTION_VERBS[thing.motion] for form in verb)
            assert contains_any(text, verbs) == (scene.num_frames > 1), text


def test_captions_have_correct_articles_and_no_stray_spaces_or_braces(scenes: list[Scene]) -> None:
    for seed, scene in enumerate(scenes):
        text = caption(scene, seed)
        words = text.replace(",", "").replace(":", "").split(" ")
        assert "" not in words, text
        assert "{" not in text, text
        for article, word in pairwise(words):
            if article in {"a", "an"}:
                assert (article == "an") == (word[0] in "aeiou" and word != "one"), text


def test_captions_describe_cameras_events_and_relations(scenes: list[Scene]) -> None:
    for seed, scene in enumerate(scenes):
        text = caption(scene, seed)
        assert contains_any(text, CAMERA_WORDS[scene.camera]) or scene.camera == "still", text
        if scene.event in JOINT_VERBS:
            assert contains_any(text, tuple(form for verb in JOINT_VERBS[scene.event] for form in verb)), text
        if scene.event == "behind":
            assert contains_any(text, ("behind",)), text
    related = [(seed, scene, spatial_relation(scene)) for seed, scene in enumerate(scenes) if spatial_relation(scene)]
    described = [contains_any(caption(scene, seed), RELATION_WORDS[relation]) for seed, scene, relation in related]
    assert sum(described) > 10


def test_held_out_patterns_are_used_only_on_request(scenes: list[Scene]) -> None:
    moving = [(seed, scene) for seed, scene in enumerate(scenes) if scene.num_frames > 1]
    assert not any(caption(scene, seed).startswith(("look at", "watch:")) for seed, scene in moving)
    assert all(caption(scene, seed, new=True).startswith(("look at", "watch:")) for seed, scene in moving)


def test_the_plainest_sentence_is_the_most_common() -> None:
    captions = Counter(caption(SCENE, seed) for seed in range(3000))
    assert captions.most_common(1)[0][0] == "a large red circle moves right on a black background"
    assert len(captions) > 1000


@pytest.mark.parametrize(
    "words_of", [lambda scene: SIZE_WORDS[scene.things[0].size], lambda scene: BACKGROUND_WORDS[scene.background]]
)
def test_size_and_background_are_each_omitted_in_12_percent(words_of: Callable[[Scene], tuple[str, ...]]) -> None:
    num_omitted = sum(not contains_any(caption(SCENE, seed), words_of(SCENE)) for seed in range(2000))
    assert num_omitted / 2000 == pytest.approx(0.12, abs=0.03)


# --- the folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("toybox") / "new"
    write_folder(out, num_clips=6, seed=3, lengths=(9, 1, 17))
    return out


def read_table(folder: Path) -> list[dict[str, str]]:
    with (folder / "metadata.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_folder_is_a_videofolder_with_ground_truth(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["clips", "metadata.csv", "toybox.json", "truth.jsonl"]
    assert sorted(path.name for path in (folder / "clips").iterdir()) == [f"{i:06d}.mp4" for i in range(6)]
    records = [json.loads(line) for line in (folder / "truth.jsonl").read_text(encoding="utf-8").splitlines()]
    assert read_table(folder) == [{"file_name": record["file_name"], "text": record["text"]} for record in records]
    for record in records:
        scene = draw_scene(record["seed"], lengths=(9, 1, 17))
        things = record["things"]
        assert [thing["kind"] for thing in things] == [thing.kind for thing in scene.things]
        assert all(len(thing[key]) == record["num_frames"] for thing in things for key in ("x", "y", "radius"))


def test_written_clips_decode_to_the_rendered_frames(folder: Path) -> None:
    for line in (folder / "truth.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        with av.open(str(folder / record["file_name"])) as video:
            frames = np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])
        expected = render(draw_scene(record["seed"], lengths=(9, 1, 17)))
        assert frames.shape == expected.shape
        assert np.abs(frames.astype(int) - expected).mean() < 4  # 4:2:0 chroma blurs the edges.


def test_a_clip_depends_only_on_the_seed_and_its_index(folder: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "short", num_clips=2, seed=3, lengths=(9, 1, 17), num_workers=1)
    assert read_table(tmp_path / "short") == read_table(folder)[:2]
    for i in range(2):
        name = f"clips/{i:06d}.mp4"
        assert (tmp_path / "short" / name).read_bytes() == (folder / name).read_bytes()


def test_a_folder_with_other_content_is_refused_and_left_unchanged(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ValueError, match="holds something else already"):
        write_folder(tmp_path, num_clips=1, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("name", ["clips/000001.mp4", "toybox.json", "truth.jsonl", "metadata.csv", "clips"])
def test_a_fifo_in_the_place_of_a_file_is_refused_before_a_clip_is_written(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A clip that exists counts as complete, so a fifo in its place would pass for one."""
    (tmp_path / "clips").mkdir()
    path = tmp_path / name
    if path.is_dir():
        path.rmdir()
    os.mkfifo(path)
    before = sorted(tmp_path.rglob("*"))
    assert main(["toybox", str(tmp_path), "--clips", "2"]) == 2
    told = "is a file; give a folder" if name == "clips" else "is no regular file, and is not replaced by one; remove"
    assert f"{path} {told}" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_an_interrupted_folder_has_no_metadata_csv(tmp_path: Path) -> None:
    def interrupt(num_done: int) -> None:
        if num_done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "new", num_clips=500, seed=0, lengths=(1,), on_clip=interrupt)
    assert not (tmp_path / "new" / "metadata.csv").exists()
    assert len(list((tmp_path / "new" / "clips").iterdir())) < 20


def test_a_larger_num_clips_extends_a_folder_to_the_same_bytes_as_one_call(folder: Path, tmp_path: Path) -> None:
    for num_clips in (2, 4):
        write_folder(tmp_path / "grown", num_clips=num_clips, seed=5, lengths=(1,))
    write_folder(tmp_path / "once", num_clips=4, seed=5, lengths=(1,))
    for name in ("metadata.csv", "truth.jsonl", "clips/000001.mp4", "clips/000003.mp4"):
        assert (tmp_path / "grown" / name).read_bytes() == (tmp_path / "once" / name).read_bytes()
    with pytest.raises(ValueError, match="holds something else"):
        write_folder(tmp_path / "grown", num_clips=4, seed=6, lengths=(1,))


def test_num_clips_below_1_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_clips must be at least 1, got 0"):
        write_folder(tmp_path, num_clips=0, seed=0)
