"""Keep judgements on disk, so that a file is looked at once, by training and by the doctor, and again when it changes.

path, size and time of a file  ->  its Judgement, or none
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from videogen.data.findings import Finding
from videogen.data.judgement import Judgement, judge_header
from videogen.data.video_io import VideoInfo

logger = logging.getLogger(__name__)
VERSION = 2  # of what is judged and how; another one judges every file again
COMMIT_SECONDS = 2.0  # as much is judged again after a kill
PASSING = {"unreadable", "missing", "no_file"}  # kinds that may change without the file's time
Judge = Callable[[Path], Judgement]


def cache_file() -> Path:
    """Return the file of the cache, in the user's folder for caches."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "videogen" / "judgements.sqlite"


class JudgementCache:
    """Judgements by file; several threads and processes may share it. One that cannot be written is left out."""

    def __init__(self, database: sqlite3.Connection | None) -> None:
        self.database, self.lock, self.last_commit = database, threading.Lock(), time.monotonic()
        self.num_found = 0

    def judge(self, path: Path, *, deep: Judge | None = None) -> Judgement:
        """Judge a file by its header, or deeply where a deep judge is given; a deep judgement known serves for both."""
        try:
            stat = path.stat()
        except OSError:
            return judge_header(path)
        row = (os.fsencode(path.absolute()), stat.st_size, stat.st_mtime_ns, VERSION)
        if (judgement := self.find(row, is_deep=deep is not None)) is not None:
            return judgement
        judgement = (deep or judge_header)(path)
        if not PASSING & {finding.kind for finding in judgement.findings}:
            self.keep(row, judgement, is_deep=deep is not None)
        return judgement

    def find(self, row: tuple[bytes, int, int, int], *, is_deep: bool) -> Judgement | None:
        """Return the judgement of a file in this state, a deep one first."""
        if self.database is None:
            return None
        query = "SELECT judgement FROM judgements WHERE path=? AND size=? AND time=? AND version=? AND deep>=?"
        with self.lock, contextlib.suppress(sqlite3.Error, ValueError, KeyError, TypeError):
            found = self.database.execute(f"{query} ORDER BY deep DESC", (*row, is_deep)).fetchone()
            if found is not None:
                self.num_found += 1
                return from_json(found[0])
        return None

    def keep(self, row: tuple[bytes, int, int, int], judgement: Judgement, *, is_deep: bool) -> None:
        """Store the judgement of a file in place of that of an earlier state."""
        if self.database is None:
            return
        with self.lock:
            try:
                values = (*row, is_deep, to_json(judgement))
                self.database.execute("INSERT OR REPLACE INTO judgements VALUES (?, ?, ?, ?, ?, ?)", values)
                if time.monotonic() - self.last_commit > COMMIT_SECONDS:
                    self.database.commit()
                    self.last_commit = time.monotonic()
            except sqlite3.Error as error:
                logger.warning("judgements are not kept: %s", error)
                self.database = None


@contextmanager
def open_judgements(path: Path | None = None) -> Iterator[JudgementCache]:
    """Open the cache of judgements; what is in it at the end, or at an interruption, is kept."""
    database: sqlite3.Connection | None = None
    path = path or cache_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(path, timeout=30, check_same_thread=False)
        columns = "path BLOB, size INTEGER, time INTEGER, version INTEGER, deep INTEGER, judgement TEXT"
        database.execute(f"CREATE TABLE IF NOT EXISTS judgements ({columns}, PRIMARY KEY (path, deep))")
    except (OSError, sqlite3.Error) as error:
        logger.warning("judgements are not kept in %s: %s", path, error)
        database = None
    cache = JudgementCache(database)
    try:
        yield cache
    finally:
        if database is not None:
            with contextlib.suppress(sqlite3.Error):
                database.commit()
            database.close()


def to_json(judgement: Judgement) -> str:
    """Write a judgement as JSON."""
    fingerprint = base64.b64encode(judgement.fingerprint).decode("ascii")
    return json.dumps([judgement.info, judgement.facts, judgement.findings, fingerprint])


def from_json(text: str) -> Judgement:
    """Read a judgement; a KeyError where it has a kind of finding that is not known."""
    info, facts, findings, fingerprint = json.loads(text)
    judgement = Judgement(
        info and VideoInfo(*info), facts, tuple(Finding(*f) for f in findings), base64.b64decode(fingerprint)
    )
    return judgement.with_findings()
