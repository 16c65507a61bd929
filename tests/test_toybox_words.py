"""The toybox's words and files: captions say what is seen, a folder holds it with its truth."""

import csv
import json
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from tests.scenes import SCENE
from videogen.toybox import Scene, caption, draw_scene, render, write_folder
from videogen.toybox.world.backgrounds import PAINTERS
from videogen.toybox.world.captions import (
    BACKGROUND_WORDS,
    CAMERA_WORDS,
    COLOUR_WORDS,
    KIND_WORDS,
    RELATION_WORDS,
    SIZE_WORDS,
    TOGETHER,
    VERBS,
)
from videogen.toybox.world.events import EVENTS
from videogen.toybox.world.motions import MOTIONS
from videogen.toybox.world.scenes import CAMERAS, relation
from videogen.toybox.world.shapes import DISTANCES
from videogen.toybox.world.things import BACKGROUNDS, COLOURS, KINDS, SHAPES

# --- captions


def test_every_name_can_be_drawn_and_said() -> None:
    assert set(SHAPES) == set(DISTANCES)
    assert set(KINDS) == set(KIND_WORDS)
    assert set(CAMERAS) == set(CAMERA_WORDS)
    assert {"behind", *TOGETHER} == set(EVENTS)
    assert set(BACKGROUNDS) == set(PAINTERS) == set(BACKGROUND_WORDS)
    assert set(COLOURS) == set(COLOUR_WORDS)
    assert set(MOTIONS) == set(VERBS)


def said(text: str, words: tuple[str, ...]) -> bool:
    return any(f" {word} " in f" {text.replace(',', ' ')} " for word in words)


def test_a_caption_names_the_colour_and_shape_of_everything(scenes: list[Scene]) -> None:
    for seed, scene in enumerate(scenes):
        text = caption(scene, seed)
        for thing in scene.things:
            colours = COLOUR_WORDS[thing.colour] if thing.colour else ("",)
            pairs = tuple(f"{c} {s}".strip() for c in colours for s in KIND_WORDS[thing.kind])
            assert said(text.replace(":", ""), pairs), text


def test_a_caption_of_a_clip_says_every_motion_and_one_of_an_image_none(scenes: list[Scene]) -> None:
    for seed, scene in enumerate(scenes):
        text = caption(scene, seed)
        for thing in scene.things:
            if scene.event or relation(scene):
                continue
            verbs = tuple(form for verb in VERBS[thing.motion] for form in verb)
            assert said(text, verbs) == (scene.num_frames > 1), text


def test_captions_are_clean_english(scenes: list[Scene]) -> None:
    for seed, scene in enumerate(scenes):
        text = caption(scene, seed)
        words = text.replace(",", "").replace(":", "").split(" ")
        assert "" not in words, text
        assert "{" not in text, text
        for article, word in pairwise(words):
            if article in {"a", "an"}:
                assert (article == "an") == (word[0] in "aeiou" and word != "one"), text


def test_captions_tell_cameras_events_and_relations(scenes: list[Scene]) -> None:
    for seed, scene in enumerate(scenes):
        text = caption(scene, seed)
        assert said(text, CAMERA_WORDS[scene.camera]) or scene.camera == "still", text
        if scene.event in TOGETHER:
            assert said(text, tuple(form for verb in TOGETHER[scene.event] for form in verb)), text
        if scene.event == "behind":
            assert said(text, ("behind",)), text
    told = [said(caption(s, i), RELATION_WORDS[relation(s)]) for i, s in enumerate(scenes) if relation(s)]
    assert sum(told) > 10


def test_a_family_of_captions_is_kept_from_training(scenes: list[Scene]) -> None:
    moving = [(seed, scene) for seed, scene in enumerate(scenes) if scene.num_frames > 1]
    assert not any(caption(scene, seed).startswith(("look at", "watch:")) for seed, scene in moving)
    assert all(caption(scene, seed, new=True).startswith(("look at", "watch:")) for seed, scene in moving)


