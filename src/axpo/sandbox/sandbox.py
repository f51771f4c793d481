"""A sandbox from start to close: its fork server, proven at every start, and its folder."""

from __future__ import annotations

import asyncio
import logging
import secrets
import tempfile
from pathlib import Path

from axpo.sandbox import canaries, folders, levels
from axpo.sandbox.environment import prepare
from axpo.sandbox.limits import SessionBounds
from axpo.sandbox.server import ForkServer
from axpo.sandbox.session import Session

logger = logging.getLogger(__name__)


class Sandbox:
    """A sandbox, which opens sessions between `start` and `close`.

    `level` is "bubblewrap", "landlock", "unsafe", or None for the strongest that this machine has,
    which is never "unsafe". `packages` is explained in `environment`.
    """

    def __init__(self, level: str | None, packages: str | Path, bounds: SessionBounds) -> None:
        self.level, self.packages, self.bounds = level, packages, bounds
        self.server: ForkServer | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    async def start(self) -> None:
        """Start the fork server and prove that it holds; raises `SandboxFault` otherwise."""
        self._starting = asyncio.Lock()
        self._scratch = tempfile.TemporaryDirectory(prefix="axpo-python-")
        scratch = Path(self._scratch.name)
        self._errors, self._folder = scratch / "errors", scratch / "sessions"
        try:
            self.level = await asyncio.to_thread(levels.choose, self.level)
            if self.level == "unsafe":
                logger.warning(levels.UNSAFE)
            self._folder.mkdir(mode=0o300)  # A session must not list its neighbours.
            self._environment = await prepare(self.packages, scratch)
            await self.ready()
        except BaseException:
            await self.close()
            raise

    async def ready(self) -> ForkServer:
        """The fork server; if it has ended, a new one, which is checked again."""
        async with self._starting:
            server = self.server
            if server is not None and server.alive:
                return server
            if server is not None:
                logger.warning("the Python sandbox's fork server has ended; starting another")
                await server.close()
            assert self.level is not None  # `start` has chosen it.
            server = ForkServer(self.level, self._environment, self._folder, self.bounds)
            await server.start(self._errors)
            self.server = server
            if self.level != "unsafe":
                try:
                    await canaries.check(server, self._new_folder())
                except BaseException:
                    self.server = None
                    await server.close()
                    raise
            return server

    async def open(self, server: ForkServer, code: str) -> Session:
        """A new session of `server`, with the packages that `code`, its first cell, names."""
        return await Session.open(server, self._new_folder(), code)

    def _new_folder(self) -> Path:
        return self._folder / secrets.token_hex(16)

    async def close(self) -> None:
        """End the fork server and with it every session, and remove every file."""
        if self.server is not None:
            await self.server.close()
            self.server = None
        await asyncio.to_thread(self._remove)

    def _remove(self) -> None:
        """Remove every file, also those of sessions that ended together with their server."""
        if self._scratch is None:
            return  # It was never started.
        scratch = Path(self._scratch.name)
        if (sessions := scratch / "sessions").is_dir():
            sessions.chmod(0o700)
            folders.remove(sessions)
        self._scratch.cleanup()
        self._scratch = None
