"""Threads are chosen before torch is loaded: they sleep while they wait, and are no more than may run at a time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from videogen.cli import threads

ROOT = Path(__file__).parent.parent
SHOW = "import os, sys; print(os.environ.get('OMP_WAIT_POLICY'), os.environ.get('OMP_NUM_THREADS'))"


def run_python(code: str, **environment: str) -> str:
    """Run Python code in a new process without settings of threads, except for those given."""
    names = (*threads.WAITING_SETTINGS, "OMP_NUM_THREADS")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=ROOT, env=clean | environment
    ).stdout.strip()


@pytest.mark.parametrize(
    "call", ["main.sample(['--help'])", "train.train(['--help'])", "main.main(['judge', '--help'])"]
)
def test_every_command_lets_threads_sleep_while_they_wait(call: str) -> None:
    code = f"from videogen.cli import main, train\ntry:\n    {call}\nexcept SystemExit:\n    pass\n{SHOW}"
    assert run_python(code).splitlines()[-1].startswith("passive ")


def test_a_users_own_settings_stay() -> None:
    code = f"from videogen.cli.threads import prepare_threads; prepare_threads(); {SHOW}"
    assert run_python(code, OMP_WAIT_POLICY="active", OMP_NUM_THREADS="7") == "active 7"
    assert run_python(code, GOMP_SPINCOUNT="1000").startswith("None")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_threads_are_no_more_than_the_affinity_allows() -> None:
    core = min(os.sched_getaffinity(0))
    code = (
        f"import os; os.sched_setaffinity(0, [{core}]); os.cpu_count = lambda: 64\n"
        "from videogen.cli.threads import prepare_threads; prepare_threads()\n"
        "import torch; print(torch.get_num_threads())"
    )
    assert run_python(code) == "1"


def write_groups(root: Path, files: dict[str, str]) -> None:
    """Write the files of control groups."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, float("inf")),
        ("0::/a/b\n", {"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "400000 100000\n"}, 2.0),
        ("0::/not/mounted/here\n", {"cpu.max": "300000 100000\n"}, 3.0),
        ("4:memory:/x\n3:cpu,cpuacct:/x\n", {"cpu,cpuacct/x/cpu.cfs_quota_us": "50000\n",
                                            "cpu,cpuacct/x/cpu.cfs_period_us": "100000\n"}, 0.5),
        ("3:cpu,cpuacct:/\n", {"cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                               "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, float("inf")),
        ("", {}, float("inf")),
    ],
)  # fmt: skip
def test_the_least_quota_of_the_control_groups_is_read(
    tmp_path: Path, membership: str, files: dict[str, str], cores: float
) -> None:
    write_groups(tmp_path / "groups", files)
    (tmp_path / "membership").write_text(membership, encoding="utf-8")
    assert threads.cgroup_quota(tmp_path / "groups", tmp_path / "membership") == cores


def test_half_a_core_is_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "cgroup_quota", lambda: 0.5)
    assert threads.count_usable_cores() == 1
    monkeypatch.setattr(threads, "cgroup_quota", lambda: float("inf"))
    assert threads.count_usable_cores() >= 1
