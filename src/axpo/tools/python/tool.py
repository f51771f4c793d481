"""The Python tool: a notebook a trajectory, in a sandbox that is checked before it is used.

What the model's code does wrong, taking too long included, is an observation; only what is the
sandbox's fault is an `InfraError`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, StrictStr

from axpo.clock import waiting
from axpo.config import LimitSettings
from axpo.tools.arguments import parse_arguments
from axpo.tools.base import InfraError, ModelError, Observation, ToolContext, View
from axpo.tools.python import canaries, folders, levels
from axpo.tools.python.environment import prepare
from axpo.tools.python.limits import Bounds
from axpo.tools.python.server import ForkServer
from axpo.tools.python.session import Result, Session, Stop

NAME = "python"
SPEC: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": NAME,
        "description": (
            "Run Python code in a notebook: variables persist between calls. The images so far "
            "are image_0, image_1, ... (PIL). Printed text, the value of the last expression, "
            "figures and images given to show(image) are returned. numpy, PIL, sympy and "
            "matplotlib are installed; there is no network."
        ),
        "parameters": {
            "type": "object",
            "properties": {"code": {"type": "string", "description": "The code to run."}},
            "required": ["code"],
        },
    },
}

RESTARTED = "(The session was restarted; earlier variables and files are lost.)"
"""Told once after a fault of ours, as the code may rely on what is gone."""

logger = logging.getLogger(__name__)


class PythonArguments(BaseModel):
    """Arguments of one call."""

    model_config = ConfigDict(extra="forbid")

    code: StrictStr = Field(description="a string of Python code")


class PythonTool:
    """`python(code)`; `start` before the first call, `end` after a trajectory, then `close`.

    `level` is "bubblewrap", "landlock", or None for the strongest that this machine has;
    "unsafe" must be asked for. `packages` is as `environment` explains it.
    """

    name = NAME
    spec = SPEC
    limits = LimitSettings(retries=0)
    """No retries: in a new session the same code would miss the lost one's variables."""

    def __init__(
        self,
        level: str | None = None,
        packages: str | Path = "own",
        bounds: Bounds | None = None,
    ) -> None:
        self.bounds = bounds or Bounds()
        self.level = level
        self.packages = packages
        # Longer than the two stages, a lost session's removal and a new one's start together.
        self.timeout = self.bounds.seconds + 3 * self.bounds.grace + self.bounds.start
        self._sessions: dict[str, Session] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._used: defaultdict[str, float] = defaultdict(float)  # seconds of a trajectory's cells
        self._restarted: set[str] = set()  # lost a session by our fault and do not know it yet
        self._server: ForkServer | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    async def start(self) -> None:
        """Start the fork server and prove that it holds; raises `InfraError` otherwise."""
        self._starting = asyncio.Lock()
        self._scratch = tempfile.TemporaryDirectory(prefix="axpo-python-")
        self._errors = Path(self._scratch.name) / "errors"
        try:
            self.level = await asyncio.to_thread(levels.choose, self.level)
            if self.level == "unsafe":
                logger.warning(levels.UNSAFE)
            scratch = self._errors.parent
            self._folder = scratch / "sessions"
            self._folder.mkdir(mode=0o300)  # a session cannot list its neighbours
            self._environment = await prepare(self.packages, scratch)
            await self._ready_server()
        except BaseException:
            await self.close()
            raise

    async def _ready_server(self) -> ForkServer:
        """The fork server; a new one, checked again, where the last has ended."""
        async with self._starting:
            server = self._server
            if server is not None and server.alive:
                return server
            if server is not None:
                logger.warning("the Python sandbox's fork server has ended; starting another")
                await server.close()
            assert self.level is not None  # chosen by `start`
            server = ForkServer(self.level, self._environment, self._folder, self.bounds)
            await server.start(self._errors)
            self._server = server
            if self.level != "unsafe":
                try:
                    await canaries.check(server, self._new_folder())
                except BaseException:
                    self._server = None
                    await server.close()
                    raise
            return server

    def _new_folder(self) -> Path:
        return self._folder / secrets.token_hex(16)

    async def __call__(self, arguments: dict[str, Any], context: ToolContext) -> Observation:
        call = parse_arguments(PythonArguments, arguments)
        if len(call.code) > self.bounds.code:
            raise ModelError(
                f"code has {len(call.code)} characters: expected at most {self.bounds.code}"
            )
        if self._server is None:
            raise InfraError("the Python tool was not started")
        return await self._cell(call.code, context)

    async def _cell(self, code: str, context: ToolContext, again: bool = False) -> Observation:
        """Run a cell; one that runs `again` counts, but has a cell's whole time."""
        lock = self._locks.setdefault(context.trajectory, asyncio.Lock())
        async with lock:
            seconds = self.bounds.seconds if again else self._seconds(context.trajectory)
            session = await self._session(context.trajectory, code)
            images = [view.image for view in context.views[session.sent :]]
            began = time.monotonic()
            try:
                result = await session.run(code, images, seconds)
            except (InfraError, asyncio.CancelledError):
                self._restarted.add(context.trajectory)
                raise
            finally:
                self._used[context.trajectory] += time.monotonic() - began
                if session.lost:
                    self._sessions.pop(context.trajectory, None)
                    await session.end()
        seen = self._observation(result, seconds)
        if context.trajectory in self._restarted:
            self._restarted.discard(context.trajectory)
            return replace(seen, text=f"{RESTARTED}\n{seen.text}".rstrip())
        return seen

    def _seconds(self, trajectory: str) -> float:
        """How long the next cell may take; raises `ModelError` where nothing is left."""
        left = self.bounds.total - self._used.get(trajectory, 0.0)
        if left <= 0:
            raise ModelError(
                f"your code has run for {self.bounds.total:g} s in all, the limit: no more is run"
            )
        return min(self.bounds.seconds, left)

    async def resume(self, context: ToolContext) -> None:
        """Run the cells of a prefix again, in a new session; what they show is known already."""
        for call in context.earlier:
            seen = replace(context, views=context.views[: call.pictures])
            await self._cell(call.arguments["code"], seen, again=True)

    async def _session(self, trajectory: str, code: str) -> Session:
        session = self._sessions.get(trajectory)
        if session is None:
            with waiting():  # for whoever starts a new one
                server = await self._ready_server()
            session = await Session.open(server, self._new_folder(), code)
            self._sessions[trajectory] = session
        return session

    def _observation(self, result: Result, seconds: float) -> Observation:
        """The result of a cell that had `seconds`, as the model reads it."""
        views = tuple(View.whole(image) for image in result.images)
        text = result.text.rstrip("\n")
        if result.interrupted:
            note = f"Stopped after {seconds:.3g} s: too slow. Variables are kept."
            text = f"{text}\n{note}" if text else note
        if result.stop is None:
            return Observation(text or ("" if views else "(no output)"), views)
        reasons = {
            Stop.TIME: f"the code took over {seconds:.3g} s and could not be interrupted",
            Stop.FOLDER: f"over {self.bounds.folder >> 20} MiB or {self.bounds.entries} files",
            Stop.ANSWER: "the interpreter's answer was damaged",
            Stop.DIED: f"the interpreter {result.detail}",
        }
        reason = reasons[result.stop]
        return Observation(f"Stopped: {reason}. All variables and files are lost.")

    async def end(self, trajectory: str) -> None:
        """Kill a trajectory's session and remove its folder."""
        lock = self._locks.setdefault(trajectory, asyncio.Lock())
        if (running := self._sessions.get(trajectory)) is not None:
            running.kill()  # a cell that still runs ends at once, and gives up the lock
        async with lock:
            session = self._sessions.pop(trajectory, None)
            if session is not None:
                await session.end()
        self._locks.pop(trajectory, None)
        self._used.pop(trajectory, None)
        self._restarted.discard(trajectory)

    async def close(self) -> None:
        """End every session and the fork server, and remove every file."""
        for trajectory in list(self._sessions):
            await self.end(trajectory)
        if self._server is not None:
            await self._server.close()
            self._server = None
        self._locks.clear()
        self._used.clear()
        self._restarted.clear()
        await asyncio.to_thread(self._remove)

    def _remove(self) -> None:
        """Also the folders of sessions that a server took with it when it ended."""
        if self._scratch is None:
            return  # never started
        scratch = Path(self._scratch.name)
        if (sessions := scratch / "sessions").is_dir():
            sessions.chmod(0o700)
            folders.remove(sessions)
        self._scratch.cleanup()
        self._scratch = None
