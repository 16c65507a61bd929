"""The rooms of DESIGN.md: what imports what, how long files are, and that importing costs nothing."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import diffusers
import pytest

import videogen
from videogen.models.checkpoint_config import CLASSES

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "videogen"
FLOORS = (  # from the top floor down; a file imports its own room or a lower floor
    {"cli"},
    {"training", "sweep"},
    {"sampling"},
    {"models", "toybox"},
    {"data"},
    {"packing"},
    {"config", "intervals", "interruption"},
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(PACKAGE.rglob("*.py"))
LIMIT = 400


def module_name(path: Path) -> str:
    """videogen/models/dit.py -> videogen.models.dit, videogen/toybox/__init__.py -> videogen.toybox."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in FILES}


def imports(path: Path) -> set[str]:
    """The modules of the package that a file imports, anywhere in it, for type checkers alone as well."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports name the package in full"
            of_module = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            names |= {full if full in MODULES else str(node.module) for full in of_module.values()}
    return {name for name in names if name in MODULES} - {module_name(path), "videogen"}


def room(module: str) -> str:
    """videogen.toybox.judge.report -> toybox."""
    return module.split(".")[1]


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"videogen"}))
def test_a_file_imports_from_its_own_room_or_a_lower_floor(module: str) -> None:
    assert room(module) in FLOOR_OF, f"{room(module)} has no floor yet: add it to DESIGN.md and here"
    others = {other for other in imports(MODULES[module]) if room(other) != room(module)}
    assert {other for other in others if FLOOR_OF[room(other)] <= FLOOR_OF[room(module)]} == set()


def test_no_file_imports_itself_by_way_of_others() -> None:
    graph = {module: imports(path) for module, path in MODULES.items() if module != "videogen"}
    assert set(TopologicalSorter(graph).static_order()) == set(graph)  # a CycleError names the circle


def test_diffusers_finds_the_classes_of_a_saved_checkpoint_by_their_own_modules() -> None:
    for module, name in CLASSES.values():
        assert getattr(import_module(module), name).__module__ == module
        # diffusers writes the folder's name in place of the module where that is the name of a pipeline of its own.
        assert not hasattr(diffusers.pipelines, module.split(".")[-2])


def test_only_two_files_know_the_video_libraries() -> None:
    libraries = {"av", "decord", "imageio", "imageio_ffmpeg"}
    knowing = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            knowing |= {path.name for name in names if name.split(".")[0] in libraries}
    assert knowing == {"video_io.py", "video_decode.py"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_file_is_over_400_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LIMIT


def test_no_file_is_a_drawer() -> None:
    assert not {"utils", "helpers", "misc", "common"} & {path.stem for path in FILES}


def test_all_is_what_can_be_imported() -> None:
    assert sorted(videogen.__all__) == list(videogen.__all__)
    for name in videogen.__all__:
        assert getattr(videogen, name).__name__ == name
    assert set(videogen.__all__) == set(videogen._HOMES)
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    typed = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert set(videogen.__all__) <= typed
    with pytest.raises(AttributeError, match="module 'videogen' has no attribute 'VideoDit'"):
        videogen.VideoDit  # noqa: B018


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("videogen", {"torch", "diffusers", "transformers", "numpy"}),
        ("videogen.config.train", {"torch", "diffusers", "transformers", "numpy"}),
        ("videogen.cli.main", {"torch", "diffusers", "transformers"}),
        ("videogen.packing.patch_schedule", {"torch", "diffusers", "transformers", "numpy"}),
        ("videogen.models.checkpoint_config", {"torch", "diffusers", "transformers"}),
        ("videogen.models.hub", {"torch", "diffusers", "transformers"}),
        ("videogen.sampling.lora_files", {"torch", "diffusers", "transformers"}),
        ("videogen.sampling.cost", {"torch", "diffusers", "transformers"}),
    ],
)
def test_importing_costs_nothing(module: str, unwanted: set[str]) -> None:
    program = f"import sys, {module}; print(*({unwanted!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []
    assert done.stderr == ""
