"""Index files of search, which appear whole or not at all.

An index file carries `FORMAT` and a row of facts, among them a digest of its content.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path

from axpo.errors import MissingError, UserError
from axpo.folder import writing
from axpo.recorded.database import open_index

FORMAT = 1
"""Version of the index files' tables; another one has to be built again."""


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
