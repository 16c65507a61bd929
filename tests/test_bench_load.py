"""videogen bench looks how busy the machine is, says it, and refuses to share it unless told."""

import os
import sys
import time
from pathlib import Path

import pytest

from tests.bench import load
from tests.bench.load import Load, check_load, measure_load
from videogen.cli import main as command

FREE = Load(2, 0.3, 0.5, {})
BUSY = Load(2, 1.7, 2.5, {"python train.py (7)": 1.0})


@pytest.fixture
def busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the machine seem busy, and forget what a script is given."""
    monkeypatch.setattr(load, "measure_load", lambda: BUSY)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "path", sys.path)


def write_proc(proc: Path, core_ticks: str, processes: dict[int, tuple[int, int]]) -> None:
    (proc / "stat").write_text(f"cpu  {core_ticks}\ncpu0 0 0 0 0\n", encoding="ascii")
    for pid, (user, kernel) in processes.items():
        (proc / str(pid)).mkdir(exist_ok=True)
        fields = f"S 1 1 1 0 -1 0 0 0 0 0 {user} {kernel} 0 0"
        (proc / str(pid) / "stat").write_text(f"{pid} (a ) name) {fields}\n", encoding="ascii")
        (proc / str(pid) / "cmdline").write_bytes(b"python\0train.py\0\n" + b"x" * 100)


def test_load_is_the_time_that_cores_and_processes_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_proc(tmp_path, "100 0 50 800 50 0 0 0 0 0", {7: (10, 0), 8: (5, 5), os.getpid(): (0, 0)})

    def let_time_pass(seconds: float) -> None:
        # 50 of 100 ticks: 38 for users and the kernel, 2 for interrupts, 10 stolen; 40 idle and 10 waiting are free.
        write_proc(tmp_path, "130 0 58 840 60 1 1 10 20 0", {7: (20, 10), 8: (6, 5), 9: (90, 0), os.getpid(): (50, 0)})

    monkeypatch.setattr(time, "sleep", let_time_pass)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    measured = measure_load(proc=tmp_path)
    assert measured.busy == pytest.approx(4 * 0.5)
    ((name, share),) = measured.processes.items()  # one that is new, idle, or our own is not named
    assert name.startswith("python train.py xxx")
    assert name.endswith("x (7)")
    assert len(name) < 70
    assert share == pytest.approx(4 * 0.2)


def test_a_system_without_proc_is_not_refused(tmp_path: Path) -> None:
    measured = measure_load(0, proc=tmp_path)
    assert measured.busy is None
    check_load(measured, anyway=False)


def test_this_machine_says_how_busy_it_is() -> None:
    measured = measure_load(0.1)
    assert measured.busy is None or 0 <= measured.busy <= measured.cores


def test_more_than_one_busy_core_is_refused_unless_told(capsys: pytest.CaptureFixture[str]) -> None:
    check_load(FREE, anyway=False)
    check_load(FREE._replace(busy=1.04), anyway=False)
    check_load(BUSY, anyway=True)
    assert capsys.readouterr().err.splitlines()[-1] == (
        "before the measurement: 2 cores, busy 1.7, load of the last minute 2.5; python train.py (7): 1.0"
    )
    with pytest.raises(ValueError, match=r"1\.7 of 2 cores are busy.*give --busy.*python train\.py \(7\): 1\.0$"):
        check_load(BUSY, anyway=False)


@pytest.mark.usefixtures("busy_machine")
@pytest.mark.parametrize("words", [["--busy", "teaser"], ["teaser", "--busy"]])
def test_bench_runs_its_script_with_the_flags_after_the_name(
    words: list[str], checkpoint: Path, tmp_path: Path
) -> None:
    flags = ["--small", "--model", str(checkpoint), "--out", str(tmp_path / "teaser.webp")]
    assert command.main(["bench", *words, *flags]) == 0
    assert (tmp_path / "teaser.webp").is_file()


@pytest.mark.usefixtures("busy_machine")
def test_bench_refuses_a_busy_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["bench", "teaser", "--small"]) == 2
    assert "error: 1.7 of 2 cores are busy" in capsys.readouterr().err


@pytest.mark.usefixtures("busy_machine")
def test_the_help_of_a_measurement_needs_no_free_machine(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        command.main(["bench", "teaser", "--help"])
    assert exit_info.value.code == 0
    assert "--small" in capsys.readouterr().out
