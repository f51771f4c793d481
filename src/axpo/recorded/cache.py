"""Answers of a source on disk: recorded once, then replayed by any number of processes.

The first recorded answer of a question stays, so that every run over the file sees the same. Equal
questions under way at once make one call. It goes on when its asker is cancelled, because it is
paid for, and closing waits a moment for its answer. The count of paid calls is in the file too,
and holds over restarts and processes.
The file is in WAL mode, which network file systems do not support. If it is deleted or replaced
while it is in use, the run ends, because later answers would be lost.

In a replay, a question without a record is answered like one for which nothing is found, and it is
counted (`not_recorded`). If that were a fault, a policy could leave the statistics by asking a new
question.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import sqlite3
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import TypeAdapter, ValidationError

from axpo.errors import BudgetSpent, NotRecordedError, SourceFault, UserError
from axpo.recorded.database import Database, open_index

FORMAT = 1
"""The version of the file's tables and of the form of an answer."""
BUSY_SECONDS = 30.0
"""How long a process waits while another one writes."""
THREADS = 2
CLOSE_SECONDS = 5.0
"""How long closing waits for answers that are already paid for."""

Mode = Literal["record", "replay"]
T = TypeVar("T")

_TABLES = """
CREATE TABLE IF NOT EXISTS answers (
    backend TEXT, kind TEXT, question TEXT, options TEXT, answer TEXT,
    PRIMARY KEY (backend, kind, question, options)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS spent (calls INTEGER);
INSERT INTO spent SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM spent);
"""
_FIND = """
SELECT answer FROM answers WHERE backend = ? AND kind = ? AND question = ? AND options = ?
"""
_REPLACE = """
UPDATE answers SET answer = ?
WHERE backend = ? AND kind = ? AND question = ? AND options = ? AND answer = ?
"""
_SPEND = "UPDATE spent SET calls = calls + 1 WHERE ? IS NULL OR calls < ?"


class Key(NamedTuple):
    """The question that an answer belongs to, normalised; `options` is JSON."""

    backend: str
    kind: str
    question: str
    options: str


class Answered(NamedTuple):
    """An answer, and whether it was in the file already."""

    value: Any
    cached: bool


@dataclass(slots=True)
class CacheStats:
    """Counts since the start: `hits` were recorded before, `misses` were not; `shared` joined an
    equal call under way; `paid` are the misses that may have been billed."""

    hits: int = 0
    misses: int = 0
    shared: int = 0
    paid: int = 0


