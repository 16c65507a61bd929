"""A run goes on with the settings that it was begun with: what changed is said key by key, or refused."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import assert_same_state, elsewhere, fit
from videogen.cli.train import train
from videogen.config.parsing import to_mapping
from videogen.config.train import TrainConfig
from videogen.training.run_checkpoints import saved_steps
from videogen.training.run_config import FREE, SETTINGS, changes_since, check_config, write_config

Train = Callable[[Sequence[str]], int]
RECIPE = """
stage = "dit"
[data]
folder = "{clips}"
max_tokens = 80
token_budget = 240
[dit]
vae = "{checkpoint}"
text = "{checkpoint}"
num_layers = 1
num_attention_heads = 2
attention_head_dim = 12
ffn_dim = 16
known = {{nothing = 0.5, first_frame = 0.5}}
[run]
dir = "{run}"
steps = 2
save_every = 1
sample_every = 0
[sample]
size = "48x32"
frames = 5
"""


@pytest.fixture
def begun(clips_folder: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Train:
    """Train two steps by the command; return what gives the same command again with more words."""
    recipe = tmp_path / "recipe.toml"
    text = RECIPE.format(clips=clips_folder, checkpoint=checkpoint, run=tmp_path / "run")
    recipe.write_text(text, encoding="utf-8")
    assert train([str(recipe)]) == 0
    capsys.readouterr()
    return lambda words: train([str(recipe), *words])


def test_other_data_and_another_model_are_refused_key_by_key(
    begun: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert begun(["--data.fps", "4", "--dit.ffn-dim", "24", "--run.steps", "3"]) == 2
    out = capsys.readouterr()
    run = tmp_path / "run"
    assert out.err == (
        f"error: the run in {run} was begun with other settings: data.fps is 4.0, was 8.0; dit.ffn_dim is 24, was 16; "
        "give those that it had, another --run folder, or --accept-changes to go on with these\n"
    )
    assert out.out == ""
    assert saved_steps(run) == [1, 2]
    for words in (["--run.seed", "1"], ["--optim.optimizer", "muon"], ["--data.val-clips", "3"]):
        assert begun(words) == 2
        assert f" is {words[-1]}, was " in capsys.readouterr().err


def test_what_only_makes_a_run_longer_or_faster_goes_through_and_is_said(
    begun: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    harmless = [
        "--run.steps",
        "3",
        "--run.save-every",
        "3",
        "--optim.lr",
        "0.002",
        "--data.workers",
        "0",
        "--sample.frames",
        "9",
    ]
    assert begun(harmless) == 0
    assert saved_steps(tmp_path / "run")[-1] == 3
    said = [record.getMessage() for record in caplog.records if "unlike before" in record.getMessage()]
    assert said == [
        "unlike before, data.workers is 0, was None",
        "unlike before, optim.lr is 0.002, was 0.0005",
        "unlike before, run.save_every is 3, was 1",
        "unlike before, run.steps is 3, was 2",
        "unlike before, sample.frames is 9, was 5",
    ]


def test_accepted_changes_are_made_and_said(begun: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    words = ["--run.steps", "3", "--data.fps", "4", "--optim.optimizer", "muon", "--accept-changes"]
    assert begun(words) == 0
    assert "unlike before, data.fps is 4.0, was 8.0" in caplog.text
    assert "the state of adamw is left aside, and muon begins with none" in caplog.text
    assert saved_steps(tmp_path / "run")[-1] == 3
    assert begun(words[:-1]) == 0  # now they are those of the run


def test_a_model_of_another_shape_is_refused_though_changes_are_accepted(
    begun: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    assert begun(["--dit.num-layers", "2", "--run.steps", "3", "--accept-changes"]) == 2
    assert "was written by another model" in capsys.readouterr().err


def test_a_damaged_config_of_a_run_is_named(begun: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run" / "config.json"
    for text in ('{"data": {"fps": 8', "[1, 2]", "7", "[" * 100_000):
        path.write_text(text, encoding="utf-8")
        assert begun(["--run.steps", "3"]) == 2
        assert f"{path} is damaged" in capsys.readouterr().err


def test_a_folder_written_in_another_way_is_the_same_folder(
    finished: dict[str, TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = finished["dit"]
    monkeypatch.chdir(recipe.data.folder.parent)
    relative = replace(recipe, data=replace(recipe.data, folder=Path("./toybox")))
    assert changes_since(relative, recipe.run.dir) == []
    check_config(relative, recipe.run.dir)
    with pytest.raises(ValueError, match=r"data\.folder is other, was "):
        check_config(replace(recipe, data=replace(recipe.data, folder=Path("other"))), recipe.run.dir)


def test_settings_that_earlier_versions_lacked_have_their_defaults_and_unknown_ones_are_only_said(
    finished: dict[str, TrainConfig], tmp_path: Path
) -> None:
    recipe = elsewhere(finished["dit"], tmp_path)
    saved = json.loads(json.dumps(to_mapping(recipe)))
    del saved["dit"]["nearby"]
    saved["data"]["colour"] = "blue"
    (tmp_path / "config.json").write_text(json.dumps(saved), encoding="utf-8")
    assert list(map(str, changes_since(recipe, tmp_path))) == ["data.colour is None, was blue"]
    (tmp_path / "step_000004").mkdir()
    check_config(recipe, tmp_path)
    changed = replace(recipe, dit=replace(recipe.dit, nearby=True))
    with pytest.raises(ValueError, match=r"dit\.nearby is True, was False; give"):
        check_config(changed, tmp_path)


def test_a_run_without_a_step_begins_with_any_settings(finished: dict[str, TrainConfig], tmp_path: Path) -> None:
    recipe = elsewhere(finished["dit"], tmp_path / "run")
    recipe.run.dir.mkdir()
    write_config(replace(recipe, run=replace(recipe.run, seed=7)), recipe.run.dir)
    check_config(recipe, recipe.run.dir)
    assert fit(recipe)
    assert_same_state(recipe.run.dir, finished["dit"].run.dir, 8)


def test_every_setting_that_may_change_exists() -> None:
    assert FREE <= SETTINGS
