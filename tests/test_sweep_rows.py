"""Every run of a sweep leaves a row, whatever interrupts it, and a search resumes where it stopped."""

from __future__ import annotations

import csv
import functools
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
from torch import Tensor

from tests.sweeps import PROMPTS, SMALL, Counter, plan_of
from videogen.data.video_io import probe, read_settings
from videogen.models.hub import checkpoint_id
from videogen.sampling.pipeline import VideoPipeline
from videogen.sweep.measures import score_id
from videogen.sweep.plan import lock_folder
from videogen.sweep.report import conclude
from videogen.sweep.results import add_row, gather_rows, read_rows
from videogen.sweep.runner import Worker, config_of, sweep
from videogen.sweep.search import open_study, search

# --- rows


def brightness_score(frames: Tensor, prompt: str) -> dict[str, float]:
    """Score the brightness of a clip, and count the words of its prompt."""
    return {"brightness": float(frames.float().mean()), "words": len(prompt.split())}


def failing_score(frames: Tensor, prompt: str) -> dict[str, float]:
    """Score as brightness_score, but fail for one prompt."""
    if "star" in prompt:
        raise KeyError("star")
    return brightness_score(frames, prompt)


def test_a_2x2_sweep_writes_4_clips_and_4_rows(pipeline: VideoPipeline, tmp_path: Path) -> None:
    out = tmp_path / "s"
    plan = plan_of(["steps=1,2", "guidance=1,2"], reference_steps=4)
    rows = sweep(pipeline, plan, out, score=brightness_score)
    assert len(rows) == 4
    assert len(list((out / "clips").glob("*.mp4"))) == 4
    assert [*read_rows(out).values()] == rows
    assert parquet.read_table(out / "results.parquet").to_pylist() == rows
    with (out / "results.csv").open(encoding="utf-8", newline="") as file:
        assert [line["key"] for line in csv.DictReader(file)] == [row["key"] for row in rows]
    for run, row in zip(plan.runs(), rows, strict=True):
        assert config_of(row) == run.config
        info, settings = probe(out / str(row["clip"])), read_settings(out / str(row["clip"]))
        assert (info.width, info.num_frames) == (32, 5)
        assert (settings["prompt"], settings["steps"]) == (run.prompt, run.config.steps)
        assert row["error"] is None
        parts = [float(str(row[f"{part}_seconds"])) for part in ("text", "denoise", "decode")]
        assert all(part > 0 for part in parts)
        assert row["total_seconds"] == pytest.approx(sum(parts))
        assert float(str(row["peak_memory_gb"])) > 0.05
        assert row["score_words"] == 3.0
        assert {"psnr_db", "ssim", "flicker", "motion", "saturation", "clipped", "score_brightness"} <= row.keys()
    assert not list(out.rglob("*.part"))


def test_psnr_rises_with_the_steps_up_to_the_references_own(pipeline: VideoPipeline, tmp_path: Path) -> None:
    plan = plan_of(["steps=1,4,16"], reference_steps=16)
    plan = replace(
        plan, bases=tuple(run._replace(config=replace(run.config, sampler="dpmpp_2m")) for run in plan.bases)
    )
    psnr = [float(str(row["psnr_db"])) for row in sweep(pipeline, plan, tmp_path / "s")]
    assert psnr == sorted(psnr)
    assert psnr[-1] > 55  # the same run in another pack: at most a few pixels are off by one grey level


def test_the_same_call_again_evaluates_nothing(pipeline: VideoPipeline, tmp_path: Path) -> None:
    plan = plan_of(["steps=1,2"], reference_steps=3)
    rows = sweep(pipeline, plan, tmp_path)
    counter = Counter(pipeline.transformer)
    assert sweep(pipeline, plan, tmp_path) == rows
    counter.hook.remove()
    assert counter.calls == 0


def test_a_failed_run_is_a_row_with_its_error_and_the_others_go_on(pipeline: VideoPipeline, tmp_path: Path) -> None:
    rows = sweep(pipeline, plan_of(["guidance=2,1e38,3"], reference_steps=2), tmp_path)
    assert [row["error"] is None for row in rows] == [True, False, True]
    assert "the latents are not finite; lower the guidance" in str(rows[1]["error"])
    assert [row["clip"] is None for row in rows] == [False, True, False]


def test_a_failed_score_costs_its_row_only_and_is_tried_again(pipeline: VideoPipeline, tmp_path: Path) -> None:
    plan = plan_of(["steps=1,2"], prompts=PROMPTS)
    rows = sweep(pipeline, plan, tmp_path, score=failing_score)
    assert [row["error"] for row in rows] == [None, "KeyError: 'star'", None, "KeyError: 'star'"]
    # The fixed score keeps its name, by which a sweep knows it.
    fixed_score = functools.wraps(failing_score)(lambda frames, prompt: brightness_score(frames, prompt))
    retried = sweep(pipeline, plan, tmp_path, score=fixed_score)
    assert [row["error"] for row in retried] == [None] * 4
    assert retried[0] == rows[0]


