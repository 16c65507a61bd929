"""Of two trainings in one folder the second is refused, and a lock does not outlive its process."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import elsewhere, fit
from videogen.cli.train import train
from videogen.config.train import TrainConfig
from videogen.data.folder_lock import RUN_LOCK, lock_folder, lock_run

HOLD = "import sys; from pathlib import Path; from videogen.data.folder_lock import lock_run\nwith lock_run(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"  # noqa: E501


@contextmanager
def another_process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a process that holds a run folder until it is killed."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], **pipes)  # type: ignore[call-overload]
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_second_training_in_a_folder_is_refused_until_the_first_is_killed(
    finished: dict[str, TrainConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = elsewhere(finished["vae"], tmp_path / "run", steps=1)
    with another_process(recipe.run.dir) as process:
        sentence = rf"another training is running in .*run \(process {process.pid} on .* since .*\); wait for its end"
        with pytest.raises(ValueError, match=sentence):
            fit(recipe)
        command = ["configs/folder-vae.toml", "--data", str(recipe.data.folder), "--run", str(recipe.run.dir)]
        assert train(command) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: another training is running in ")
        assert error.endswith("choose another --run folder\n")
        assert [path.name for path in recipe.run.dir.iterdir()] == [RUN_LOCK]
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert fit(recipe)


def test_the_process_that_holds_a_run_folder_may_hold_it_twice(tmp_path: Path) -> None:
    """The command holds it while it loads, and the training that it starts."""
    with lock_run(tmp_path), lock_run(tmp_path):
        pass
    with another_process(tmp_path):
        pass


def test_the_further_processes_of_a_training_need_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with another_process(tmp_path):
        monkeypatch.setenv("RANK", "1")
        with lock_run(tmp_path):
            pass


def test_a_folder_that_stays_empty_is_not_left_behind(tmp_path: Path) -> None:
    """A refused command leaves nothing."""
    (tmp_path / "there").mkdir()
    for name in ("there", "runs/new"):
        with lock_run(tmp_path / name):
            pass
    assert [path.name for path in tmp_path.rglob("*")] == ["there", RUN_LOCK]
    with lock_run(tmp_path / "runs" / "new"):
        (tmp_path / "runs" / "new" / "config.json").touch()
    assert (tmp_path / "runs" / "new").is_dir()


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with (
        pytest.raises(ValueError, match="run is a file; choose another --out"),
        lock_folder(tmp_path / "run", "x.lock", task="sweep", flag="--out"),
    ):
        pass
