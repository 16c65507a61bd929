"""The judge command: what it prints, writes and refuses."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from videogen.cli.main import main
from videogen.data.files import save_tensors
from videogen.toybox import write_folder
from videogen.toybox.judge import features

QUICK = ["--steps", "2", "--size", "48x48", "--frames", "5"]


def test_rendered_clips_fulfil_their_captions_and_appear_in_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, report = tmp_path / "scores.json", tmp_path / "deep" / "report.html"
    assert main(["judge", "--clips", "3", "--out", str(out), "--report", str(report)]) == 0
    assert "all, " in capsys.readouterr().out
    scores = json.loads(out.read_text(encoding="utf-8"))["scores"]
    assert set(scores) == {"the world's own", "shuffled captions"}
    assert scores["the world's own"]["all"]["right"] == 3
    assert scores["shuffled captions"]["all"]["right"] == 0
    page = report.read_text(encoding="utf-8")
    assert page.count("<article") == 3
    assert page.count("data:image/webp;base64,") == 3
    assert "<!-- " not in page


def test_a_checkpoint_is_judged_with_its_ceilings_and_its_floor(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["judge", str(checkpoint), "--clips", "2", "--seeds", "2", "--json", *QUICK]) == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result["scores"]) == ["clips", "the world's own", "after the VAE", "shuffled captions"]
    assert result["scores"]["clips"]["all"]["clips"] == 4
    assert result["scores"]["the world's own"]["all"]["clips"] == 2
    assert result["checkpoint"]["name"] == checkpoint.name


def test_a_vae_is_judged_without_a_transformer(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--size", "48x48", "--frames", "1"]
    assert main(["judge", "--vae", str(checkpoint), "--clips", "2", "--json", *size]) == 0
    assert list(json.loads(capsys.readouterr().out)["scores"])[:2] == ["the world's own", "after the VAE"]


def test_the_clauses_of_a_captions_file_are_judged(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "own.jsonl"
    row = {"prompt": "a crimson disk goes east", "kind": "circle", "colour": "red", "motion": "right"}
    prompts.write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert main(["judge", str(checkpoint), "--captions", str(prompts), "--seeds", "1", "--json", *QUICK]) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    assert set(scores["clips"]) == {"present", "count", "class", "colour", "motion", "all", "all, one thing"}
    assert "the world's own" not in scores  # Without scenes there is nothing to render.


def test_a_folder_of_clips_is_judged_by_its_captions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "clips"
    write_folder(folder, num_clips=3, seed=0, sizes=((64, 64),), lengths=(9,))
    with (folder / "metadata.csv").open("a", encoding="utf-8") as file:
        file.write("clips/other.mp4,a zebra gallops\n")
    assert main(["judge", str(folder), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    assert scores["clips"]["background"]["share"] == 1
    assert scores["clips"]["all"]["clips"] == 3


def test_distances_to_the_world_are_printed_with_their_interval(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, report = tmp_path / "features.safetensors", tmp_path / "report.html"
    save_tensors({name: value.half() for name, value in features.FeatureExtractor().state_dict().items()}, weights)
    monkeypatch.setattr(features, "WEIGHTS", weights)
    size = ["--size", "48x48", "--frames", "1", "--report", str(report)]
    assert main(["judge", "--vae", str(checkpoint), "--clips", "3", "--json", *size]) == 0
    distances = json.loads(capsys.readouterr().out)["distances"]
    assert list(distances) == ["the world's own", "after the VAE"]
    for distance in distances.values():
        assert distance["interval"][0] <= distance["mmd"] <= distance["interval"][1]
    assert report.read_text(encoding="utf-8").count("to other clips of the world") == 2


@pytest.mark.parametrize(
    ("clips", "trained", "message"), [(3, False, "weights are not there"), (2, True, "needs 3 clips")]
)
def test_the_judge_logs_why_there_is_no_distance_and_still_scores(
    *,
    clips: int,
    trained: bool,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    weights = tmp_path / "features.safetensors"
    monkeypatch.setattr(features, "WEIGHTS", weights)
    if trained:
        save_tensors(features.FeatureExtractor().state_dict(), weights)
    assert main(["judge", "--clips", str(clips), "--json", "--size", "48x48", "--frames", "1"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["distances"] == {}
    assert result["scores"]["the world's own"]["all"]["clips"] == clips
    assert message in caplog.text


def test_an_unreadable_clip_is_left_out_of_the_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "clips"
    write_folder(folder, num_clips=3, seed=0, sizes=((64, 64),), lengths=(9,))
    next(folder.rglob("*.mp4")).write_bytes(b"cut")
    assert main(["judge", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scores"]["clips"]["all"]["clips"] == 2
    assert main(["judge", str(folder), "--json", "--clips", "2", "--held-out"]) == 2
    assert "a folder has captions of its own" in capsys.readouterr().err


def test_workers_end_when_their_parent_is_terminated(tmp_path: Path) -> None:
    """A supervisor sends SIGTERM to the command alone, not to its workers."""
    program = (
        "import os, signal\n"
        "from videogen.toybox.judge.workers import worker_pool\n"
        "if __name__ == '__main__':\n"
        "    pool = worker_pool(99)\n"
        "    print(*{pool.submit(os.getpid).result() for _ in range(4)}, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    (tmp_path / "program.py").write_text(program, encoding="utf-8")
    process = subprocess.run(
        [sys.executable, str(tmp_path / "program.py")], capture_output=True, text=True, timeout=120, check=False
    )
    workers = [int(word) for word in process.stdout.split()]
    assert workers
    assert process.returncode == -signal.SIGTERM
    for _ in range(100):
        if not any(Path(f"/proc/{worker}").exists() for worker in workers):
            return
        time.sleep(0.1)
    raise AssertionError(f"{workers} outlived their parent")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a cat", "kind": "cirle"}', "row 1: kind 'cirle' is none of circle, "),
        ('{"prompt": "a cat", "kind": "cat", "motion": "moves right"}', "row 1: motion 'moves right' is none of "),
        ('["a cat", "cat"]', "row 1: every row needs a prompt and its clauses as a JSON object, got ['a cat', 'cat']"),
        ("", "has no captions; write one a line"),
    ],
)
def test_an_invalid_captions_file_is_refused_with_its_reason(
    text: str, message: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "own.jsonl"
    prompts.write_text(f"{text}\n", encoding="utf-8")
    assert main(["judge", str(checkpoint), "--captions", str(prompts), *QUICK]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere"], "no folder"),
        (["--clips", "0"], "at least 1"),
        (["--out", "scores.txt"], "must end in .json"),
        (["--vae", "nowhere"], "has no vae/config.json"),
        (["--captions", "own.jsonl"], "name its folder"),
        (["--steps", "24"], "name its folder"),
        (["--clip", "3"], "did you mean"),
    ],
)
def test_a_wrong_flag_is_refused_with_empty_stdout(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["judge", *argv]) == 2
    output = capsys.readouterr()
    assert message in output.err
    assert output.out == ""


def test_an_unknown_key_of_a_captions_row_is_refused_with_its_number(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "own.jsonl"
    rows = {"prompt": "a cat", "kind": "cat"}, {"prompt": "a cat", "kind": "cat", "hue": "red"}
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert main(["judge", str(checkpoint), "--captions", str(prompts), *QUICK]) == 2
    assert "row 2: unknown key 'hue'" in capsys.readouterr().err
