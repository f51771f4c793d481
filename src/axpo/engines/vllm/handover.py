"""Gives weights to servers: by files that both sides see, or by a broadcast to their workers.

The engine asks the servers over HTTP; a `Source` has the weights, in this process or in others.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from torch import distributed

from axpo.engines.base import Buckets, Handed, Meeting, Source
from axpo.engines.broadcast import SECONDS, Backend
from axpo.engines.vllm.pool import Server
from axpo.errors import AnswerFault, ConfigError, EngineError, Refused, ServerLost

SEEN_SECONDS = 5.0
"""Seconds that files may take to be seen by a server: folders of a network are not at once the same
everywhere."""
FAILED = (ServerLost, AnswerFault, Refused, EngineError)
"""The errors of one server that cannot take weights."""


@dataclass(slots=True)
class Weights:
    """The `name` under which servers know weights, where these are, and in what `buckets` they are
    sent. `told` holds what servers are told beside them: the scale of adapters. Files in the
    background are waited for `until` this time."""

    name: str
    source: Source
    buckets: Buckets
    told: Mapping[str, Any]
    handed: Handed = field(default=Handed((), None))
    until: float = field(default_factory=lambda: time.monotonic() + SECONDS)

    @property
    def file_name(self) -> str:
        """The name in the names of files."""
        return self.name.replace("/", "-")


class HandOver:
    """Gives servers weights through `folder`, or by process groups of `backend`.

    With `keep`, requests in flight go on from their tokens (`Client.load`). `lose` is called for a
    server that cannot take weights.
    """

    def __init__(
        self,
        folder: Path,
        backend: Backend | None,
        keep: bool,
        lose: Callable[[Server, str], None],
    ) -> None:
        self._folder = folder
        self.backend: Backend | None = backend
        self._keep = keep
        self._lose = lose

    async def write(self, weights: Weights) -> None:
        """Write the files from which servers will read `weights`, unless they are broadcast."""
        if self.backend is None:
            write = weights.source.write
            weights.handed = await asyncio.to_thread(write, self._folder, weights.file_name)

    async def give(self, servers: Sequence[Server], weights: Weights) -> None:
        """Let `servers` sample with `weights`; those that cannot are lost.

        Raises `ConfigError` for one that does not see the files, and the errors of a source that
        cannot send; then all are lost that may have received a part.
        """
        if self.backend is None:
            failed = await _failures({s: self._read(s, weights) for s in servers})
            self._lose_all(failed, weights)
        else:
            await self._broadcast(servers, weights)

    async def again(self, server: Server, weights: Weights) -> None:
        """Let `server`, which has come back, sample with `weights`, which were given to others.

        If they are in files that are not whole yet, it returns after a moment. Raises what
        `Client.load` does, and `ConfigError`.
        """
        if not weights.handed.paths:
            for error in (await self._broadcast([server], weights)).values():
                raise error
        elif all(path.exists() for path in weights.handed.paths):
            await self._read(server, weights)
        elif time.monotonic() < weights.until:
            await asyncio.sleep(0.1)
        else:
            raise EngineError(f"the files of the weights {weights.name} are not written")

    def forget(self, run: str, kept: Weights | None) -> None:
        """Remove the files, whole or not, of weights whose names begin with `run`."""
        for path in self._folder.glob(f"*weights-{run}-*"):
            if kept is None or f"weights-{kept.file_name}-" not in path.name:
                path.unlink(missing_ok=True)

    async def _read(self, server: Server, weights: Weights) -> None:
        """Let `server` load the files."""
        paths = weights.handed.paths
        await _check_seen(server, paths)
        await self._load(server, weights, {"paths": [str(path) for path in paths]})

    async def _broadcast(
        self, servers: Sequence[Server], weights: Weights
    ) -> dict[Server, Exception]:
        """Send `weights` to all `servers` at once; those that fail are lost, and returned."""
        joined = await asyncio.to_thread(weights.source.groups)
        failed = dict[Server, Exception]()
        for server in servers:
            if server.link is None or server.client.url not in joined:
                failed |= await _failures({server: self._connect(server, weights.source)})
        here = asyncio.get_running_loop()
        ready = {server: here.create_future() for server in servers if server not in failed}
        sending = asyncio.ensure_future(self._send(ready, weights))
        failed |= await _failures(
            {s: self._receive(s, weights, future, sending) for s, future in ready.items()}
        )
        self._lose_all(failed, weights)
        await sending
        return failed

    async def _send(self, ready: Mapping[Server, asyncio.Future[bool]], weights: Weights) -> None:
        """Have the source send, once each server is ready to receive or has failed."""
        groups = [server.client.url for server, receives in ready.items() if await receives]
        weights.handed = await asyncio.to_thread(
            weights.source.send, groups, weights.buckets, self._folder, weights.file_name
        )

    async def _receive(
        self,
        server: Server,
        weights: Weights,
        ready: asyncio.Future[bool],
        sending: asyncio.Future[None],
    ) -> None:
        """Let `server` load what is sent."""

        async def sent() -> None:
            try:
                await asyncio.shield(sending)
            except Exception as error:
                raise ServerLost(f"the weights were not sent: {error}") from error
            if reason := weights.handed.broken.get(server.client.url):
                raise ServerLost(reason)

        async def beside(updated: Awaitable[Any]) -> None:
            ready.set_result(True)
            await _both(updated, sent())

        try:
            await self._load(server, weights, {"buckets": weights.buckets}, beside)
        finally:
            if not ready.done():
                ready.set_result(False)

    async def _load(
        self,
        server: Server,
        weights: Weights,
        update: dict[str, Any],
        beside: Callable[[Awaitable[Any]], Awaitable[None]] | None = None,
    ) -> None:
        server.known.clear()
        server.torn = True
        await server.client.load(update | {**weights.told}, weights.name, self._keep, beside)
        server.weights, server.torn = weights.name, False

    async def _connect(self, server: Server, source: Source) -> None:
        """Let the source and the workers of `server` form a group, which has the server's URL."""
        client = server.client
        ranks = 1 + len(await client.rpc("axpo_facts"))
        host = _address_towards(client.url)
        limit = timedelta(seconds=SECONDS)
        store = distributed.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
            host, 0, ranks, is_master=True, timeout=limit, wait_for_workers=False
        )
        assert self.backend is not None
        meeting = Meeting(host, store.port, ranks, self.backend)
        joining = asyncio.to_thread(source.join, client.url, meeting)
        await _both(client.join(asdict(meeting)), joining)
        server.link = store  # The group needs it as long as it is used.

    def _lose_all(self, failed: Mapping[Server, Exception], weights: Weights) -> None:
        for server, error in failed.items():
            self._lose(server, f"weights {weights.name}: {error}")


