"""README and guide name flags, files and commands that exist, and their tables are those of the result files."""

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

from tests.bench.readme import PAGES, fill_tables
from videogen import __version__
from videogen.cli.arguments import flags_of
from videogen.cli.doctor import DoctorArgs
from videogen.cli.judge import JudgeArgs
from videogen.cli.main import COMMANDS, BenchArgs, main
from videogen.cli.sample_arguments import SampleArgs
from videogen.cli.toybox import ToyboxArgs
from videogen.cli.train import FLAGS
from videogen.cli.train_folder import TrainFolderArgs
from videogen.config.parsing import from_mapping, load_toml, to_mapping
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
    folder = flags_of(TrainFolderArgs, TrainFolderArgs(folder=Path()))
    flags = {
        "sample.py": flags_of(SampleArgs, SampleArgs(sample=SampleConfig())),
        "train.py": flags_of(TrainConfig, TrainConfig()) | folder | {"--data"},
        "videogen toybox": flags_of(ToyboxArgs),
        "videogen judge": flags_of(JudgeArgs, JudgeArgs()),
        "videogen doctor": flags_of(DoctorArgs),
    }
    num_flags = 0
    for command in LAST_COMMANDS:
        kind = next((name for name in flags if name in command), None)
        for word in shlex.split(command):
            if word.startswith("--"):
                assert kind is not None, command
                assert word in flags[kind], f"{word} in: {command}"
                num_flags += 1
    assert num_flags > 10
    inline = {flag for text in TEXTS.values() for flag in re.findall(r"`(--[a-z][a-z.-]+)[` ]", text)}
    assert inline <= set().union(*flags.values()) | {"--help", "--nproc-per-node", *FLAGS}


def test_every_file_named_in_readme_and_guide_exists() -> None:
    for page, text in TEXTS.items():
        for name in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert (page.parent / name).exists(), f"{page.name} links {name}"
    for command in LAST_COMMANDS:
        for name in command.split():
            if name.endswith((".toml", ".py")) and not name.startswith(("grid", "RECIPE", "dataset")):
                assert (ROOT / name).exists(), command


def test_every_linked_heading_exists() -> None:
    for page, text in TEXTS.items():
        for name, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", text):
            linked = TEXTS[(page.parent / name).resolve() if name else page]
            headings = re.findall(r"^#+ (.+)$", linked, flags=re.M)
            assert anchor in {re.sub(r"[^a-z0-9 -]", "", line.lower()).replace(" ", "-") for line in headings}, anchor


def test_every_import_in_the_guide_works() -> None:
    blocks = [block for text in TEXTS.values() for block in re.findall(r"```python\n(.*?)```", text, flags=re.S)]
    assert len(blocks) >= 2
    for block in blocks:
        imports = [node for node in ast.parse(block).body if isinstance(node, ast.Import | ast.ImportFrom)]
        exec(compile(ast.Module(imports, []), "guide", "exec"), {})


def test_the_readme_has_at_most_180_lines() -> None:
    assert len(TEXTS[ROOT / "README.md"].splitlines()) <= 180


def test_the_default_checkpoint_is_the_measured_one() -> None:
    """Weights, settings and tables are committed together: otherwise the tables would describe another checkpoint."""
    measured = json.loads((ROOT / "assets" / "bench" / "mini.json").read_text(encoding="utf-8"))
    defaults = read_checkpoint_info(MINI).defaults
    assert measured["checkpoint"]["sha256"] == checkpoint_id(MINI)["sha256"]
    assert from_mapping(SampleConfig, measured["settings"]) == defaults
    recommended = json.loads((ROOT / "assets" / "bench" / "settings.json").read_text(encoding="utf-8"))["chosen"]
    assert recommended.items() <= to_mapping(defaults).items()


def test_contributing_names_every_room_and_files_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for path in sorted((ROOT / "videogen").iterdir()):
        if path.is_dir() and path.name != "__pycache__":
            assert f"{path.name}/" in text, path.name
    for name in re.findall(r"`((?:videogen/)?[a-z_]+/[a-z_/]+\.py)`", text):
        assert (ROOT / name).exists() or (ROOT / "videogen" / name).exists(), name


def test_every_table_is_current_with_its_result_file() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert fill_tables(text) == text, f"{page} is not current; run: python tests/bench/readme.py"
    for name in ("line", "mini", "real_overfit", "wan", "packing", "framing"):
        assert (ROOT / "assets" / "bench" / f"{name}.json").is_file()


def test_every_bench_named_on_a_page_is_a_script() -> None:
    benches = get_args(get_type_hints(BenchArgs)["name"])
    pages = [*PAGES, *(ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "assets/LOG.md"))]
    named = {name for page in pages for name in re.findall(r"`videogen bench (\w+)", page.read_text(encoding="utf-8"))}
    assert {"wan", "precision"} <= named <= set(benches)
    assert all((ROOT / "tests" / "bench" / f"{name}.py").is_file() for name in benches)


def test_every_recipe_loads_and_names_its_command() -> None:
    for path in sorted((ROOT / "configs").glob("*.toml")):
        load_toml(TrainConfig, path)
        assert f"python train.py configs/{path.name}" in path.read_text(encoding="utf-8")


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name, (run, _) in COMMANDS.items():
        with pytest.raises(SystemExit) as exit_info:
            run(["--help"])
        assert exit_info.value.code == 0, name
        assert len(capsys.readouterr().out) > 100, name


def test_the_default_checkpoint_is_small_and_names_no_folder_of_its_machine() -> None:
    files = [path for path in MINI.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 90e6
    configs = [path.read_text(encoding="utf-8") for path in files if path.name in ("config.json", "model_index.json")]
    assert len(configs) == 4
    assert not any("_name_or_path" in config for config in configs)


def test_help_summarises_each_command_and_version_prints_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for name, (_, summary) in COMMANDS.items():
        assert re.search(rf"videogen {name} +{re.escape(summary)}", text)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"videogen {__version__}\n"


def test_the_package_runs_as_a_module() -> None:
    process = subprocess.run([sys.executable, "-m", "videogen", "--version"], capture_output=True, text=True, cwd=ROOT)
    assert (process.returncode, process.stdout) == (0, f"videogen {__version__}\n"), process.stderr


def test_tyro_writes_a_completion_script_of_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["--tyro-print-completion", "bash"])
    assert exit_info.value.code in (0, None)  # tyro calls sys.exit(), whose status is 0 as well
    script = capsys.readouterr().out
    assert all(name in script for name in COMMANDS)
    assert "--dry-run" in script


@pytest.mark.parametrize(
    ("words", "completed"),
    [("vid tr", "train"), ("vid sample --ste", "--steps"), ("vid train --run.sk", "--run.skip-bad-steps")],
)
def test_bash_completes_commands_and_their_flags_by_that_script(
    words: str, completed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--tyro-print-completion", "bash"])
    script = tmp_path / "completion.bash"
    script.write_text(capsys.readouterr().out, encoding="utf-8")
    ask = f"source {script}; COMP_WORDS=({words}); COMP_CWORD={len(words.split()) - 1}; _tyro_videogen; echo $COMPREPLY"
    process = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
    assert process.stdout.split() == [completed], process.stderr


def test_a_completion_script_that_needs_a_package_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["--tyro-print-completion", "tcsh"]) == 2
    assert capsys.readouterr().err == (
        "error: --tyro-print-completion tcsh needs shtab: pip install shtab; bash and zsh need nothing\n"
    )
