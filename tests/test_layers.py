"""The floors of DESIGN.md: what imports what, how long files are, and that importing costs nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import videogen

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "videogen"
FLOORS = {
    0: "ahead patches plain config caching progress storage latents video_io packing attention sampling known flags "
    "clusters interruption video_decode estimate wan_conv wan_folder scaling hub",
    1: "text vae dit dit_layers data flow vae_loss toybox wan_layers wan_vae wan_image checkpoint widening",
    2: "drawn pipeline lora parts memory plan training stages vae_stage dit_stage steps",
    3: "generate orders prompts provenance cli sweep doctor judging",
}
FLOOR_OF = {name: floor for floor, names in FLOORS.items() for name in names.split()}
FILES = sorted(PACKAGE.rglob("*.py"))
LIMIT = 400


def room(path: Path) -> str:
    """videogen/dit.py -> dit, videogen/toybox/render.py -> toybox."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """The rooms that a file imports from, anywhere in it, but for type checkers alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = []
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports name the package in full"
            from_package = node.module == "videogen"
            found |= {f"videogen.{alias.name}" for alias in node.names} if from_package else {str(node.module)}
    return {name.split(".")[1] for name in found if name.startswith("videogen.")} - {"__version__"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_file_imports_from_its_own_floor_or_lower(path: Path) -> None:
    if path == PACKAGE / "__init__.py":
        assert imports(path) == set()
        return
    assert room(path) in FLOOR_OF, f"{path.name} has no floor yet: add it to DESIGN.md and here"
    higher = {other for other in imports(path) if FLOOR_OF[other] > FLOOR_OF[room(path)]}
    assert higher == set()


def test_there_are_no_circles() -> None:
    graph: dict[str, set[str]] = {}
    for path in FILES:
        graph[room(path)] = graph.get(room(path), set()) | imports(path) - {room(path)}
    done: set[str] = set()
    while rest := {name for name in graph if name not in done and graph[name] <= done}:
        done |= rest
    assert {name: graph[name] - done for name in graph if name not in done} == {}


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
        ("videogen.config", {"torch", "diffusers", "transformers", "numpy"}),
        ("videogen.cli", {"torch", "diffusers", "transformers"}),
    ],
)
def test_importing_costs_nothing(module: str, unwanted: set[str]) -> None:
    program = f"import sys, {module}; print(*({unwanted!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []
    assert done.stderr == ""
