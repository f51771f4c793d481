"""Several vLLM servers as one: which gets a request, which is lost, and which is back.

A group's requests stay on one server, whose prefix cache holds the group's prompt; a new group
goes to the server with the fewest requests in flight. A server that stops answering is lost: its
requests in flight fail at once, and their callers ask another server. In the background the lost
server is restarted (or waited for), made ready again, and used again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from axpo.engines.places import Places
from axpo.engines.stats import EngineStats
from axpo.engines.vllm.client import Client
from axpo.engines.vllm.process import Process, stop_all
from axpo.errors import EngineError, Fault, Interrupted, ServerLost, UserError

MISSES = 2
"""How many health checks in a row a server may miss before it is lost."""
HEALTH_EVERY = 2.0
"""Seconds between health checks of a server with requests in flight."""


class Server:
    """A server and what is known about it.

    `known` maps the digest of each picture that the server has to the request that brought it.
    `coming` maps each picture that a request is bringing to an event, which is set when that is
    over. `asked` counts the requests that the server has to answer, including those that wait for a
    place or a picture; `flying` holds those in flight, at most as many as it has `places`. A path
    that it is sent has fewer than `context` tokens. `torn` says that it may hold parts of two
    versions of the weights, whatever it calls them. `link` is what its workers need of this process
    to get weights by a broadcast.
    """

    def __init__(self, client: Client, process: Process | None = None) -> None:
        self.client = client
        self.process = process
        self.up = True
        self.reason = ""
        self.known: dict[str, str] = {}
        self.coming: dict[str, asyncio.Event] = {}
        self.places = Places(1)
        self.context = 0
        self.weights: str | None = None
        self.torn = False
        self.link: Any = None
        self.asked = 0
        self.flying: set[asyncio.Task[Any]] = set()
        self.watch: asyncio.Task[None] | None = None
        self.recovery: asyncio.Task[None] | None = None


class Pool:
    """Routes requests to `servers`; `prepare` makes a server ready that has come back.

    The pool waits for a lost server for at most `recovery_seconds`. It belongs to one event loop at
    a time.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        prepare: Callable[[Server], Awaitable[None]],
        stats: EngineStats,
        recovery_seconds: float,
    ) -> None:
        self.servers = list(servers)
        self._stats = stats
        self._prepare = prepare
        self._recovery_seconds = recovery_seconds
        self._homes: dict[str, Server] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def attach(self) -> bool:
        """Begin work on the running event loop; return whether it is another than before."""
        loop = asyncio.get_running_loop()
        if loop is self._loop:
            return False
        self._loop = loop
        for server in self.servers:
            server.flying, server.watch, server.recovery = set(), None, None
            server.coming, server.places = {}, Places(server.places.count)
            if not server.up:
                self._recover_soon(server)
        return True

    async def acquire(self, group: str) -> Server:
        """The server for a request of `group`, as soon as there is one.

        Raises `EngineError` if no server is left and none will come back.
        """
        while True:
            up = [server for server in self.servers if server.up]
            if up:
                home = self._homes.get(group)
                if home is None or not home.up:
                    homes = list(self._homes.values())
                    home = min(up, key=lambda s: (s.asked, homes.count(s)))
                    self._homes[group] = home
                return home
            waiting = [s.recovery for s in self.servers if s.recovery and not s.recovery.done()]
            if not waiting:
                reasons = "; ".join(f"{s.client.url}: {s.reason}" for s in self.servers)
                raise EngineError(f"no vLLM server is left ({reasons})")
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)

    def release(self, group: str) -> None:
        """Forget which server serves the group."""
        self._homes.pop(group, None)

    async def ask(self, server: Server, body: dict[str, Any], accepted: Callable[[], None]) -> Any:
        """The server's answer (see `Client.generate`).

        Raises `ServerLost` when the server is lost, and `Interrupted` when `interrupt` is called.
        """
        if not server.up:
            raise ServerLost(server.reason)
        post = asyncio.ensure_future(server.client.generate(body, accepted))
        server.flying.add(post)
        if server.watch is None or server.watch.done():
            server.watch = asyncio.ensure_future(self._watch(server))
        try:
            await asyncio.wait({post})
        finally:
            server.flying.discard(post)
            post.cancel()
        if post.cancelled():
            raise Interrupted if server.up else ServerLost(server.reason)
        return post.result()

    async def suspect(self, server: Server, reason: str) -> None:
        """Lose the server unless it says that it is well: perhaps only a connection broke."""
        if server.up and not await server.client.healthy() and server.up:
            self.lose(server, reason)

    def lose(self, server: Server, reason: str) -> None:
        """Let the server's requests fail with `ServerLost`, and bring it back in the background."""
        if not server.up:
            return
        self._stats.servers_lost += 1
        server.up, server.reason, server.weights, server.link = False, reason, None, None
        server.known.clear()
        for post in server.flying:
            post.cancel()
        self._recover_soon(server)

    def interrupt(self) -> None:
        """Let all requests in flight fail with `Interrupted`; the servers abort them."""
        for server in self.servers:
            for post in server.flying:
                post.cancel()

    def retry_lost(self) -> None:
        """Try again to bring back the servers that were given up."""
        for server in self.servers:
            if not server.up and (server.recovery is None or server.recovery.done()):
                self._recover_soon(server)

    def stop(self) -> None:
        """End the background tasks, and the servers that were started here."""
        for server in self.servers:
            for task in (server.watch, server.recovery):
                if task is not None and task.get_loop() is asyncio.get_running_loop():
                    task.cancel()
        stop_all([server.process for server in self.servers if server.process is not None])

    def _recover_soon(self, server: Server) -> None:
        server.recovery = asyncio.ensure_future(self._recover(server))

    async def _watch(self, server: Server) -> None:
        """While the server has requests in flight, check that it is well and makes progress."""
        misses = 0
        while server.up and server.flying and misses < MISSES:
            await asyncio.sleep(HEALTH_EVERY)
            misses = 0 if await server.client.healthy() else misses + 1
            if server.up and server.client.silent:
                self.lose(server, "it is well, but begins and ends no request any more")
        if server.up and misses:
            self.lose(server, f"it missed {misses} health checks")

    async def _recover(self, server: Server) -> None:
        """Bring a lost server back; if that fails, its `reason` says why."""
        lost, deadline = server.reason, time.monotonic() + self._recovery_seconds
        try:
            if server.process is not None:
                # This runs in no other thread: the server ends with the thread that started it.
                server.process.restart()
            while not await _well(server):
                if server.process is not None and (failure := server.process.failure()):
                    raise EngineError(failure)
                if time.monotonic() > deadline:
                    raise EngineError(f"not back after {self._recovery_seconds:g} s")
                await asyncio.sleep(min(1.0, HEALTH_EVERY))
            await self._prepare(server)
            server.up, server.reason = True, ""
        except (Fault, UserError, RuntimeError, OSError) as error:
            server.reason = f"{lost}; then {error}"


async def _well(server: Server) -> bool:
    """Whether the server says that it is well, at the address that its process has now."""
    if server.process is not None and server.process.url != server.client.url:
        if not server.process.url:
            return False
        await server.client.close()
        server.client = server.client.at(server.process.url)
    return await server.client.healthy()