def test_the_plainest_sentence_is_the_most_common() -> None:
    texts = Counter(caption(SCENE, seed) for seed in range(3000))
    assert texts.most_common(1)[0][0] == "a large red circle moves right on a black background"
    assert len(texts) > 1000


@pytest.mark.parametrize(
    "part", [lambda scene: SIZE_WORDS[scene.things[0].size], lambda scene: BACKGROUND_WORDS[scene.background]]
)
def test_size_and_background_are_left_out_at_times(part: Callable[[Scene], tuple[str, ...]]) -> None:
    silent = sum(not said(caption(SCENE, seed), part(SCENE)) for seed in range(2000))
    assert silent / 2000 == pytest.approx(0.12, abs=0.03)


# --- the folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("toybox") / "new"
    write_folder(out, num_clips=6, seed=3, lengths=(9, 1, 17))
    return out


def read_table(folder: Path) -> list[dict[str, str]]:
    with (folder / "metadata.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_folder_is_a_videofolder_with_its_truth(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["clips", "metadata.csv", "toybox.json", "truth.jsonl"]
    assert sorted(path.name for path in (folder / "clips").iterdir()) == [f"{i:06d}.mp4" for i in range(6)]
    truths = [json.loads(line) for line in (folder / "truth.jsonl").read_text(encoding="utf-8").splitlines()]
    assert read_table(folder) == [{"file_name": one["file_name"], "text": one["text"]} for one in truths]
    for one in truths:
        scene = draw_scene(one["seed"], lengths=(9, 1, 17))
        assert [thing["kind"] for thing in one["things"]] == [thing.kind for thing in scene.things]
        assert all(len(thing[key]) == one["num_frames"] for thing in one["things"] for key in ("x", "y", "radius"))


def test_written_clips_show_what_was_rendered(folder: Path) -> None:
    for line in (folder / "truth.jsonl").read_text(encoding="utf-8").splitlines():
        one = json.loads(line)
        with av.open(str(folder / one["file_name"])) as video:
            frames = np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])
        expected = render(draw_scene(one["seed"], lengths=(9, 1, 17)))
        assert frames.shape == expected.shape
        assert np.abs(frames.astype(int) - expected).mean() < 4  # 4:2:0 chroma blurs the edges


def test_a_clip_depends_on_the_seed_and_its_number_only(folder: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "short", num_clips=2, seed=3, lengths=(9, 1, 17), num_workers=1)
    assert read_table(tmp_path / "short") == read_table(folder)[:2]
    for i in range(2):
        name = f"clips/{i:06d}.mp4"
        assert (tmp_path / "short" / name).read_bytes() == (folder / name).read_bytes()


def test_a_folder_that_holds_something_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ValueError, match="holds something else already"):
        write_folder(tmp_path, num_clips=1, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_interrupted_folder_has_no_table(tmp_path: Path) -> None:
    def interrupt(num_done: int) -> None:
        if num_done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "new", num_clips=500, seed=0, lengths=(1,), on_clip=interrupt)
    assert not (tmp_path / "new" / "metadata.csv").exists()
    assert len(list((tmp_path / "new" / "clips").iterdir())) < 20


def test_a_stopped_folder_goes_on_and_a_larger_one_adds_to_it(folder: Path, tmp_path: Path) -> None:
    for num_clips in (2, 4):
        write_folder(tmp_path / "grown", num_clips=num_clips, seed=5, lengths=(1,))
    write_folder(tmp_path / "once", num_clips=4, seed=5, lengths=(1,))
    for name in ("metadata.csv", "truth.jsonl", "clips/000001.mp4", "clips/000003.mp4"):
        assert (tmp_path / "grown" / name).read_bytes() == (tmp_path / "once" / name).read_bytes()
    with pytest.raises(ValueError, match="holds something else"):
        write_folder(tmp_path / "grown", num_clips=4, seed=6, lengths=(1,))


def test_a_folder_of_no_clips_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_clips must be at least 1, got 0"):
        write_folder(tmp_path, num_clips=0, seed=0)
