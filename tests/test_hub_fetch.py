"""A Hub id that is not in the cache is fetched, from a server here that answers the Hub's routes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_server import COMMIT, ID, ROOT, Hub, environment_of, files_of, serve
from videogen.data.files import content_id

FIND = """
import sys
from videogen.models.hub import find_checkpoint
print(find_checkpoint(sys.argv[1], revision=sys.argv[2] or None, local_files_only=sys.argv[3:] == ["local"]))
"""


@pytest.fixture
def hub(checkpoint: Path) -> Iterator[Hub]:
    """A Hub that holds the tiny checkpoint, with a picture and pickled weights that no pipeline reads."""
    others = {"teaser.png": b"picture", "vae/diffusion_pytorch_model.bin": b"pickle"}
    with serve(files_of(checkpoint) | others) as server:
        yield server


def run(hub: Hub, home: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python in an empty folder with a cache of its own and this Hub."""
    (home / "work").mkdir(parents=True, exist_ok=True)
    env = environment_of(hub, home) | environment
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=home / "work", env=env)


def test_a_command_fetches_an_id_once_and_says_its_size_first(hub: Hub, tmp_path: Path, checkpoint: Path) -> None:
    words = [str(ROOT / "sample.py"), "a red circle", "--model", ID, "--steps", "1", "--device", "cpu"]
    tried = run(hub, tmp_path, *words, "--dry-run")
    assert (tried.returncode, hub.paths) == (2, [])
    assert f"hf download {ID}" in tried.stderr
    first = run(hub, tmp_path, *words, "--out", "first.mp4")
    assert first.returncode == 0, first.stderr
    wanted = {name: content for name, content in hub.files.items() if not name.endswith((".png", ".bin"))}
    size = sum(map(len, wanted.values())) / 1e6
    assert f"fetching {ID}: {len(wanted)} files, {size:.1f} MB" in first.stderr
    (snapshot,) = (tmp_path / "hf" / "hub").glob(f"models--*/snapshots/{COMMIT}")
    assert {path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()} == set(wanted)
    assert content_id(snapshot) == content_id(checkpoint)
    hub.paths.clear()
    again = run(hub, tmp_path, *words, "--out", "again.mp4")
    assert (again.returncode, hub.paths) == (0, [])
    assert "fetching" not in again.stderr
    clips = [(tmp_path / "work" / name).read_bytes() for name in ("first.mp4", "again.mp4")]
    assert clips[0] == clips[1]


def test_what_was_interrupted_is_fetched_again(hub: Hub, tmp_path: Path) -> None:
    hub.is_broken = True
    broken = run(hub, tmp_path, "-c", FIND, ID, COMMIT)
    assert "cannot be fetched" in broken.stderr
    offline = run(hub, tmp_path, "-c", FIND, ID, COMMIT, HF_HUB_OFFLINE="1")
    assert f"{ID} is neither a folder nor in the Hugging Face cache; " in offline.stderr, offline.stdout
    hub.is_broken = False
    whole = run(hub, tmp_path, "-c", FIND, ID, COMMIT)
    assert Path(whole.stdout.strip()).name == COMMIT, whole.stderr
    by_tag = run(hub, tmp_path, "-c", FIND, f"{ID}@v1", "")
    assert run(hub, tmp_path, "-c", FIND, ID, "v1", HF_HUB_OFFLINE="1").stdout == by_tag.stdout == whole.stdout


@pytest.mark.parametrize("case", ["environment", "argument", "neighbour"])
def test_nothing_is_fetched_where_that_is_forbidden_or_a_folder_was_meant(hub: Hub, tmp_path: Path, case: str) -> None:
    if case == "neighbour":
        (tmp_path / "work" / ID).parent.mkdir(parents=True)
    environment = {"HF_HUB_OFFLINE": "1"} if case == "environment" else {}
    refused = run(hub, tmp_path, "-c", FIND, ID, "", *(["local"] if case == "argument" else []), **environment)
    assert f"bring it: hf download {ID}" in refused.stderr
    assert hub.paths == []


def test_a_repository_that_is_missing_or_no_checkpoint_is_refused_in_a_sentence(hub: Hub, tmp_path: Path) -> None:
    sample = str(ROOT / "sample.py")
    missing = run(hub, tmp_path, sample, "a red circle", "--model", "someone/other")
    assert missing.returncode == 2
    assert (
        "someone/other is neither a folder nor in the Hugging Face cache, and cannot be fetched: 404" in missing.stderr
    )
    assert "Traceback" not in missing.stderr
    del hub.files["model_index.json"]
    other = run(hub, tmp_path, sample, "a red circle", "--model", ID)
    assert other.returncode == 2
    assert "is no checkpoint folder: it has no model_index.json" in other.stderr
    assert not any("/resolve/" in path for path in hub.paths)
