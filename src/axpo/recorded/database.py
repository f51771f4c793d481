"""Queries of an SQLite file off the event loop."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from axpo.errors import SourceFault
from axpo.folder import writing

T = TypeVar("T")


def open_index(path: Path) -> sqlite3.Connection:
    """A connection that cannot write; it may be used and closed from any thread."""
    frozen = "" if os.access(path.parent, os.W_OK) else "&immutable=1"  # no -shm can be made there
    uri = f"{path.resolve().as_uri()}?mode=ro{frozen}"
    return sqlite3.connect(uri, uri=True, check_same_thread=False)


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
        """The answer of `work`; raises `SourceFault` for an error of the database, and `DiskError`
        where the disk is full."""
        if self._threads is None:
            name = f"recorded-{self._path.name}"
            self._threads = ThreadPoolExecutor(self._count, thread_name_prefix=name)
        loop = asyncio.get_running_loop()
        try:
            with writing(self._path):
                return await loop.run_in_executor(self._threads, self._work, work)
        except sqlite3.Error as error:
            raise SourceFault(f"{self._path}: {error}") from error

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
