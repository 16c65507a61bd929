"""Storyboards: scenes become one clip, cut, blended or continued, and a mistake in the file is named by its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.test_cli import refused
from videogen.cli.main import sample
from videogen.config.storyboard import Scene, plan_shots, read_storyboard
from videogen.data.video_io import probe, read_settings
from videogen.sampling.known import Known
from videogen.sampling.pipeline import VideoPipeline
from videogen.sampling.storyboards import join_shots, sample_storyboard

BOARD = """
[images]
hero = "hero.png"

[[scene]]
prompt = "a red circle"
seconds = 1

[[scene]]
prompt = "a blue star"
transition = "continue"
seconds = 1.0

[[scene]]
prompt = "a green square"
transition = "blend"
seconds = 2
image = "@hero"
"""


@pytest.fixture
def board(tmp_path: Path) -> Path:
    Image.new("RGB", (48, 32), "red").save(tmp_path / "hero.png")
    path = tmp_path / "board.toml"
    path.write_text(BOARD, encoding="utf-8")
    return path


def test_scenes_that_continue_each_other_are_one_shot(board: Path) -> None:
    first, second = plan_shots(read_storyboard(board), fps=8, stride=4)
    assert [scene.prompt for scene in first.scenes] == ["a red circle", "a blue star"]
    assert (first.ends, first.blend) == ((9, 17), 0)
    assert (second.ends, second.blend) == ((17,), 4)
    assert second.scenes[0].image == str(board.parent / "hero.png")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('prompt = "a blue star"', 'promt = "a blue star"', "line 10: unknown key 'promt'; did you mean 'prompt'"),
        ('"continue"', '"kut"', "line 11: transition must be one of 'cut', 'blend', 'continue', got 'kut'"),
        ("seconds = 1.0", "seconds = -1", "line 12: seconds must be above 0, got -1"),
        ("seconds = 1.0", 'seconds = "one"', "line 12: seconds must be of type float, got 'one'"),
        ("seconds = 1.0", "seconds = ", "is not valid TOML: Invalid value"),
        ('image = "@hero"', 'image = "@her"', "line 18: image '@her' is not in [images]; did you mean 'hero'"),
        ('image = "@hero"', 'image = "none.png"', "none.png does not exist"),
        ("[images]", "[imags]", "line 2: unknown key 'imags'; did you mean 'images'"),
        ('prompt = "a red circle"\n', "", "line 5: a scene needs a prompt"),
        ('"continue"', '"continue"\nimage = "@hero"', "goes on from the one before; leave one out"),
        ("seconds = 1.0", "seconds = 0.2", "a scene of 0.2 s is less than a latent frame of 0.5 s"),
        ("seconds = 2", "seconds = 0.1", "a blend takes 0.5 s of the scenes before and after; make them longer"),
    ],
)
def test_a_mistake_is_named_by_its_line_before_anything_is_loaded(
    before: str,
    after: str,
    message: str,
    board: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("videogen.cli.sample.load", lambda *args: pytest.fail("the model was loaded"))
    assert before in BOARD
    board.write_text(BOARD.replace(before, after), encoding="utf-8")
    refused(capsys, sample(["--storyboard", str(board), "--model", str(checkpoint)]), message)


def test_flags_beside_a_storyboard_that_say_something_else_are_refused(
    board: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--storyboard", str(board), "--model", str(checkpoint)]
    refused(capsys, sample([*words, "--seconds", "3"]), "--storyboard says how long the clip becomes")
    refused(capsys, sample([*words, "--image", "x.png"]), "leave --image out")
    refused(capsys, sample(["another prompt", *words]), "leave 'another prompt' out")
    refused(capsys, sample([*words, "--save-latents"]), "leave --save-latents out")
    refused(capsys, sample(["--storyboard", "none.toml", *words[2:]]), "there is no file none.toml")
    board.write_text("", encoding="utf-8")
    refused(capsys, sample(words), "has no scenes; begin each with a line [[scene]]")


def test_the_command_makes_a_storyboard_and_from_makes_it_again(
    board: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--storyboard", str(board), "--model", str(checkpoint), "--steps", "2", "--fps", "8"]
    assert sample([*words, "--dry-run", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["frames"], row["windows"]) == (17 + 17 - 4, 6)
    first, again = tmp_path / "first.mp4", tmp_path / "again.mp4"
    assert sample([*words, "--out", str(first)]) == 0
    assert probe(first).num_frames == 30
    assert read_settings(first)["prompt"] == "a red circle / a blue star / a green square"
    assert sample(["--from", str(first), *words[2:4], "--out", str(again)]) == 0
    assert first.read_bytes() == again.read_bytes()
    board.write_text(BOARD.replace("blue", "pink"), encoding="utf-8")
    capsys.readouterr()
    refused(capsys, sample(["--from", str(first), *words[2:4], "--out", str(tmp_path / "c.mp4")]), "give the same with")


def test_each_scene_is_made_under_its_own_prompt(pipeline: VideoPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts: list[str] = []
    encode = pipeline.encode_prompts

    def record(texts: list[str], *rest: object) -> object:
        prompts.append(texts[0])
        return encode(texts, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "encode_prompts", record)
    shots = plan_shots(
        [
            Scene(prompt="a", seconds=1),
            Scene(prompt="b", seconds=1, transition="continue"),
            Scene(prompt="c", seconds=1),
        ],
        fps=8,
        stride=4,
    )
    images: list[Known | None] = [None, None]
    frames = list(sample_storyboard(pipeline, shots, images, pipeline.defaults, 0, length=3))
    assert prompts == ["a", "b", "c"]  # each is encoded once, for all of its windows
    assert sum(map(len, frames)) == 17 + 9


def flat(level: int, num: int) -> Tensor:
    return torch.full((num, 2, 2, 3), level, dtype=torch.uint8)


@pytest.mark.parametrize("chunk", [1, 3, 20])
def test_a_blend_goes_evenly_from_one_shot_to_the_next(chunk: int) -> None:
    videos = [flat(0, 9).split(chunk), flat(200, 9).split(chunk), flat(50, 5).split(chunk)]
    result = torch.cat(list(join_shots(videos, [0, 3, 0])))[:, 0, 0, 0].tolist()
    assert result == [0] * 6 + [50, 100, 150] + [200] * 6 + [50] * 5
