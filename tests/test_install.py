"""What is installed works wherever it is imported from, and needs nothing that pyproject.toml does not name."""

from __future__ import annotations

import ast
import json
import os
import pty
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import videogen
from tests.lowest import lowest_versions
from tests.test_cli import QUICK
from videogen.cli.main import sample

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
# The requirements of what a tool of the tests needs, and of what only runs where an extra of another is installed.
NAMES = {re.split(r"[\s<>=!;\[]", line)[0].lower().replace("_", "-") for line in PROJECT["dependencies"]}
NAMES_OF_EXTRAS = {
    re.split(r"[\s<>=!;\[]", line)[0].lower().replace("_", "-") for lines in EXTRAS.values() for line in lines
}


def test_dir_lists_the_public_names_before_they_are_loaded() -> None:
    program = "import videogen; print(*dir(videogen))"
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert set(videogen.__all__) <= set(process.stdout.split())


def imported_packages() -> set[str]:
    """List the packages that any file of videogen imports, without Python's own."""
    names = set[str]()
    for path in (ROOT / "videogen").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(str(node.module).split(".")[0])
    hosts = {"comfy_api"}  # programs that import a file of ours bring it along
    return names - {"videogen", "tests", *hosts, *sys.stdlib_module_names}


def test_every_package_that_is_imported_is_declared() -> None:
    distributions = {name: found[0].lower().replace("_", "-") for name, found in packages_distributions().items()}
    needed = {distributions.get(name, name) for name in imported_packages()}
    assert needed - NAMES - NAMES_OF_EXTRAS == set()


def test_the_lowest_versions_are_printed_once_for_every_requirement_with_a_floor() -> None:
    lowest = lowest_versions()
    assert lowest.keys() >= NAMES
    assert NAMES_OF_EXTRAS - {"xformers"} <= lowest.keys()
    process = subprocess.run([sys.executable, "tests/lowest.py"], capture_output=True, text=True, check=True, cwd=ROOT)
    assert f"torch=={lowest['torch']}" in process.stdout.splitlines()
    assert len(process.stdout.splitlines()) == len(lowest)


def show_in_terminal(*words: str, **environment: str) -> str:
    """Run a command whose output goes to a terminal."""
    reader, writer = pty.openpty()
    words = (sys.executable, "-m", "videogen", *words)
    env = {**os.environ, "TERM": "xterm-256color", **environment}
    with subprocess.Popen(words, stdout=writer, stderr=writer, cwd=ROOT, env=env) as process:
        os.close(writer)
        text = b""
        try:
            while part := os.read(reader, 65536):
                text += part
        except OSError:  # the end of a terminal whose other side is closed
            pass
        os.close(reader)
    assert process.returncode == 0, text
    return text.decode()


@pytest.mark.parametrize("words", [("sample", "--help"), ("train", "--help")])
def test_no_color_is_heeded_by_the_help_in_a_terminal(words: tuple[str, ...]) -> None:
    assert "\x1b[" in show_in_terminal(*words)
    plain = show_in_terminal(*words, NO_COLOR="1")
    assert "--" in plain
    assert "\x1b[" not in plain


def test_verbose_says_what_the_program_chose(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["x", "--model", str(checkpoint), "--dry-run", *QUICK]
    assert sample([*words, "-v"]) == 0
    assert "precision: float32" in capsys.readouterr().err
    assert sample(words) == 0
    assert "precision" not in capsys.readouterr().err


# --- what pip installs; it fetches the build backend


def new_environment(folder: Path) -> Path:
    """Make an environment that sees what is installed here, but no videogen; return its Python."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    [packages] = folder.glob("lib/*/site-packages")
    # Paths that stand in a .pth file are searched for packages; the .pth files in there are not read.
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return python


def run(python: Path, *words: str, cwd: Path, status: int = 0) -> str:
    """Run Python in a folder as a user has it, without the settings of the tests."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    process = subprocess.run([python, *words], capture_output=True, text=True, cwd=cwd, env=env)
    assert process.returncode == status, process.stderr
    return process.stdout


def pip(*words: str, python: Path) -> None:
    """Run this Python's pip on another environment."""
    command = [sys.executable, "-m", "pip", "--python", str(python), "-q", *words]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


@pytest.mark.slow
def test_a_script_beside_a_clone_imports_what_is_installed_from_the_clone(tmp_path: Path) -> None:
    """The clone's folder, which bears the package's name, would be imported as an empty package otherwise."""
    python = new_environment(tmp_path / "env")
    pip("install", "--no-deps", "-e", str(ROOT), python=python)
    (tmp_path / "videogen").symlink_to(ROOT)
    (tmp_path / "script.py").write_text("from videogen import VideoPipeline; import videogen; print(videogen.__file__)")
    assert Path(run(python, "script.py", cwd=tmp_path).strip()) == ROOT / "videogen" / "__init__.py"
    [packages] = (tmp_path / "env").glob("lib/*/site-packages")
    assert not (packages / "videogen").exists()


@pytest.mark.slow
def test_the_wheel_makes_clips_and_toybox_folders_and_judges_them_without_a_checkout(tmp_path: Path) -> None:
    python = new_environment(tmp_path / "env")
    pip("wheel", "--no-deps", "-w", str(tmp_path), str(ROOT), python=python)
    [wheel] = tmp_path.glob("videogen-*.whl")
    assert wheel.stat().st_size < 100e6  # what PyPI takes
    pip("install", "--no-deps", str(wheel), python=python)
    here = tmp_path / "elsewhere"
    here.mkdir()
    assert str(ROOT) not in run(python, "-c", "import videogen; print(videogen.__file__)", cwd=here)
    run(python, "-m", "videogen", "sample", "a red circle", "--out", "clip.mp4", *QUICK, cwd=here)
    assert (here / "clip.mp4").stat().st_size > 100
    run(python, "-m", "videogen", "toybox", "clips", "--clips", "4", "--size", "64x64", "--frames", "9", cwd=here)
    table = (here / "clips" / "metadata.csv").read_text(encoding="utf-8").splitlines()
    assert len(table) == 5
    judged = run(python, "-m", "videogen", "judge", "clips", "--json", cwd=here).splitlines()
    assert all(map(json.loads, judged))
    assert judged
