"""The sweep command writes its folder and prints its findings."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sweeps import PROMPTS, QUICK, plan_of
from tests.test_cli import refused
from videogen.cli.main import sample
from videogen.cli.sample import parse_args
from videogen.config.parsing import load_toml
from videogen.config.sample import SampleConfig
from videogen.data.video_io import probe, read_video
from videogen.sampling.pipeline import VideoPipeline
from videogen.sweep.plan import Plan
from videogen.sweep.report import publish
from videogen.sweep.results import Row, read_rows
from videogen.sweep.runner import sweep

ROOT = Path(__file__).parents[1]


# --- the page


@pytest.fixture(scope="module")
def published(pipeline: VideoPipeline, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan, list[Row]]:
    """Run a sweep with prompts that would break a page that does not escape them."""
    folder = tmp_path_factory.mktemp("sweep") / "s"
    prompts = ["</script><b>a \"red\" circle & 'star'", PROMPTS[1]]
    plan = plan_of(
        ["steps=1,2,4", "guidance=1,2", "sampler=euler,heun"], prompts=prompts, seeds=[0, 1], reference_steps=8
    )
    rows = sweep(pipeline, plan, folder)
    publish(folder, plan, rows)
    return folder, plan, rows


def test_the_page_needs_no_file_outside_its_folder(published: tuple[Path, Plan, list[Row]]) -> None:
    folder, _, rows = published
    text = (folder / "report.html").read_text(encoding="utf-8")
    linked = re.findall(r"""(?:src|href)=["'](?!#|data:)([^"']*)""", text)
    assert sorted(linked) == ["results.csv", "results.jsonl"]
    assert all((folder / name).is_file() for name in linked)
    assert "@import" not in text
    assert set(re.findall(r"https?://[^\s\"'<)]+", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    data = json.loads(text.split('<script type="application/json" id="data">')[1].split("</script>")[0])
    assert [row["key"] for row in data["rows"]] == [row["key"] for row in rows]
    assert data["rows"][0]["prompt"].startswith("</script><b>")
    assert all((folder / row["clip"]).is_file() and (folder / row["reference"]).is_file() for row in data["rows"])
    assert "<!-- " not in text
    assert "/* data */" not in text


def test_the_grid_and_the_pictures_are_written(published: tuple[Path, Plan, list[Row]]) -> None:
    folder, *_ = published
    info = probe(folder / "grid.mp4")
    assert info.num_frames == 5
    assert info.width > 2 * 112
    assert info.height > 3 * 112
    assert read_video(folder / "grid.mp4").float().std() > 1
    for name in ("contact.png", "pareto.png"):
        assert probe(folder / name).width > 300


def test_best_toml_is_a_config_of_the_sweep_that_sample_reads(
    published: tuple[Path, Plan, list[Row]], checkpoint: Path
) -> None:
    folder, plan, rows = published
    best = folder / "best.toml"
    config = load_toml(SampleConfig, best)
    assert config in {run.config for run in plan.runs()}
    assert "# The rule: The " in best.read_text(encoding="utf-8")
    assert parse_args(["x", "--model", str(checkpoint), "--config", str(best)])[0].sample == config
    assert len(rows) == 3 * 2 * 2 * 2 * 2


def test_a_sweep_without_a_quality_measure_recommends_nothing(pipeline: VideoPipeline, tmp_path: Path) -> None:
    plan = plan_of(["steps=1,2"])
    summary = publish(tmp_path, plan, sweep(pipeline, plan, tmp_path))
    assert summary.choice is None
    assert "Nothing here measures quality" in summary.findings[0]
    assert not (tmp_path / "best.toml").exists()
    assert (tmp_path / "report.html").is_file()


def test_a_sweep_whose_runs_all_fail_has_a_page(pipeline: VideoPipeline, tmp_path: Path) -> None:
    plan = plan_of(["guidance=1e38"], reference_steps=2)
    summary = publish(tmp_path, plan, sweep(pipeline, plan, tmp_path))
    assert "No run has worked yet." in summary.findings
    assert (tmp_path / "report.html").is_file()


def test_a_grid_of_many_clips_stays_within_its_largest_size(pipeline: VideoPipeline, tmp_path: Path) -> None:
    plan = plan_of(["steps=1,2"])
    (row, _) = sweep(pipeline, plan, tmp_path)
    prompts = [f"prompt {i}" for i in range(300)]
    for axes in (["negative=[blurry],dark", "steps=1,2"], [f"guidance=1:{9}:150", "steps=1,2"]):
        large_plan = plan_of(axes, prompts=prompts[: 300 if "negative" in axes[0] else 1])
        rows = [
            row | {"prompt": run.prompt, "key": run.key, "negative": run.config.negative, "steps": run.config.steps,
                   "guidance": run.config.guidance} for run in large_plan.runs()
        ]  # fmt: skip
        publish(tmp_path, large_plan, rows)
        info = probe(tmp_path / "grid.mp4")
        assert info.width <= 1920
        assert info.height <= 4320 + 100
        assert (tmp_path / "contact.png").is_file()


# --- the command


def test_the_command_writes_rows_and_prints_the_paths_of_its_results(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_judge.py").write_text(
        "def score(frames, prompt):\n    return {'frames': len(frames)}\n", encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "s"
    words = ["a red circle", "--sweep", "steps=1,2", "--seeds", "3,5,8", "--out", str(out), "--model", str(checkpoint)]
    assert sample([*words, *QUICK, "--score", "my_judge:score"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == [str(out / "report.html"), str(out / "best.toml")]
    rows = read_rows(out)
    assert {(row["steps"], row["seed"], row["score_frames"]) for row in rows.values()} == {
        (steps, seed, 5.0) for steps in (1, 2) for seed in (3, 5, 8)
    }
    refused(
        capsys,
        sample([*words, *QUICK, "--guidance", "3", "--score", "my_judge:score"]),
        "another sweep (its prompts differ",
    )


def test_a_failure_to_load_leaves_the_folder_unchanged(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    out = tmp_path / "s"
    words = ["a red circle", "--sweep", "steps=1,2", "--out", str(out), "--model", str(checkpoint), *QUICK]
    refused(capsys, sample([*words, "--device", "cuda"]), "--device cuda needs an NVIDIA or AMD GPU")
    assert not out.exists()
    assert sample(words) == 0
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    refused(capsys, sample([*words, "--device", "cuda", "--overwrite"]), "--device cuda needs an NVIDIA or AMD GPU")
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before


def test_a_score_module_with_a_syntax_error_is_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_judge.py").write_text("def score(frames, prompt) return {}\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    words = ["x", "--sweep", "steps=1,2", "--out", str(tmp_path / "s"), "--model", str(checkpoint), *QUICK]
    refused(capsys, sample([*words, "--score", "broken_judge:score"]), "--score broken_judge:score: SyntaxError")


def test_a_stopped_sweep_exits_with_130_and_complete_rows(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import os, signal\n\n\ndef score(frames, prompt):\n    os.kill(os.getpid(), signal.SIGINT)\n    return {}\n"
    (tmp_path / "impatient_judge.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "s"
    words = ["a red circle", "--sweep", "steps=1,2,3", "--out", str(out), "--model", str(checkpoint), *QUICK]
    assert sample([*words, "--score", "impatient_judge:score"]) == 130
    assert "stopped; nothing is half-written" in capsys.readouterr().err
    assert [row["error"] for row in read_rows(out).values()] == [None]
    assert "1 setting, 1 prompt, 1 seed: 1 clip" in (out / "report.html").read_text(encoding="utf-8")
    assert not list(out.rglob("*.part*"))


def test_a_dry_run_counts_the_runs_and_writes_nothing(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["x", "--sweep", "steps=1,2", "guidance=1,2", "--seeds", "0:2:3"]
    words += ["--dry-run", "--json", "--model", str(checkpoint)]
    assert sample([*words, *QUICK, "--out", str(tmp_path / "s")]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert (counts["runs"], counts["settings"], counts["references"]) == (12, 4, 6)
    assert counts["evaluations"] == 3 * (1 + 2 + 2 + 4)
    assert counts["seconds"] > 0
    assert not (tmp_path / "s").exists()
    assert sample([*words, *QUICK, "--search", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"] == 6


@pytest.mark.slow
def test_two_processes_share_a_sweep(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    words = ["a red circle", "--sweep", "steps=1,2,3", "--seeds", "0,1", "--out", str(out)]
    words += ["--model", str(checkpoint), *QUICK]
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    process = subprocess.run([*launch, "sample.py", *words], capture_output=True, text=True, cwd=ROOT)
    assert process.returncode == 0, process.stderr
    assert len(read_rows(out)) == 6
    assert sorted(path.name for path in out.glob("results*")) == ["results.csv", "results.jsonl", "results.parquet"]
    assert (out / "report.html").is_file()
    assert process.stdout.count("report.html") == 1
