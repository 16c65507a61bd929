"""Sweeps: the folder that the command leaves, and what it says."""

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


# --- what a sweep shows


@pytest.fixture(scope="module")
def shown(pipeline: VideoPipeline, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan, list[Row]]:
    """A sweep with a failed run and a prompt that would break a careless page."""
    folder = tmp_path_factory.mktemp("sweep") / "s"
    prompts = ["</script><b>a \"red\" circle & 'star'", PROMPTS[1]]
    plan = plan_of(
        ["steps=1,2,4", "guidance=1,2", "sampler=euler,heun"], prompts=prompts, seeds=[0, 1], reference_steps=8
    )
    rows = sweep(pipeline, plan, folder)
    publish(folder, plan, rows)
    return folder, plan, rows


def test_the_page_is_one_folder_without_network(shown: tuple[Path, Plan, list[Row]]) -> None:
    folder, _, rows = shown
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:|results\.csv)""", text)
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


def test_the_pictures_are_there(shown: tuple[Path, Plan, list[Row]]) -> None:
    folder, *_ = shown
    info = probe(folder / "grid.mp4")
    assert info.num_frames == 5
    assert info.width > 2 * 112
    assert info.height > 3 * 112
    assert read_video(folder / "grid.mp4").float().std() > 1
    for name in ("contact.png", "pareto.png"):
        assert probe(folder / name).width > 300


def test_best_toml_is_a_config_that_sample_reads(shown: tuple[Path, Plan, list[Row]], checkpoint: Path) -> None:
    folder, plan, rows = shown
    best = folder / "best.toml"
    config = load_toml(SampleConfig, best)
    assert config in {run.config for run in plan.runs()}
    assert "# The rule: The " in best.read_text(encoding="utf-8")
    assert parse_args(["x", "--model", str(checkpoint), "--config", str(best)])[0].sample == config
    assert len(rows) == 3 * 2 * 2 * 2 * 2


def test_without_a_quality_nothing_is_recommended(pipeline: VideoPipeline, tmp_path: Path) -> None:
    plan = plan_of(["steps=1,2"])
    found = publish(tmp_path, plan, sweep(pipeline, plan, tmp_path))
    assert found.choice is None
    assert "Nothing here measures quality" in found.findings[0]
    assert not (tmp_path / "best.toml").exists()
    assert (tmp_path / "report.html").is_file()


def test_a_sweep_of_which_nothing_works_still_has_a_page(pipeline: VideoPipeline, tmp_path: Path) -> None:
    plan = plan_of(["guidance=1e38"], reference_steps=2)
    found = publish(tmp_path, plan, sweep(pipeline, plan, tmp_path))
    assert "No run has worked yet." in found.findings
    assert (tmp_path / "report.html").is_file()


def test_a_grid_of_many_shows_as_many_as_can_be_seen(pipeline: VideoPipeline, tmp_path: Path) -> None:
    plan = plan_of(["steps=1,2"])
    (row, _) = sweep(pipeline, plan, tmp_path)
    prompts = [f"prompt {i}" for i in range(300)]
    for axes in (["negative=[blurry],dark", "steps=1,2"], [f"guidance=1:{9}:150", "steps=1,2"]):
        many = plan_of(axes, prompts=prompts[: 300 if "negative" in axes[0] else 1])
        rows = [
            row | {"prompt": run.prompt, "key": run.key, "negative": run.config.negative, "steps": run.config.steps,
                   "guidance": run.config.guidance} for run in many.runs()
        ]  # fmt: skip
        publish(tmp_path, many, rows)
        info = probe(tmp_path / "grid.mp4")
        assert info.width <= 1920
        assert info.height <= 4320 + 100
        assert (tmp_path / "contact.png").is_file()


# --- the command


def test_the_command_sweeps_and_says_where_to_look(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_judge.py").write_text(
        "def score(frames, prompt):\n    return {'frames': len(frames)}\n", encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "s"
    words = ["a red circle", "--sweep", "steps=1,2", "--seeds", "3,5", "--out", str(out), "--model", str(checkpoint)]
    assert sample([*words, *QUICK, "--score", "my_judge:score"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-2:] == [str(out / "report.html"), str(out / "best.toml")]
    rows = read_rows(out)
    assert {(row["steps"], row["seed"], row["score_frames"]) for row in rows.values()} == {
        (1, 3, 5.0), (1, 5, 5.0), (2, 3, 5.0), (2, 5, 5.0),
    }  # fmt: skip
    refused(
        capsys,
        sample([*words, *QUICK, "--guidance", "3", "--score", "my_judge:score"]),
        "another sweep (its prompts differ",
    )


def test_what_cannot_be_loaded_leaves_the_folder_as_it_is(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    out = tmp_path / "s"
    words = ["a red circle", "--sweep", "steps=1,2", "--out", str(out), "--model", str(checkpoint), *QUICK]
    refused(capsys, sample([*words, "--device", "cuda"]), "--device cuda needs a CUDA GPU")
    assert not out.exists()
    assert sample(words) == 0
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    refused(capsys, sample([*words, "--device", "cuda", "--overwrite"]), "--device cuda needs a CUDA GPU")
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_a_plug_that_cannot_be_imported_is_said(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_judge.py").write_text("def score(frames, prompt) return {}\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    words = ["x", "--sweep", "steps=1,2", "--out", str(tmp_path / "s"), "--model", str(checkpoint), *QUICK]
    refused(capsys, sample([*words, "--score", "broken_judge:score"]), "--score broken_judge:score: SyntaxError")


def test_a_sweep_that_is_stopped_ends_with_130_and_whole_rows(
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


def test_a_dry_run_counts_and_writes_nothing(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "x",
        "--sweep",
        "steps=1,2",
        "guidance=1,2",
        "--seeds",
        "0:2:3",
        "--dry-run",
        "--json",
        "--model",
        str(checkpoint),
    ]
    assert sample([*words, *QUICK, "--out", str(tmp_path / "s")]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["runs"], said["settings"], said["references"]) == (12, 4, 6)
    assert said["evaluations"] == 3 * (1 + 2 + 2 + 4)
    assert said["seconds"] > 0
    assert not (tmp_path / "s").exists()
    assert sample([*words, *QUICK, "--search", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"] == 6


@pytest.mark.slow
def test_two_processes_share_a_sweep(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    words = [
        "a red circle",
        "--sweep",
        "steps=1,2,3",
        "--seeds",
        "0,1",
        "--out",
        str(out),
        "--model",
        str(checkpoint),
        *QUICK,
    ]
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
    done = subprocess.run([*launch, "sample.py", *words], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert len(read_rows(out)) == 6
    assert sorted(path.name for path in out.glob("results*")) == ["results.csv", "results.parquet"]
    assert (out / "report.html").is_file()
    assert done.stdout.count("report.html") == 1
