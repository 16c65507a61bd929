"""Serve a repository as the Hugging Face Hub does, on 127.0.0.1: what is fetched of it, and what is pushed to it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from videogen.models.hub import MAY_FETCH

ROOT = Path(__file__).parent.parent
ID, COMMIT = "someone/tiny-model", "0123456789abcdef" * 2 + "01234567"


class Hub(ThreadingHTTPServer):
    """Serve one repository at one commit; a broken one drops the connection in the middle of its weights."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Routes)
        self.files, self.paths, self.is_broken = files, list[str](), False
        self.uploads = dict[str, bytes]()  # large files by their SHA-256, before a commit names them
        self.created = list[dict[str, object]]()

    @property
    def endpoint(self) -> str:
        """The address that stands for the Hub's."""
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def commit_url(self) -> str:
        """The address of the commit that a push makes."""
        return f"{self.endpoint}/{ID}/commit/{COMMIT}"


class Routes(BaseHTTPRequestHandler):
    """Answer model_info, the list of files and the files, and take a commit with its uploads, as the Hub does."""

    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, files = unquote(urlsplit(self.path).path), self.server.files
        self.server.paths.append(path)
        if path in (f"/api/models/{ID}", *(f"/api/models/{ID}/revision/{name}" for name in ("main", "v1", COMMIT))):
            siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
            self.answer({"id": ID, "sha": COMMIT, "siblings": siblings})
        elif path == f"/api/models/{ID}/tree/{COMMIT}":
            self.answer(
                [{"type": "file", "path": name, "size": len(files[name]), "oid": etag(files[name])} for name in files]
            )
        elif (name := path.removeprefix(f"/{ID}/resolve/{COMMIT}/")) in files:
            self.answer(files[name], broken=self.server.is_broken and name.startswith("vae/"))
        else:
            self.answer(b"", status=404, headers={"X-Error-Code": "RepoNotFound"})

    def do_POST(self) -> None:
        path, body = unquote(urlsplit(self.path).path), self.rfile.read(int(self.headers["Content-Length"]))
        self.server.paths.append(path)
        if path == "/api/repos/create":
            self.server.created.append(asked := json.loads(body))
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            self.answer({"url": f"{self.server.endpoint}/{name}", "name": name})
        elif path == "/api/validate-yaml":
            self.answer({"warnings": [], "errors": []})
        elif path == f"/api/models/{ID}/preupload/main":
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": name, "uploadMode": "lfs" if is_large(name) else "regular"} for name in names]
            self.answer({"files": [{"shouldIgnore": False, **mode} for mode in modes]})
        elif path == f"/{ID}.git/info/lfs/objects/batch":
            self.answer({"transfer": "basic", "objects": [self.upload_of(it) for it in json.loads(body)["objects"]]})
        elif path == f"/api/models/{ID}/commit/main":
            self.take_commit([json.loads(line) for line in body.splitlines()])
            self.answer({"success": True, "commitOid": COMMIT, "commitUrl": self.server.commit_url})
        else:
            self.answer(b"", status=404)

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.uploads[hashlib.sha256(content).hexdigest()] = content
        self.answer(b"")

    def upload_of(self, file: dict[str, object]) -> dict[str, object]:
        href = f"{self.server.endpoint}/upload/{file['oid']}"
        return {**file, "actions": {"upload": {"href": href}}}

    def take_commit(self, lines: list[dict[str, dict[str, str]]]) -> None:
        """Put the files of a commit in place: small ones are in it, of large ones it has the hash."""
        for line in lines:
            file, kind = line["value"], str(line["key"])
            if kind == "file":
                self.server.files[file["path"]] = base64.b64decode(file["content"])
            elif kind == "lfsFile":
                self.server.files[file["path"]] = self.server.uploads[file["oid"]]

    def answer(
        self, content: object, *, status: int = 200, headers: dict[str, str] | None = None, broken: bool = False
    ) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        about = {"Content-Length": str(len(data)), "ETag": f'"{etag(data)}"', "X-Repo-Commit": COMMIT}
        about |= {} if isinstance(content, bytes) else {"Content-Type": "application/json"}
        for name, value in (about | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if broken else data)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


def is_large(name: str) -> bool:
    """True for the files that the Hub keeps outside of git."""
    return name.endswith(".safetensors")


def etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def files_of(folder: Path) -> dict[str, bytes]:
    """Read all files of a folder by their paths in it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@contextmanager
def serve(files: dict[str, bytes]) -> Iterator[Hub]:
    """Serve files as a repository while the block runs."""
    with Hub(files) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


def environment_of(hub: Hub, home: Path) -> dict[str, str]:
    """Make the environment of a process that has a cache of its own and this Hub."""
    kept = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", MAY_FETCH)}
    own = {"HF_HOME": str(home / "hf"), "HF_ENDPOINT": hub.endpoint, "NO_PROXY": "127.0.0.1", "HF_TOKEN": "hf_test"}
    return kept | own | {"PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
