"""A Hub id that is not in the cache is fetched, from a server here that answers the Hub's routes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from videogen.data.files import content_id
from videogen.models.hub import MAY_FETCH

ROOT = Path(__file__).parent.parent
ID, COMMIT = "someone/tiny-model", "0123456789abcdef" * 2 + "01234567"
FIND = """
import sys
from videogen.models.hub import find_checkpoint
print(find_checkpoint(sys.argv[1], revision=sys.argv[2] or None, local_files_only=sys.argv[3:] == ["local"]))
"""


class Hub(ThreadingHTTPServer):
    """Serve one repository at one commit; a broken one drops the connection in the middle of its weights."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Routes)
        self.files, self.paths, self.is_broken = files, list[str](), False


class Routes(BaseHTTPRequestHandler):
    """Answer model_info, the list of files and the files, as the Hub does."""

    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, files = unquote(urlsplit(self.path).path), self.server.files
        self.server.paths.append(path)
        if path in (f"/api/models/{ID}", *(f"/api/models/{ID}/revision/{name}" for name in ("main", "v1", COMMIT))):
            siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
            self.answer(json.dumps({"id": ID, "sha": COMMIT, "siblings": siblings}).encode())
        elif path == f"/api/models/{ID}/tree/{COMMIT}":
            tree = [
                {"type": "file", "path": name, "size": len(files[name]), "oid": etag(files[name])} for name in files
            ]
            self.answer(json.dumps(tree).encode())
        elif (name := path.removeprefix(f"/{ID}/resolve/{COMMIT}/")) in files:
            self.answer(files[name], broken=self.server.is_broken and name.startswith("vae/"))
        else:
            self.answer(b"", status=404, headers={"X-Error-Code": "RepoNotFound"})

    def answer(
        self, content: bytes, *, status: int = 200, headers: dict[str, str] | None = None, broken: bool = False
    ) -> None:
        self.send_response(status)
        about = {"Content-Length": str(len(content)), "ETag": f'"{etag(content)}"', "X-Repo-Commit": COMMIT}
        for name, value in (about | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[: len(content) // 2] if broken else content)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


def etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def hub(checkpoint: Path) -> Iterator[Hub]:
    """A Hub that holds the tiny checkpoint, with a picture and pickled weights that no pipeline reads."""
    files = {
        path.relative_to(checkpoint).as_posix(): path.read_bytes()
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file()
    }
    with Hub(files | {"teaser.png": b"picture", "vae/diffusion_pytorch_model.bin": b"pickle"}) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def run(hub: Hub, home: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python in an empty folder with a cache of its own and this Hub."""
    kept = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", MAY_FETCH)}
    own = {"HF_HOME": str(home / "hf"), "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "NO_PROXY": "127.0.0.1"}
    (home / "work").mkdir(parents=True, exist_ok=True)
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, cwd=home / "work",
        env=kept | own | {"PYTHONPATH": str(ROOT)} | environment,
    )  # fmt: skip


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