def test_a_failed_reference_is_tried_again(
    pipeline: VideoPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(["steps=1,2"], reference_steps=4)
    with monkeypatch.context() as broken:
        broken.setattr(Worker, "save_references", lambda worker, pack: None)
        rows = sweep(pipeline, plan, tmp_path)
    assert [row["error"] for row in rows] == [None, None]
    sentence = conclude(plan, rows).findings[0]
    assert sentence.startswith("No reference could be made")
    assert all("psnr_db" in row and row["reference"] for row in sweep(pipeline, plan, tmp_path))


def test_a_score_with_a_reference_parameter_is_given_the_reference(pipeline: VideoPipeline, tmp_path: Path) -> None:
    def equal_share(frames: Tensor, prompt: str, reference: Tensor | None) -> dict[str, float]:
        return {"like": -1.0 if reference is None else float((frames == reference).float().mean())}

    for steps, expected in ((2, {1.0}), (0, {-1.0})):
        plan = plan_of(["steps=2"], reference_steps=steps)
        plan = replace(plan, bases=tuple(run._replace(config=replace(SMALL, sampler="dpmpp_2m")) for run in plan.bases))
        rows = sweep(pipeline, plan, tmp_path / str(steps), score=equal_share)
        assert {row["score_like"] for row in rows} == expected


@pytest.mark.parametrize(
    "score", [lambda frames, prompt: 3, lambda frames, prompt: {"a": "b"}, lambda f, p: {"a": float("nan")}]
)
def test_a_score_that_is_no_dict_of_finite_numbers_is_an_error(
    score: object, pipeline: VideoPipeline, tmp_path: Path
) -> None:
    (row,) = sweep(pipeline, plan_of(["steps=1"]), tmp_path, score=score)  # type: ignore[arg-type]
    assert "score must return" in str(row["error"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_rows_in_progress_and_the_same_call_resumes(
    number: signal.Signals, pipeline: VideoPipeline, tmp_path: Path
) -> None:
    plan = plan_of(["steps=1,2,3"], seeds=[0, 1])
    with pytest.raises(KeyboardInterrupt):
        sweep(
            pipeline,
            plan,
            tmp_path,
            score=brightness_score,
            on_row=lambda row: os.kill(os.getpid(), number) if row["seed"] == 0 else None,
        )
    first = read_rows(tmp_path)
    assert 0 < len(first) < 6
    assert all(row["error"] is None and (tmp_path / str(row["clip"])).is_file() for row in first.values())
    with (tmp_path / "results.csv").open(encoding="utf-8", newline="") as file:
        assert [line["key"] for line in csv.DictReader(file)] == [*first]
    rows = {str(row["key"]): row for row in sweep(pipeline, plan, tmp_path, score=brightness_score)}
    assert len(rows) == 6
    assert {key: rows[key] for key in first} == first


def test_a_sweep_restores_the_handler_of_ctrl_c(pipeline: VideoPipeline, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    sweep(pipeline, plan_of(["steps=1"]), tmp_path)
    assert signal.getsignal(signal.SIGINT) is before


ADD_ROWS = """
import sys
from pathlib import Path
from videogen.sweep.results import add_row
for i in range(int(sys.argv[2])):
    add_row(Path(sys.argv[1]), {"key": f"{sys.argv[3]} {i}", "prompt": "x" * 5000})
    print(i, flush=True)
"""


def start_adding(folder: Path, num: int, name: str) -> subprocess.Popen[str]:
    """Start a process that adds rows, and prints the number of each that is on disk."""
    words = [sys.executable, "-c", ADD_ROWS, str(folder), str(num), name]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent)


def test_no_row_is_lost_of_processes_that_add_at_once(tmp_path: Path) -> None:
    processes = [start_adding(tmp_path, 40, name) for name in ("a", "b", "c")]
    assert [process.communicate() and process.returncode for process in processes] == [0, 0, 0]
    assert {*read_rows(tmp_path)} == {f"{name} {i}" for name in ("a", "b", "c") for i in range(40)}
    assert len(gather_rows(tmp_path)) == 120


def test_a_killed_process_leaves_every_row_that_it_reported(tmp_path: Path) -> None:
    process = start_adding(tmp_path, 100_000, "a")
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) == 20:
            process.kill()
    num = len(read_rows(tmp_path))
    assert num > 20
    assert [*read_rows(tmp_path)] == [f"a {i}" for i in range(num)]
    process.stdout.close()


def test_a_row_goes_behind_a_line_that_was_cut(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"key": str(i), "error": None} for i in range(3)]
    for row in rows[:2]:
        add_row(tmp_path, row)
    path = tmp_path / "results.jsonl"
    path.write_bytes(path.read_bytes()[:-4])
    add_row(tmp_path, rows[2])
    assert [*read_rows(tmp_path).values()] == [rows[0], rows[2]]
    assert "1 lines of" in caplog.text
    add_row(tmp_path, rows[1] | {"error": "it failed"})
    add_row(tmp_path, rows[1])
    assert read_rows(tmp_path)["1"] == rows[1]  # the last attempt counts


def test_a_folder_of_another_sweep_is_refused_and_unchanged(pipeline: VideoPipeline, tmp_path: Path) -> None:
    sweep(pipeline, plan_of(["steps=1"]), tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for other in (plan_of(["steps=2"]), plan_of(["steps=1"], seeds=[1]), plan_of(["steps=1"], reference_steps=4)):
        with pytest.raises(ValueError, match="holds another sweep"):
            sweep(pipeline, other, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_folder_with_a_running_sweep_is_refused(pipeline: VideoPipeline, tmp_path: Path) -> None:
    plan = plan_of(["steps=1"])
    with (
        lock_folder(tmp_path, plan),
        pytest.raises(ValueError, match=r"another sweep is running in .*; wait for its end"),
    ):
        sweep(pipeline, replace(plan, about=tuple(score_id(None).items())), tmp_path, overwrite=True)
    assert [row["error"] for row in sweep(pipeline, plan, tmp_path, overwrite=True)] == [None]


def test_a_folder_of_another_checkpoint_or_score_is_refused(own_checkpoint: Path, tmp_path: Path) -> None:
    plan, out = plan_of(["steps=1"]), tmp_path / "sweep"
    (row,) = sweep(VideoPipeline.load(own_checkpoint), plan, out)
    assert read_settings(out / str(row["clip"]))["checkpoint"] == checkpoint_id(own_checkpoint)
    with pytest.raises(ValueError, match=r"holds another sweep \(its score differs\)"):
        sweep(VideoPipeline.load(own_checkpoint), plan, out, score=brightness_score)
    index = own_checkpoint / "model_index.json"
    index.write_text(index.read_text(encoding="utf-8").replace('"steps": 3', '"steps": 5'), encoding="utf-8")
    with pytest.raises(ValueError, match=r"holds another sweep \(its checkpoint differs\)"):
        sweep(VideoPipeline.load(own_checkpoint), plan, out)


def test_overwrite_deletes_the_sweeps_own_files_only(pipeline: VideoPipeline, tmp_path: Path) -> None:
    sweep(pipeline, plan_of(["steps=1"]), tmp_path)
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    rows = sweep(pipeline, plan_of(["steps=2"]), tmp_path, overwrite=True)
    assert [row["steps"] for row in rows] == [2]
    assert len(list((tmp_path / "clips").glob("*.mp4"))) == 1
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_a_folder_that_holds_no_sweep_is_refused(pipeline: VideoPipeline, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match="holds something that is no sweep"):
        sweep(pipeline, plan_of(["steps=1"]), tmp_path, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


# --- search


def test_a_search_tries_the_given_number_of_settings_and_resumes(pipeline: VideoPipeline, tmp_path: Path) -> None:
    plan = plan_of(["steps=1:6:6", "sampler=euler,heun"], seeds=[0, 1], reference_steps=8)
    with lock_folder(tmp_path, plan):
        pass
    worker = Worker(pipeline, plan, tmp_path)
    first = search(worker, plan, tmp_path, 3)
    assert len(first) == 3
    assert len(read_rows(tmp_path)) == 3 * 2
    counter = Counter(pipeline.transformer)
    assert search(Worker(pipeline, plan, tmp_path), plan, tmp_path, 3) == first
    counter.hook.remove()
    assert counter.calls == 0
    more = search(Worker(pipeline, plan, tmp_path), plan, tmp_path, 5)
    assert more[:3] == first
    assert len(read_rows(tmp_path)) == 5 * 2
    search(worker, plan, tmp_path, 99)
    assert len(read_rows(tmp_path)) == 12 * 2


def test_a_stopped_search_completes_its_trial(pipeline: VideoPipeline, tmp_path: Path) -> None:
    plan = plan_of(["steps=1:6:6", "sampler=euler,heun"], seeds=[0, 1], reference_steps=4)
    with lock_folder(tmp_path, plan):
        pass

    def press_ctrl_c(row: dict[str, object]) -> None:
        if row["seed"] == 0:
            os.kill(os.getpid(), signal.SIGINT)

    worker = Worker(pipeline, plan, tmp_path, on_row=press_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        search(worker, plan, tmp_path, 2)
    (first,) = {(row["steps"], row["sampler"]) for row in read_rows(tmp_path).values()}
    settings = search(Worker(pipeline, plan, tmp_path), plan, tmp_path, 2)
    assert (settings[0]["steps"], settings[0]["sampler"]) == first
    study = open_study(tmp_path)
    assert all(trial.state.is_finished() for trial in study.trials)
    assert len(settings) == 2
