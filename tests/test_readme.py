"""README and guide say what is so."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from tests.bench.readme import PAGES, filled
from videogen import __version__
from videogen.cli.arguments import flags_of
from videogen.cli.judge import JudgeArgs
from videogen.cli.main import COMMANDS, BenchArgs, main
from videogen.cli.sample_arguments import SampleArgs
from videogen.cli.toybox import ToyboxArgs
from videogen.config.parsing import load_toml, to_mapping
from videogen.config.sample import MINI, SampleConfig
from videogen.config.train import TrainConfig
from videogen.models.checkpoint_config import read_checkpoint_info
from videogen.models.hub import checkpoint_id

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "README.md", *sorted((ROOT / "assets" / "guide").glob("*.md")))
TEXTS = {page: page.read_text(encoding="utf-8") for page in GUIDE}
COMMAND_LINES = [
    line.split("#")[0].strip()
    for text in TEXTS.values()
    for block in re.findall(r"```sh\n(.*?)```", text, flags=re.S)
    for line in block.splitlines()
    if line.strip()
]
LAST_COMMANDS = [line.split("&&")[-1].strip() for line in COMMAND_LINES]


def test_every_flag_in_readme_and_guide_exists() -> None:
    train = TrainConfig()
    known = {
        "sample.py": flags_of(SampleArgs, SampleArgs(sample=SampleConfig())),
        "train.py": flags_of(TrainConfig, train) | {"--data", "--run"},
        "videogen toybox": flags_of(ToyboxArgs),
        "videogen judge": flags_of(JudgeArgs, JudgeArgs()),
    }
    found = 0
    for command in LAST_COMMANDS:
        kind = next((name for name in known if name in command), None)
        for word in shlex.split(command):
            if word.startswith("--"):
                assert kind is not None, command
                assert word in known[kind], f"{word} in: {command}"
                found += 1
    assert found > 10
    inline = {flag for text in TEXTS.values() for flag in re.findall(r"`(--[a-z][a-z.-]+)[` ]", text)}
    assert inline <= set().union(*known.values()) | {"--help", "--nproc-per-node"}


def test_every_file_that_readme_and_guide_name_exists() -> None:
    for page, text in TEXTS.items():
        for name in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert (page.parent / name).exists(), f"{page.name} links {name}"
    for command in LAST_COMMANDS:
        for name in command.split():
            if name.endswith((".toml", ".py")) and not name.startswith(("grid", "RECIPE")):
                assert (ROOT / name).exists(), command


def test_every_heading_that_a_page_links_to_exists() -> None:
    for page, text in TEXTS.items():
        for name, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", text):
            linked = TEXTS[(page.parent / name).resolve() if name else page]
            headings = re.findall(r"^#+ (.+)$", linked, flags=re.M)
            assert anchor in {re.sub(r"[^a-z0-9 -]", "", line.lower()).replace(" ", "-") for line in headings}, anchor


def test_the_python_of_the_guide_imports_what_exists() -> None:
    blocks = [block for text in TEXTS.values() for block in re.findall(r"```python\n(.*?)```", text, flags=re.S)]
    assert len(blocks) >= 2
    for block in blocks:
        imports = [node for node in ast.parse(block).body if isinstance(node, ast.Import | ast.ImportFrom)]
        exec(compile(ast.Module(imports, []), "guide", "exec"), {})


def test_the_readme_takes_a_minute() -> None:
    assert len(TEXTS[ROOT / "README.md"].splitlines()) <= 180


def test_the_default_checkpoint_is_the_one_that_was_measured() -> None:
    """Weights, settings and tables are committed together, or the tables speak of another checkpoint."""
    measured = json.loads((ROOT / "assets" / "bench" / "mini.json").read_text(encoding="utf-8"))
    defaults = to_mapping(read_checkpoint_info(MINI).defaults)
    assert measured["checkpoint"]["sha256"] == checkpoint_id(MINI)["sha256"]
    assert measured["settings"] == defaults
    recommended = json.loads((ROOT / "assets" / "bench" / "settings.json").read_text(encoding="utf-8"))["chosen"]
    assert recommended.items() <= defaults.items()


def test_every_room_stands_in_contributing() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for path in sorted((ROOT / "videogen").iterdir()):
        if path.is_dir() and path.name != "__pycache__":
            assert f"{path.name}/" in text, path.name
    for name in re.findall(r"`((?:videogen/)?[a-z_]+/[a-z_/]+\.py)`", text):
        assert (ROOT / name).exists() or (ROOT / "videogen" / name).exists(), name


def test_the_tables_are_those_of_the_result_files() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert filled(text) == text, f"{page} is not current; run: python tests/bench/readme.py"
    for name in ("line", "mini", "real_overfit", "wan", "packing", "framing"):
        assert (ROOT / "assets" / "bench" / f"{name}.json").is_file()


def test_every_bench_that_is_named_can_be_started() -> None:
    known = get_args(get_type_hints(BenchArgs)["name"])
    pages = [*PAGES, *(ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "assets/LOG.md"))]
    named = {name for page in pages for name in re.findall(r"`videogen bench (\w+)", page.read_text(encoding="utf-8"))}
    assert {"wan", "precision"} <= named <= set(known)
    assert all((ROOT / "tests" / "bench" / f"{name}.py").is_file() for name in known)


def test_every_recipe_loads_and_says_its_command() -> None:
    for path in sorted((ROOT / "configs").glob("*.toml")):
        load_toml(TrainConfig, path)
        assert f"python train.py configs/{path.name}" in path.read_text(encoding="utf-8")


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name, (run, _) in COMMANDS.items():
        with pytest.raises(SystemExit) as stopped:
            run(["--help"])
        assert stopped.value.code == 0, name
        assert len(capsys.readouterr().out) > 100, name


def test_the_default_checkpoint_is_small_and_names_no_place() -> None:
    files = [path for path in MINI.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 90e6
    configs = [path.read_text(encoding="utf-8") for path in files if path.name in ("config.json", "model_index.json")]
    assert len(configs) == 4
    assert not any("_name_or_path" in config for config in configs)


def test_the_help_says_what_each_command_does_and_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for name, (_, summary) in COMMANDS.items():
        assert re.search(rf"videogen {name} +{re.escape(summary)}", text)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"videogen {__version__}\n"


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "videogen", "--version"], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, f"videogen {__version__}\n"), done.stderr


def test_tyro_writes_a_completion_script_of_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--tyro-print-completion", "bash"])
    assert stopped.value.code == 0
    script = capsys.readouterr().out
    assert all(name in script for name in COMMANDS)
    assert "--dry-run" in script
