"""The README says what is so."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from tests.bench.readme import PAGES, filled
from videogen.cli.arguments import flags_of
from videogen.cli.main import COMMANDS, BenchArgs
from videogen.cli.sample_arguments import SampleArgs
from videogen.config.parsing import load_toml, to_mapping
from videogen.config.sample import MINI, SampleConfig
from videogen.config.train import TrainConfig
from videogen.models.checkpoint_config import read_checkpoint_info
from videogen.models.hub import checkpoint_id

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMAND_LINES = [
    line.split("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, flags=re.S)
    for line in block.splitlines()
    if line.strip()
]
LAST_WORDS = [line.split("&&")[-1].strip() for line in COMMAND_LINES]


def test_every_flag_in_the_readme_exists() -> None:
    train = TrainConfig()
    known = {
        "sample.py": flags_of(SampleArgs, SampleArgs(sample=SampleConfig())),
        "train.py": flags_of(TrainConfig, train) | {"--data", "--run"},
        "toybox": {"--clips", "--seed", "--size", "--frames"},
    }
    found = 0
    for command in LAST_WORDS:
        kind = next((name for name in known if name in command), None)
        for word in shlex.split(command):
            if word.startswith("--"):
                assert kind is not None, command
                assert word in known[kind], f"{word} in: {command}"
                found += 1
    assert found > 10
    inline = set(re.findall(r"`(--[a-z][a-z.-]+)`", README))
    assert inline <= known["sample.py"] | known["train.py"] | {"--help"}


def test_every_file_that_the_readme_names_exists() -> None:
    linked = re.findall(r"\]\(([^)#:]+)\)", README)
    ran = [word for command in LAST_WORDS for word in command.split() if word.endswith((".toml", ".py"))]
    for name in [*linked, *ran]:
        assert (ROOT / name).exists(), name


def test_the_default_checkpoint_is_the_one_that_was_measured() -> None:
    """Weights, settings and tables are committed together, or the tables speak of another checkpoint."""
    measured = json.loads((ROOT / "assets" / "bench" / "mini.json").read_text(encoding="utf-8"))
    defaults = to_mapping(read_checkpoint_info(MINI).defaults)
    assert measured["checkpoint"]["sha256"] == checkpoint_id(MINI)["sha256"]
    assert measured["settings"] == defaults
    recommended = json.loads((ROOT / "assets" / "bench" / "settings.json").read_text(encoding="utf-8"))["chosen"]
    assert recommended.items() <= defaults.items()


def test_every_module_stands_in_the_tree() -> None:
    for path in (ROOT / "videogen").glob("*.py"):
        assert path.name == "__init__.py" or path.name in README, f"{path.name} is missing from the README's tree"


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
    for name, command in COMMANDS.items():
        with pytest.raises(SystemExit) as stopped:
            command(["--help"])
        assert stopped.value.code == 0, name
        assert len(capsys.readouterr().out) > 100, name


def test_the_default_checkpoint_is_small_and_names_no_place() -> None:
    files = [path for path in MINI.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 90e6
    configs = [path.read_text(encoding="utf-8") for path in files if path.name in ("config.json", "model_index.json")]
    assert len(configs) == 4
    assert not any("_name_or_path" in config for config in configs)
