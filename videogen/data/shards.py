"""Keep many small sets of tensors in a few large files, with an index of where each of them lies.

    key, tensors  ->  *.shard: records, end to end; index.sqlite: key -> shard, place  ->  tensors

A record holds its key and the hash of its content, so what a kill or a power cut leaves of one is noticed when it is
read, and an index that is missing or damaged is made again from the shards. Each process appends to a shard of its own;
any number of them may read and write at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import sqlite3
import struct
from collections.abc import Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from videogen.data.files import WriteError, atomic_file, error_reason

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)
INDEX = "index.sqlite"
SUFFIX = ".shard"
HEADER = struct.Struct("<8s16s32sQ")  # MAGIC, key, SHA-256 of the content, bytes of the content
MAGIC = b"videogen"
KEY_BYTES = 16
MAX_SHARD_BYTES = 2**30  # a shard that is longer is not appended to
TABLE = "CREATE TABLE IF NOT EXISTS records (key BLOB PRIMARY KEY, shard INTEGER, start INTEGER) WITHOUT ROWID"
INSERT = "INSERT OR REPLACE INTO records VALUES (?, ?, ?)"


class Record(NamedTuple):
    """Where a set of tensors lies: a shard's number, and the place in it where its header begins."""

    key: bytes
    shard: int
    start: int


class ShardStore:
    """Tensors on disk by keys of KEY_BYTES bytes; light enough to be pickled for a worker process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = 0
        self.database: sqlite3.Connection | None = None  # each process opens its own, and its own shard
        self.shard: tuple[int, FileIO] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def __getstate__(self) -> dict[str, object]:
        """Pickle the folder alone."""
        return {"folder": self.folder, "process": 0, "database": None, "shard": None}

    def load(self, key: bytes) -> dict[str, Tensor] | None:
        """Load the tensors of a key; None where there are none, or where they are damaged."""
        from safetensors.torch import load

        found = self.execute("SELECT shard, start FROM records WHERE key = ?", (key,))
        content = self.read(Record(key, *found[0])) if found else None
        return None if content is None else load(content)

    def save(self, key: bytes, tensors: Mapping[str, Tensor]) -> None:
        """Append the tensors of a key to this process's shard; a full disk raises a WriteError.

        They need not be on disk at once, since what a power cut leaves of them is noticed when they are read.
        """
        from safetensors.torch import save

        content = save({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()})
        record = HEADER.pack(MAGIC, key, hashlib.sha256(content).digest(), len(content)) + content
        number, file = self.open_shard()
        start = file.tell()
        try:
            if file.write(record) != len(record):
                raise OSError("no space left on device")
        except OSError as error:
            self.shard = None  # what comes after half a record would not be found by a search through the shard
            raise WriteError(self.path(number), error_reason(error)) from error
        self.execute(INSERT, (key, number, start))
        if file.tell() > MAX_SHARD_BYTES:
            self.shard = None

    def records(self) -> Iterator[Record]:
        """Yield all records in the order in which they lie on disk."""
        yield from (Record(*row) for row in self.execute("SELECT key, shard, start FROM records ORDER BY shard, start"))

    def read(self, record: Record) -> bytes | None:
        """Read a record's content; None where it is not as it was written."""
        path = self.path(record.shard)
        if not path.is_file():  # opening a fifo would wait for its writer
            return None
        with path.open("rb") as file:
            file.seek(record.start)
            header = file.read(HEADER.size)
            if len(header) < HEADER.size:
                return None
            magic, key, digest, size = HEADER.unpack(header)
            if (magic, key) != (MAGIC, record.key) or size > path.stat().st_size:
                return None
            content = file.read(size)
        return content if hashlib.sha256(content).digest() == digest else None

    def path(self, shard: int) -> Path:
        """Name the file of a shard."""
        return self.folder / f"{shard:016x}{SUFFIX}"

    def open_shard(self) -> tuple[int, FileIO]:
        """Open this process's shard for appending: a new one, since what another's last record lacks is not known."""
        self.adopt()
        if self.shard is None:
            number = secrets.randbits(62)
            self.shard = number, FileIO(self.path(number), "x")
        return self.shard

    def adopt(self) -> None:
        """Leave connection and shard to the process that opened them, where this is one that was forked from it."""
        if self.process != os.getpid():
            self.process, self.database, self.shard = os.getpid(), None, None

    def execute(self, statement: str, values: Sequence[object] = ()) -> list[tuple]:
        """Execute a statement on the index, which is made from the shards where it is missing or damaged."""
        self.adopt()
        path = self.folder / INDEX
        try:
            if self.database is None:
                if not path.exists():
                    self.rebuild(overwrite=False)
                elif not path.stat().st_size:
                    raise sqlite3.DatabaseError("it is empty")
                self.database = connect(path)
            return self.database.execute(statement, values).fetchall()
        except sqlite3.DatabaseError as error:
            logger.warning("%s is damaged (%s), and is made again from the files beside it", path, error)
        try:
            self.rebuild(overwrite=True)
            self.database = connect(path)
            return self.database.execute(statement, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise WriteError(path, str(error)) from error

    def rebuild(self, *, overwrite: bool) -> None:
        """Make the index from the headers of all records; without overwrite one that another process made stays."""
        path = self.folder / INDEX
        if overwrite and not path.is_file():
            path.unlink(missing_ok=True)  # what is no file is no index of ours, and is never replaced by a writer
        with contextlib.suppress(FileExistsError), atomic_file(path, overwrite=overwrite, durable=False) as part:
            with contextlib.closing(connect(part)) as database:
                database.execute("BEGIN")
                for shard in sorted(self.folder.glob(f"*{SUFFIX}")):
                    if shard.is_file():
                        database.executemany(INSERT, scan(shard))
                database.execute("COMMIT")
            path.with_name(f"{INDEX}-journal").unlink(missing_ok=True)  # of the index before: it would undo this one


def connect(path: Path) -> sqlite3.Connection:
    """Open an index, in which every change is complete at once; a sqlite3.DatabaseError where the file is none."""
    if path.exists() and not path.is_file():
        raise sqlite3.DatabaseError("it is no regular file")
    database = sqlite3.connect(path, timeout=600, isolation_level=None)
    database.execute("PRAGMA synchronous = OFF")  # what a power cut leaves of it is made again from the shards
    database.execute(TABLE)
    database.execute("SELECT * FROM records LIMIT 1").fetchall()
    return database


def scan(path: Path) -> Iterator[Record]:
    """Yield the records of a shard, up to the first that is not whole."""
    number, size, start = int(path.stem, 16), path.stat().st_size, 0
    with path.open("rb") as file:
        while len(header := file.read(HEADER.size)) == HEADER.size:
            magic, key, _, num_bytes = HEADER.unpack(header)
            end = start + HEADER.size + num_bytes
            if magic != MAGIC or end > size:
                return
            yield Record(key, number, start)
            file.seek(start := end)
