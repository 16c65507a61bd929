"""Clips are held out by their names: a folder that changes while a run is stopped moves none from side to side."""

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import elsewhere, fit, tiny_recipe
from videogen.cli.train import train
from videogen.config.train import TrainConfig
from videogen.data.splits import CLIPS, hold_out, num_held_out, split_clips
from videogen.training.dry_run import format_plan, plan_folder
from videogen.training.stages import make_stage


def names_of(num: int) -> list[str]:
    return [f"clips/{index:05}.mp4" for index in range(num)]


def held_out_names(recipe: TrainConfig) -> set[str]:
    stage = make_stage(recipe)
    names = stage.folder.names()
    assert sorted(stage.train_indices + stage.val_indices) == list(range(len(names)))
    return {names[index] for index in stage.val_indices}


@pytest.mark.parametrize(("num", "held_out"), [(1, 0), (4, 0), (5, 1), (9, 1), (20, 2), (200, 20), (2000, 64)])
def test_at_most_a_tenth_of_the_clips_are_held_out_and_one_of_five(num: int, held_out: int) -> None:
    assert num_held_out(num, 64) == held_out == len(hold_out(names_of(num), 64, 0))
    assert num_held_out(num, 0) == 0


@pytest.mark.parametrize("num", [20, 200, 2000])
def test_one_more_file_moves_no_more_than_one_clip_even_of_a_new_run(num: int) -> None:
    names = names_of(num)
    before = set(hold_out(names, 64, 0))
    for more in ("a.mp4", "clips/00007b.mp4", "z.mp4"):
        assert len(before ^ set(hold_out([*names, more], 64, 0)) - {more}) <= 1
    assert before == set(hold_out(names[::-1], 64, 0)) != set(hold_out(names, 64, 1))


def test_a_name_in_another_unicode_form_is_the_same_name(tmp_path: Path) -> None:
    composed = [f"caf\u00e9{index}.mp4" for index in range(40)]
    decomposed = [name.replace("\u00e9", "e\u0301") for name in composed]
    assert split_clips(composed, 64, 0, tmp_path)[:2] == split_clips(decomposed, 64, 0, tmp_path)[:2]


@pytest.mark.parametrize("num", [20, 200, 2000])
def test_no_held_out_clip_of_a_run_is_ever_trained_on(num: int, tmp_path: Path) -> None:
    names = names_of(num)
    begun = split_clips(names, 64, 0, tmp_path)
    begun.keep(tmp_path)
    held_out = {names[index] for index in begun.val}
    now = sorted([*names[1:], *(f"clips/{index:05}b.mp4" for index in range(num))])
    split = split_clips(now, 64, 0, tmp_path)
    assert {now[index] for index in split.val} == held_out - {names[0]}
    assert (len(split.came), list(split.went)) == (num, [names[0]])
    text = (tmp_path / CLIPS).read_text(encoding="utf-8")
    split.keep(tmp_path)
    assert (tmp_path / CLIPS).read_text(encoding="utf-8") == text  # what it began with stays


def test_a_resumed_run_keeps_its_clips_where_they_were_and_says_what_came_and_went(
    own_clips: Path, checkpoint: Path, tmp_path: Path
) -> None:
    recipe = tiny_recipe("dit", own_clips, checkpoint, tmp_path / "run", steps=1, save_every=1)
    assert fit(recipe)
    before = held_out_names(recipe)
    assert len(before) == 1
    gone = max({f"clips/{index:06}.mp4" for index in range(10)} - before)
    for index in range(30):
        shutil.copy(own_clips / "clips" / "000001.mp4", copy := own_clips / "clips" / f"0000001{index:02}.mp4")
        copy.with_suffix(".txt").write_text("a red circle", encoding="utf-8")
    metadata = own_clips / "metadata.csv"
    rows = metadata.read_text(encoding="utf-8").splitlines()
    metadata.write_text("\n".join(row for row in rows if gone not in row) + "\n", encoding="utf-8")
    (own_clips / gone).unlink()
    longer = elsewhere(recipe, recipe.run.dir, steps=2)
    assert held_out_names(longer) == before
    split = make_stage(longer).clip_split
    first = "clips/000000100.mp4, clips/000000101.mp4, clips/000000102.mp4, ..."
    changes = f"since the run began 30 came ({first}) and 1 went ({gone})"
    assert split.describe() == f"38 clips to train on, 1 held out for the validation loss; {changes}"
    assert changes in format_plan(plan_folder(longer), longer)
    assert fit(longer)
    assert make_stage(longer).clip_split.went == [gone]


def test_another_seed_or_number_of_held_out_clips_splits_anew(tmp_path: Path) -> None:
    names = names_of(200)
    split_clips(names, 64, 0, tmp_path).keep(tmp_path)
    for most, seed in ((64, 1), (5, 0)):
        assert split_clips(names, most, seed, tmp_path)[:2] == split_clips(names, most, seed, tmp_path / "none")[:2]


def test_a_damaged_list_of_clips_is_named(finished: dict[str, TrainConfig], tmp_path: Path) -> None:
    recipe = elsewhere(finished["dit"], tmp_path / "run")
    recipe.run.dir.mkdir()
    for text in ('{"seed": 0', "[]", '{"seed": 0, "val_clips": 2, "train": 3, "held_out": []}'):
        (recipe.run.dir / CLIPS).write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=r"clips\.json is damaged.*remove it"):
            make_stage(recipe)


def test_the_command_says_how_many_clips_are_held_out(
    clips_folder: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'stage = "dit"\n[data]\nfolder = "{clips_folder}"\nmax_tokens = 80\ntoken_budget = 240\n'
        f'[dit]\nvae = "{checkpoint}"\ntext = "{checkpoint}"\nnum_layers = 1\nnum_attention_heads = 2\n'
        f'attention_head_dim = 12\nffn_dim = 16\n[run]\ndir = "{tmp_path / "run"}"\nsteps = 1\nsample_every = 0\n'
        '[sample]\nsize = "48x32"\nframes = 5\n',
        encoding="utf-8",
    )
    assert train([str(recipe)]) == 0
    assert "9 clips to train on, 1 held out for the validation loss\n" in capsys.readouterr().err
    kept = json.loads((tmp_path / "run" / CLIPS).read_text(encoding="utf-8"))
    assert (len(kept["train"]), len(kept["held_out"])) == (9, 1)
