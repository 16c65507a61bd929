"""A checkpoint says what it knows: the words of its training captions, and those of a prompt that it never met."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import fit, tiny_recipe
from tests.sweeps import QUICK as SMALL
from tests.test_cli import QUICK, refused
from videogen.cli.main import main, sample
from videogen.config.sample import MINI
from videogen.config.train import DataConfig
from videogen.data.listing import list_folder
from videogen.data.words import Word, add_words, count_words, read_words, split_words, unknown_words, write_words
from videogen.models.hub import checkpoint_id
from videogen.toybox.dataset import ToyboxClips
from videogen.toybox.words import kind_of
from videogen.training.words import training_words


@pytest.fixture
def knowing(own_checkpoint: Path) -> Path:
    """A checkpoint that met two captions."""
    write_words(own_checkpoint, count_words(["a red circle moves right", "a blue circle"], kind_of))
    return own_checkpoint


def test_a_text_is_split_into_words_of_every_script() -> None:
    assert split_words("A large, red-hot DIGIT 7's (spin)!") == ["a", "large", "red-hot", "digit", "7's", "spin"]
    assert split_words("eine große кошка") == ["eine", "große", "кошка"]
    assert split_words("一只猫 cat") == ["一", "只", "猫", "cat"]


def test_words_are_counted_written_and_read_back(tmp_path: Path) -> None:
    words = count_words(["a red circle", "A circle"], kind_of)
    assert words == [Word("sentence", "a", 2), Word("thing", "circle", 2), Word("colour", "red", 1)]
    write_words(tmp_path, words)
    assert read_words(tmp_path) == words
    assert add_words(words, [Word("word", "red", 3), Word("word", "fox", 1)])[0] == Word("colour", "red", 4)
    assert read_words(tmp_path / "none") == []


def test_unknown_words_are_listed_once_and_a_checkpoint_without_a_list_knows_no_unknown_ones() -> None:
    words = count_words(["a red circle"])
    assert unknown_words("a fox and a Fox on a red sea", words) == ["fox", "and", "on", "sea"]
    assert unknown_words("a fox", []) == []


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("circle", "thing"), ("kitten", "thing"), ("seven", "thing"), ("violet", "colour"), ("tiny", "size"),
        ("spins", "motion"), ("rightwards", "motion"), ("snow", "place"), ("zooms", "camera"), ("while", "sentence"),
    ],
)  # fmt: skip
def test_the_words_of_the_toybox_have_kinds(word: str, kind: str) -> None:
    assert kind_of(word) == kind


# --- training


def test_training_on_a_folder_keeps_the_words_of_its_captions_with_the_checkpoint(
    clips_folder: Path, checkpoint: Path, tmp_path: Path
) -> None:
    recipe = tiny_recipe("dit", clips_folder, checkpoint, tmp_path / "run", steps=1, save_every=1, val_every=1)
    assert fit(recipe)
    captions = list_folder(clips_folder).captions
    words = {word.text for word in read_words(tmp_path / "run" / "checkpoint")}
    assert words <= {word for texts in captions.values() for caption in texts for word in split_words(caption)}
    assert len(words) > 10


def test_training_on_the_toybox_keeps_kinds_and_adds_what_the_first_checkpoint_knew(knowing: Path) -> None:
    clips = ToyboxClips(DataConfig(toybox=20, toybox_captions=2), (1, 1, 1))
    words = training_words(clips, range(20), None)
    assert {word.kind for word in words} >= {"thing", "colour", "motion", "place"}
    assert sum(word.num for word in words) == sum(
        len(split_words(clips.caption(i, epoch))) for i in range(20) for epoch in range(2)
    )
    more = {word.text: word.num for word in training_words(clips, range(20), knowing)}
    assert more["circle"] == {word.text: word.num for word in words}.get("circle", 0) + 2


def test_a_list_of_words_does_not_change_what_a_checkpoint_is(own_checkpoint: Path) -> None:
    before = checkpoint_id(own_checkpoint)
    write_words(own_checkpoint, count_words(["a red circle"]))
    assert checkpoint_id(own_checkpoint) == before


# --- the commands


def test_the_words_that_a_checkpoint_never_met_are_said_once_and_the_clip_is_made(
    knowing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["a red skateboard", "ein red circle", "--model", str(knowing), "--out", str(tmp_path / "out"), *QUICK]
    assert sample([*words, "--json", "--quiet"]) == 0
    out = capsys.readouterr()
    note = f"note: this checkpoint has never seen: skateboard, ein; what it knows: videogen words --model {knowing}\n"
    assert out.err == note
    rows = [json.loads(line) for line in out.out.splitlines()]
    assert [row["unknown_words"] for row in rows] == [["skateboard"], ["ein"]]
    assert all(Path(row["path"]).is_file() for row in rows)


def test_a_checkpoint_that_met_every_word_and_one_without_a_list_say_nothing(
    knowing: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for model, prompt in ((knowing, "a red circle"), (checkpoint, "ein Skateboard")):
        words = [prompt, "--model", str(model), "--out", str(tmp_path / model.name), *QUICK, "--json", "--quiet"]
        assert sample(words) == 0
        out = capsys.readouterr()
        assert out.err == ""
        assert "unknown_words" not in out.out


def test_the_findings_of_a_sweep_name_the_unknown_words(
    knowing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["a red skateboard", "--model", str(knowing), "--sweep", "steps=1,2", "--reference", "0", *SMALL, "--quiet"]
    assert sample([*words, "--out", str(tmp_path / "s")]) == 0
    out = capsys.readouterr()
    assert "never seen: skateboard; what it knows" in out.err
    assert "This checkpoint has never seen: skateboard." in out.out
    assert "never seen: skateboard." in (tmp_path / "s" / "report.html").read_text(encoding="utf-8")


def test_the_words_command_lists_them_by_kind(
    knowing: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["words", "--model", str(knowing)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "thing: circle", "colour: blue, red", "motion: moves, right", "sentence: a",
    ]  # fmt: skip
    assert main(["words", "--model", str(knowing), "--json"]) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert first == {"kind": "sentence", "text": "a", "num": 2}
    refused(capsys, main(["words", "--model", str(checkpoint)]), "keeps no list of its training captions' words")


def test_the_default_checkpoint_knows_its_world_and_no_skateboard(capsys: pytest.CaptureFixture[str]) -> None:
    words = read_words(MINI)
    assert unknown_words("a large red circle moves right on a black background", words) == []
    assert unknown_words("a skateboard by the sea", words) == ["skateboard"]
    assert main(["words"]) == 0
    assert "thing: " in capsys.readouterr().out