class AnswerCache:
    """The answers in the file at `path`; "record" asks for a missing one, "replay" refuses it.

    The whole file may hold at most `budget` paid calls; None is no limit. `section` is that of the
    settings, for messages. Closing waits up to `patience` seconds for answers that are paid for.
    """

    def __init__(
        self,
        path: Path,
        mode: Mode,
        budget: int | None = None,
        section: str = "tools.search",
        patience: float = CLOSE_SECONDS,
    ) -> None:
        self.mode = mode
        self.kinds: defaultdict[str, CacheStats] = defaultdict(CacheStats)
        self._path = path
        self._budget = budget
        self._section = section
        self._patience = patience
        self._running: dict[Key, asyncio.Task[Answered]] = {}
        self._paid: set[asyncio.Task[Answered]] = set()
        self._checked: set[tuple[str, str, str]] = set()
        self._prepare()
        self._database = Database(path, self._connect, THREADS)

    def figures(self, kind: str) -> dict[str, float]:
        """Counts of one kind of calls ("search", "page", "picture"), as a tool's own figures."""
        stats = self.kinds[kind]
        return {
            "recorded": float(stats.hits),
            "not_recorded": float(stats.misses),
            "shared": float(stats.shared),
            "paid": float(stats.paid),
        }

    async def answer(
        self, key: Key, ask: Callable[[], Awaitable[Any]], paid: bool, form: TypeAdapter[Any]
    ) -> Answered:
        """The recorded answer as `form` reads it, else what `ask` gives (plain JSON values), which
        is recorded. A record that `form` cannot read is replaced.

        Raises the errors of `ask`, `NotRecordedError` for a miss in replay, `BudgetSpent`, and
        `UserError` for a file that is gone or was recorded with other settings.
        """
        stats = self.kinds[key.kind]
        task = self._running.get(key)
        if task is None:
            task = asyncio.create_task(self._answer(key, ask, paid, form))
            self._running[key] = task
            if paid:
                self._paid.add(task)
            task.add_done_callback(lambda task: self._ended(key, task))
        else:
            stats.shared += 1
        return await asyncio.shield(task)

    async def sums(self, kind: str, *paths: str) -> tuple[float, ...]:
        """Sums over all recorded answers of one kind, of the numbers at these JSON paths."""
        sums = ", ".join("total(json_extract(answer, ?))" for _ in paths)
        query = f"SELECT {sums} FROM answers WHERE kind = ?"
        return await self._query(lambda file: file.execute(query, (*paths, kind)).fetchone())

    async def close(self) -> None:
        """End calls under way, paid ones after `patience`; free threads and connections."""
        if paid := self._paid.copy():
            await asyncio.wait(paid, timeout=self._patience)
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        self._database.close()

    def _ended(self, key: Key, task: asyncio.Task[Answered]) -> None:
        del self._running[key]
        self._paid.discard(task)
        if not task.cancelled():
            task.exception()  # nobody may be left to ask for it

    async def _answer(
        self, key: Key, ask: Callable[[], Awaitable[Any]], paid: bool, form: TypeAdapter[Any]
    ) -> Answered:
        stats = self.kinds[key.kind]
        found = await self._query(lambda file: file.execute(_FIND, key).fetchone())
        if found is not None:
            with contextlib.suppress(ValidationError):
                value = form.validate_json(found[0])
                stats.hits += 1
                return Answered(value, cached=True)
        stats.misses += 1
        if self.mode == "replay":
            await self._check_settings(key)
            raise NotRecordedError(f"{key.question!r} is not recorded")
        self._check_file()
        if paid:
            await self._query(self._spend)
            stats.paid += 1
        try:
            answer = await ask()
        except SourceFault as fault:
            if paid and not fault.charged:
                await self._database.run(_refund)
                stats.paid -= 1
            raise
        stored = json.dumps(answer)
        damaged = None if found is None else found[0]
        kept = await self._query(lambda file: _store(file, key, stored, damaged))
        self._check_file()
        return Answered(form.validate_json(kept), cached=False)

    async def _query(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """The answer of `work`; raises `UserError` where it fails because the file is gone."""
        try:
            return await self._database.run(work)
        except SourceFault:
            self._check_file()
            raise

    async def _check_settings(self, key: Key) -> None:
        """Raise `UserError` where a replay misses because answers were recorded with other
        settings; each kind of question is checked once."""
        kind = (key.backend, key.kind, key.options)
        if kind in self._checked:
            return
        query = "SELECT DISTINCT backend, kind, options FROM answers"
        rows = await self._database.run(lambda file: file.execute(query).fetchall())
        backends = {backend for backend, of, _ in rows if of == key.kind}
        options = {given for backend, of, given in rows if (backend, of) == kind[:2]}
        if backends and key.backend not in {backend for backend, _, _ in rows}:
            raise self._other_settings(key, f"of {sorted(backends)}, not of {key.backend!r}")
        if options and key.options not in options:
            raise self._other_settings(key, f"with {sorted(options)}, not with {key.options}")
        self._checked.add(kind)

    def _other_settings(self, key: Key, found: str) -> UserError:
        return UserError(
            f"{self._path} holds {key.kind} answers {found}: give {self._section} the settings "
            f"that they were recorded with, or {_HOW}"
        )

    def _check_file(self) -> None:
        """Raise `UserError` where the file at the path is no longer the one that is written to."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            found = None
        if found is None or (found.st_dev, found.st_ino) != self._identity:
            raise UserError(
                f"{self._path} was {'replaced' if found else 'deleted'} while its answers were in "
                "use: nothing more is asked, as it would not be kept; put the file back, or start "
                "again for a new one"
            )

    def _connect(self) -> sqlite3.Connection:
        if self.mode == "replay":
            return open_index(self._path)
        return _open(self._path, "rw")  # a thread that comes late must not make a deleted file anew

    def _prepare(self) -> None:
        """Make the tables if answers are recorded; raises `UserError` for any other file."""
        if self.mode == "replay" and not self._path.is_file():
            raise UserError(f"no recorded answers at {self._path}; {_HOW}")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            connect = self._connect if self.mode == "replay" else partial(_open, self._path, "rwc")
            with _alone_in(self._path.parent), closing(connect()) as file:
                (version,) = file.execute("PRAGMA user_version").fetchone()
                (tables,) = file.execute("SELECT count(*) FROM sqlite_schema").fetchone()
                if self.mode == "record" and not version and not tables:
                    _create(file)
                    version = FORMAT
                if version != FORMAT:
                    raise sqlite3.DatabaseError(f"format {version}, expected {FORMAT}")
                file.execute(_FIND, ("", "", "", ""))
            made = self._path.stat()
            self._identity = made.st_dev, made.st_ino
        except sqlite3.Error as error:
            raise UserError(f"{self._path}: no file of recorded answers ({error})") from None

    def _spend(self, file: sqlite3.Connection) -> None:
        """Count a paid call before it is made, or raise `BudgetSpent`."""
        limit = (self._budget, self._budget)
        if not file.execute(_SPEND, limit).rowcount:
            (calls,) = file.execute("SELECT calls FROM spent").fetchone()
            raise BudgetSpent(
                f"{self._section}.budget: {calls} paid calls recorded in {self._path}, the budget "
                f"is {self._budget}; raise it and run the same command again, which goes on where "
                "this run stopped"
            )


_HOW = 'record it with mode = "record"'


def _open(path: Path, mode: Literal["rw", "rwc"]) -> sqlite3.Connection:
    """A connection that writes; only "rwc" makes the file where there is none."""
    uri = f"{path.resolve().as_uri()}?mode={mode}"
    return sqlite3.connect(
        uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes waiting: SQLite does not wait for one that turns the WAL mode on."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _create(file: sqlite3.Connection) -> None:
    """Turn on the WAL mode, then make tables and format in one transaction."""
    file.execute("PRAGMA journal_mode = WAL")
    file.executescript(f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version = {FORMAT}; COMMIT;")


def _refund(file: sqlite3.Connection) -> None:
    file.execute("UPDATE spent SET calls = calls - 1")


def _store(file: sqlite3.Connection, key: Key, answer: str, damaged: Any) -> str:
    """Record `answer` unless another process was faster, in place of a `damaged` one; returns the
    record."""
    if damaged is not None:
        file.execute(_REPLACE, (answer, *key, damaged))
    file.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?)", (*key, answer))
    return file.execute(_FIND, key).fetchone()[0]
