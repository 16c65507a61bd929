"""The rooms of CONTRIBUTING.md: imports go down the floors, files are short, and importing is cheap."""

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
    {"__main__", "comfy"},
    {"cli"},
    {"training", "sweep"},
    {"sampling"},
    {"models", "toybox", "doctor"},
    {"data"},
    {"packing"},
    {"config", "intervals", "interruption"},
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(PACKAGE.rglob("*.py"))
LIMIT = 400


def module_name(path: Path) -> str:
    """Name a file's module: models/dit.py -> videogen.models.dit, toybox/__init__.py -> videogen.toybox."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in FILES}


def imported_modules(path: Path) -> set[str]:
    """List the modules of the package that a file imports anywhere, for type checkers alone as well."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: an import must name the package in full"
            of_module = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            names |= {full if full in MODULES else str(node.module) for full in of_module.values()}
    return {name for name in names if name in MODULES} - {module_name(path), "videogen"}


def room_of(module: str) -> str:
    """Name a module's room: videogen.toybox.judge.report -> toybox."""
    return module.split(".")[1]


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"videogen"}))
def test_a_module_imports_from_its_own_room_or_a_lower_floor(module: str) -> None:
    assert room_of(module) in FLOOR_OF, f"{room_of(module)} has no floor yet: add it to CONTRIBUTING.md and here"
    others = {other for other in imported_modules(MODULES[module]) if room_of(other) != room_of(module)}
    assert {other for other in others if FLOOR_OF[room_of(other)] <= FLOOR_OF[room_of(module)]} == set()


def test_no_imports_form_a_circle() -> None:
    graph = {module: imported_modules(path) for module, path in MODULES.items() if module != "videogen"}
    assert set(TopologicalSorter(graph).static_order()) == set(graph)  # a CycleError names the circle


def test_diffusers_finds_the_classes_of_a_saved_checkpoint_by_their_own_modules() -> None:
    for module, name in CLASSES.values():
        assert getattr(import_module(module), name).__module__ == module
        # diffusers writes the folder's name in place of the module where that is the name of a pipeline of its own.
        assert not hasattr(diffusers.pipelines, module.split(".")[-2])


def test_video_libraries_are_imported_only_where_files_are_read_and_written() -> None:
    libraries = {"av", "decord", "imageio"}
    importers = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            importers |= {path.name for name in names if name.split(".")[0] in libraries}
    files = {"video_io.py", "video_decode.py", "video_encode.py", "judgement.py", "frame_findings.py", "mend_video.py"}
    assert importers == files


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_file_is_over_400_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LIMIT


def test_no_file_has_a_name_that_says_nothing() -> None:
    assert not {"utils", "helpers", "misc", "common"} & {path.stem for path in FILES}


def test_every_name_in_all_can_be_imported() -> None:
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
        ("videogen.doctor.examine", {"torch", "diffusers", "transformers"}),
    ],
)
def test_importing_a_light_module_imports_no_heavy_library(module: str, unwanted: set[str]) -> None:
    program = f"import sys, {module}; print(*({unwanted!r} & set(sys.modules)))"
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert process.stdout.split() == []
    assert process.stderr == ""