async def _failures(work: Mapping[Server, Awaitable[None]]) -> dict[Server, Exception]:
    """The errors of servers that cannot take weights; others are raised when all is done."""
    found = await asyncio.gather(*work.values(), return_exceptions=True)
    failed = dict[Server, Exception]()
    for server, error in zip(work, found, strict=True):
        if isinstance(error, FAILED):
            failed[server] = error
        elif error is not None:
            raise error
    return failed


async def _both(asking: Awaitable[Any], here: Awaitable[Any]) -> None:
    """Await the server's answer and, meanwhile, `here`.

    If the server fails, `here` waits for it until the group's time is over. Then nobody awaits
    `here`, and the group is given up.
    """
    posted, beside = asyncio.ensure_future(asking), asyncio.ensure_future(here)
    try:
        await asyncio.wait({posted, beside}, return_when=asyncio.FIRST_EXCEPTION)
        if posted.done():
            posted.result()
        beside.result()
    except (*FAILED, RuntimeError, distributed.DistError) as error:
        raise ServerLost(f"the group with its workers broke: {error}") from error
    finally:
        posted.cancel()


async def _check_seen(server: Server, paths: Sequence[Path]) -> None:
    """Raise `ConfigError` for files that the server cannot read, which would kill the server."""
    until = time.monotonic() + SEEN_SECONDS
    expected = [path.stat().st_size for path in paths]
    while True:
        sizes = await server.client.rpc("axpo_file_sizes", *map(str, paths))
        if all(size == expected for size in sizes):
            return
        if time.monotonic() > until:
            raise ConfigError(
                f"{server.client.url} does not see {paths[0]}: set engine.folder to a folder that "
                "it shares with the trainer"
            )
        await asyncio.sleep(0.5)


def _address_towards(url: str) -> str:
    """This machine's address as the server at `url` can reach it; nothing is sent."""
    parts = urlsplit(url)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((parts.hostname or "127.0.0.1", parts.port or 80))
        return probe.getsockname()[0]
