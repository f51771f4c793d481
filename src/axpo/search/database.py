"""SQLite for search: index files that appear whole or not at all, and queries off the event loop.

An index file carries `FORMAT` and a row of facts, among them a digest of its content.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TypeVar

from axpo.errors import MissingError, SearchFault, UserError
from axpo.folder import writing

FORMAT = 1
"""Version of the index files' tables; another one has to be built again."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Facts:
    """What an index holds: `kind` is "corpus" or "gallery", `digest` (32 hex digits) names the
    content."""

    kind: str
    digest: str
    entries: int


@dataclass(frozen=True, slots=True)
class BuiltIndex:
    """A finished index: what it holds, the size of its file in bytes, and the seconds it took."""

    facts: Facts
    size: int
    seconds: float


class NewIndex:
    """An index that is being built on `connection`: its entries are numbered and digested."""

    def __init__(self, kind: str, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.entries = 0
        self._kind = kind
        self._digest = hashlib.sha256()

    def add(self, table: str, *row: str | bytes | None) -> None:
        """Insert an entry into `table`, its number first."""
        self.entries += 1
        said = [part.hex() if isinstance(part, bytes) else part for part in row]
        self._digest.update(json.dumps(said).encode())
        marks = ", ".join("?" * (1 + len(row)))
        self.connection.execute(f"INSERT INTO {table} VALUES ({marks})", (self.entries, *row))

    @property
    def facts(self) -> Facts:
        """What the index holds so far."""
        return Facts(self._kind, self._digest.hexdigest()[:32], self.entries)


@contextmanager
def new_index(out: Path, kind: str) -> Iterator[NewIndex]:
    """An empty index that replaces the file `out` when the block ends without an error.

    Raises `UserError` where `out` is no index of this kind, or is being built. The next build
    overwrites the remains of a killed one.
    """
    if out.exists():
        read_facts(out, kind, any_format=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.part")
    with part.open("ab") as claim:
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = part.stat().st_ino == os.fstat(claim.fileno()).st_ino
        except (BlockingIOError, FileNotFoundError):
            mine = False
        if not mine:
            raise UserError(f"{out} is being built by another process")
        try:
            claim.truncate(0)
            with writing(out), closing(sqlite3.connect(part)) as connection:
                connection.executescript(
                    "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;"
                    "CREATE TABLE facts (kind TEXT, digest TEXT, entries INTEGER);"
                )
                index = NewIndex(kind, connection)
                yield index
                connection.execute("INSERT INTO facts VALUES (?, ?, ?)", astuple(index.facts))
                connection.execute(f"PRAGMA user_version = {FORMAT}")
                connection.commit()
            os.fsync(claim.fileno())
            part.replace(out)
        finally:
            part.unlink(missing_ok=True)


def open_index(path: Path) -> sqlite3.Connection:
    """A connection that cannot write; it may be used and closed from any thread."""
    frozen = "" if os.access(path.parent, os.W_OK) else "&immutable=1"  # no -shm can be made there
    uri = f"{path.resolve().as_uri()}?mode=ro{frozen}"
    return sqlite3.connect(uri, uri=True, check_same_thread=False)


def read_facts(path: Path, kind: str, any_format: bool = False) -> Facts:
    """What the index at `path` holds; raises `UserError` where it is not one of `kind`."""
    command = f"axpo index SOURCE --out {path}"
    if not path.is_file():
        raise MissingError(f"no {kind} index at {path}; build one with `{command}`")
    try:
        with closing(open_index(path)) as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            facts = Facts(*connection.execute("SELECT * FROM facts").fetchone())
    except (sqlite3.Error, TypeError):
        raise UserError(f"{path} is not an index that `axpo index` made") from None
    if version != FORMAT and not any_format:
        raise UserError(
            f"{path} has format {version}, expected {FORMAT}: build it again with `{command}`"
        )
    if facts.kind != kind:
        raise UserError(f"{path} is a {facts.kind} index, expected a {kind} index")
    return facts


class Database:
    """Runs queries of one file in `threads` threads, each query on a connection of its own.

    Threads and connections are made by the first query, also after a `close`.
    """

    def __init__(self, path: Path, connect: Callable[[], sqlite3.Connection], threads: int) -> None:
        self._path = path
        self._connect = connect
        self._count = threads
        self._threads: ThreadPoolExecutor | None = None
        self._idle: list[sqlite3.Connection] = []

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """The answer of `work`; raises `SearchFault` for an error of the database, and `DiskError`
        where the disk is full."""
        if self._threads is None:
            name = f"search-{self._path.name}"
            self._threads = ThreadPoolExecutor(self._count, thread_name_prefix=name)
        loop = asyncio.get_running_loop()
        try:
            with writing(self._path):
                return await loop.run_in_executor(self._threads, self._work, work)
        except sqlite3.Error as error:
            raise SearchFault(f"{self._path}: {error}") from error

    def close(self) -> None:
        """Drop waiting queries, wait for the running ones and free threads and connections."""
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(cancel_futures=True)
        while self._idle:
            self._idle.pop().close()

    def _work(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._connect()
        try:
            return work(connection)
        finally:
            self._idle.append(connection)
