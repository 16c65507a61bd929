"""A sweep makes again what was lost or damaged, and nothing else; its table runs no formulas."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet
import pytest

from tests.sweeps import Counter, plan_of
from videogen.sampling.pipeline import VideoPipeline
from videogen.sweep.plan import Plan, Run
from videogen.sweep.results import Row, read_rows, unfinished_runs
from videogen.sweep.runner import sweep

PLAN = plan_of(["steps=1,2"], reference_steps=3)
FIRST = PLAN.name_run(PLAN.runs()[0])


def change_rows(folder: Path, change: Callable[[list[Row]], list[Row]]) -> None:
    rows = change([*read_rows(folder).values()])
    (folder / "results.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def replace_tables(folder: Path, text: bytes = b"") -> None:
    for path in folder.glob("results*"):
        path.unlink()
    if text:
        (folder / "results.jsonl").write_bytes(text)


def break_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


DAMAGES: dict[str, tuple[Callable[[Path], object], int]] = {
    "a deleted clip": (lambda out: (out / "clips" / f"{FIRST}.mp4").unlink(), 1),
    "a last line that is half-written": (lambda out: break_off(out / "results.jsonl"), 1),
    "rows of zeros": (lambda out: (out / "results.jsonl").write_bytes(b"\0" * 4096), 2),
    "no rows": (lambda out: (out / "results.jsonl").write_bytes(b""), 2),
    "rows of text": (lambda out: replace_tables(out, b"key\n\xff\n" + b"[" * 100_000 + b"\n[]\n3\n"), 2),
    "deleted rows": (lambda out: replace_tables(out), 2),
    "a row without a key": (lambda out: change_rows(out, lambda rows: [{**rows[0], "key": None}, rows[1]]), 1),
    "rows without the column": (
        lambda out: change_rows(out, lambda rows: [{k: v for k, v in row.items() if k != "key"} for row in rows]), 2,
    ),
    "a row of other settings": (lambda out: change_rows(out, lambda rows: [{**rows[0], "guidance": 9.0}, rows[1]]), 1),
    "numbers that are texts": (
        lambda out: change_rows(out, lambda rows: [{**row, "total_seconds": "long"} for row in rows]), 2,
    ),
    "a clip that is a number": (lambda out: change_rows(out, lambda rows: [{**row, "clip": 3} for row in rows]), 2),
}  # fmt: skip


@pytest.fixture(scope="module")
def done(pipeline: VideoPipeline, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Make a sweep once; return what copies it."""
    import shutil

    out = tmp_path_factory.mktemp("sweep") / "done"
    sweep(pipeline, PLAN, out)
    return lambda folder: Path(shutil.copytree(out, folder))


@pytest.mark.parametrize("name", DAMAGES)
def test_what_was_lost_of_a_sweep_is_made_again(
    name: str, pipeline: VideoPipeline, done: Callable[[Path], Path], tmp_path: Path
) -> None:
    out = done(tmp_path / "s")
    damage, num = DAMAGES[name]
    damage(out)
    assert len(unfinished_runs(out, PLAN)) == num
    rows = sweep(pipeline, PLAN, out)
    assert [row["key"] for row in rows] == [run.key for run in PLAN.runs()]
    assert not any(row["error"] for row in rows)
    assert all((out / str(row["clip"])).is_file() for row in rows)
    counter = Counter(pipeline.transformer)
    assert sweep(pipeline, PLAN, out) == rows
    counter.hook.remove()
    assert counter.calls == 0  # healed: nothing is made a third time


def test_a_damaged_reference_is_made_again(
    pipeline: VideoPipeline, done: Callable[[Path], Path], tmp_path: Path
) -> None:
    out = done(tmp_path / "s")
    (latent,) = (out / "references").glob("*.safetensors")
    cut(latent)
    (out / "clips" / f"{FIRST}.mp4").unlink()
    before = {row["key"]: row["psnr_db"] for row in read_rows(out).values()}
    rows = sweep(pipeline, PLAN, out)
    assert {row["key"]: row["psnr_db"] for row in rows} == before


def keep_as_before(folder: Path) -> None:
    """Turn a sweep's rows into those of an earlier version: a Parquet table of each of two processes."""
    rows = [*read_rows(folder).values()]
    replace_tables(folder)
    failed = {**rows[1], "clip": None, "error": "it failed"}  # by the second process, and tried again
    for name, table in {"results": rows[:2], "results.1": [failed]}.items():
        parquet.write_table(pyarrow.Table.from_pylist(table), folder / f"{name}.parquet")


def test_a_sweep_that_kept_its_rows_in_parquet_goes_on(
    pipeline: VideoPipeline, done: Callable[[Path], Path], tmp_path: Path
) -> None:
    out = done(tmp_path / "s")
    before = [*read_rows(out).values()]
    keep_as_before(out)
    assert [*read_rows(out).values()] != []
    counter = Counter(pipeline.transformer)
    assert sweep(pipeline, PLAN, out) == before
    counter.hook.remove()
    assert counter.calls == 0
    assert sorted(path.name for path in out.glob("results*")) == ["results.csv", "results.jsonl", "results.parquet"]


def test_without_pyarrow_a_sweep_has_no_parquet_and_one_that_kept_its_rows_there_is_named(
    pipeline: VideoPipeline, done: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = done(tmp_path / "s")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    rows = sweep(pipeline, PLAN, out)
    assert sorted(path.name for path in out.glob("results*")) == ["results.csv", "results.jsonl"]
    monkeypatch.undo()
    keep_as_before(out)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"results\.1\.parquet holds .* an earlier version; pip install .*--overwrite"):
        sweep(pipeline, PLAN, out)
    assert [row["key"] for row in sweep(pipeline, PLAN, out, overwrite=True)] == [row["key"] for row in rows]


@pytest.mark.parametrize("text", ["[" * 50_000, "[]", '{"prompts": ', "3"])
def test_a_damaged_sweep_json_is_named(
    text: str, pipeline: VideoPipeline, done: Callable[[Path], Path], tmp_path: Path
) -> None:
    out = done(tmp_path / "s")
    (out / "sweep.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"sweep\.json .*; choose another --out, or add --overwrite to begin anew"):
        sweep(pipeline, PLAN, out)


def test_cells_that_a_spreadsheet_would_run_are_quoted(pipeline: VideoPipeline, tmp_path: Path) -> None:
    prompts = ("=1+1", "+red", "-red", "@red", "a = b")
    bases = tuple(Run(prompt, 0, PLAN.bases[0].config) for prompt in prompts)
    plan: Plan = replace(plan_of(["steps=1"]), bases=bases)
    rows = sweep(pipeline, plan, tmp_path / "s")
    assert [row["prompt"] for row in rows] == list(prompts)
    with (tmp_path / "s" / "results.csv").open(encoding="utf-8", newline="") as file:
        cells = [row["prompt"] for row in csv.DictReader(file)]
    assert cells == ["'=1+1", "'+red", "'-red", "'@red", "a = b"]
