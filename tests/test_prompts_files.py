"""Files of prompts are read as people save them, and a wrong row is named by its number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.test_cli import QUICK, refused
from videogen.cli import prompts
from videogen.cli.dry_run import format_duration
from videogen.cli.main import sample
from videogen.cli.prompts import read_prompts, read_seed
from videogen.cli.sample import parse_args
from videogen.cli.sample_jobs import list_rows
from videogen.config.sample import SampleConfig
from videogen.data.video_io import read_settings

TABLE = [["prompt", "seed", "steps"], ["a cat, alone", "3", "5"], ["a dog", "", ""]]
ROWS = [("a cat, alone", 3, 5), ("a dog", 7, 20)]


def read(path: Path) -> list[tuple[str, int, int]]:
    """Read a file's prompts, seeds and steps; the command's seed is 7."""
    return [(row.prompt, row.seed, row.config.steps) for row in read_prompts(path, SampleConfig(), 7)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_is_read_whatever_its_separator_and_unicode_encoding(
    separator: str, encoding: str, tmp_path: Path
) -> None:
    path = tmp_path / ("prompts.tsv" if separator == "\t" else "prompts.csv")
    lines = [separator.join(f'"{cell}"' if separator in cell else cell for cell in row) for row in TABLE]
    mark = "\ufeff" if encoding == "utf-16-le" else ""
    path.write_bytes((mark + "\r\n".join(lines) + "\r\n").encode(encoding))
    assert read(path) == ROWS


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_blank_lines_and_comments_of_a_list_are_skipped(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("# two animals\n\na cat, alone\n  \n  # and\na dog #2\n", encoding=encoding)
    assert [prompt for prompt, *_ in read(path)] == ["a cat, alone", "a dog #2"]


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_json_is_read_and_null_means_absent(suffix: str, tmp_path: Path) -> None:
    rows = [{"prompt": "a cat, alone", "seed": 3, "steps": 5, "size": None}, {"prompt": "a dog", "seed": None}, "a fox"]
    path = tmp_path / f"prompts{suffix}"
    lines = map(json.dumps, rows)
    path.write_text(json.dumps(rows, indent=1) if suffix == ".json" else "# three\n\n" + "\n".join(lines))
    assert read(path) == [*ROWS, ("a fox", 7, 20)]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.csv", "prompt,seed\na cat,1\na dog,3.0\n", "p.csv row 3: seed must be a whole number, got 3.0"),
        ("p.json", '[{"prompt": "a"}, {"prompt": "b", "seed": 3.0}]', "row 2: seed must be a whole number, got 3.0"),
        ("p.json", '[{"prompt": "a", "seed": true}]', "row 1: seed must be a whole number, got True"),
        ("p.json", '{"prompt": "a"}', "must hold a JSON list of rows, got dict"),
        ("p.json", '{"prompt": "a"}\n{"prompt": "b"}', "an object a line is a .jsonl"),
        ("p.csv", "prompt;seed\na;b;1\n", "it has more cells than the table has columns: ['1']; put texts with ';'"),
        ("p.txt", "# nothing\n", "holds no prompts; give one a line"),
    ],
)
def test_a_wrong_file_is_refused_in_a_sentence(
    name: str, text: str, message: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    refused(capsys, sample(["--prompts", str(tmp_path / name), "--model", str(checkpoint)]), message)


# --- seeds


@pytest.mark.parametrize("seed", ["random", "-1"])
def test_a_random_seed_is_drawn_and_recorded(
    seed: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts.secrets, "randbelow", lambda most: most - 7)
    drawn = prompts.MAX_DRAWN_SEED - 7
    words = ["a red circle", "--model", str(checkpoint), *QUICK, "--seed", seed, "--out", str(tmp_path)]
    assert sample(words) == 0
    clip = tmp_path / f"a-red-circle-{drawn}.mp4"
    assert read_settings(clip)["seed"] == drawn
    assert sample(["--from", str(clip), "--model", str(checkpoint), "--out", str(tmp_path / "again.mp4")]) == 0
    assert (tmp_path / "again.mp4").read_bytes() == clip.read_bytes()


def test_random_seeds_differ_and_one_of_a_file_is_drawn_a_row(tmp_path: Path) -> None:
    assert len({read_seed("random") for _ in range(20)}) > 15
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps([{"prompt": "a cat", "seed": "random"}] * 20), encoding="utf-8")
    assert len({seed for _, seed, _ in read(path)}) > 15


# --- sizes and times


@pytest.mark.parametrize(("shape", "size"), [("9:16", "32x48"), ("16:9", "48x32"), ("1:1", "32x32"), ("3:1", "64x16")])
def test_a_shape_takes_the_area_of_the_checkpoints_default_size(shape: str, size: str, checkpoint: Path) -> None:
    args, info = parse_args(["x", "--model", str(checkpoint), "--size", shape])
    assert info.defaults.size == "48x32"
    assert [row.config.size for row in list_rows(args, info)] == [size]


def test_a_shape_is_taken_in_prompts_files_and_sweeps(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.csv").write_text("prompt,size\na cat,9:16\n", encoding="utf-8")
    words = ["--prompts", str(tmp_path / "p.csv"), "--model", str(checkpoint), "--dry-run", "--json"]
    assert sample(words) == 0
    assert json.loads(capsys.readouterr().out)["size"] == "32x48"
    words = ["x", "--sweep", "size=9:16,32x32", "--model", str(checkpoint), "--dry-run", "--json"]
    assert sample([*words, "--out", str(tmp_path / "s")]) == 0
    assert json.loads(capsys.readouterr().out)["settings"] == 2
    refused(capsys, sample(["x", "--size", "9:0", "--model", str(checkpoint)]), "got '9:0'; or a shape, such as 9:16")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.44, "1.4 s"), (59.9, "59.9 s"), (318, "5.3 minutes"), (60_000, "16.7 hours"), (172_800, "2.0 days")],
)
def test_a_duration_has_a_persons_unit(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_a_dry_run_says_its_time_in_a_persons_unit(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sample(["x", "--model", str(checkpoint), "--steps", "10000000000", "--dry-run"]) == 0
    assert capsys.readouterr().out.rstrip().endswith((" hours", " days"))


def test_quiet_shows_no_bar(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["a red circle", "--model", str(checkpoint), *QUICK, "--out"]
    assert sample([*words, str(tmp_path / "loud.mp4")]) == 0
    assert "1 clip" in capsys.readouterr().err
    assert sample([*words, str(tmp_path / "quiet.mp4"), "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    assert sample([*words, str(tmp_path / "s"), "--quiet", "--sweep", "steps=1,2", "--reference", "0"]) == 0
    assert "evaluations" not in capsys.readouterr().err
