"""The Python tool: one notebook per trajectory, in a sandbox that is checked before it is used.

A mistake of the model's code, even that it takes too long, is an observation; only a fault of the
sandbox is an `InfraError`.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field, StrictStr

from axpo.clock import waiting
from axpo.config import LimitSettings
from axpo.errors import InfraError, ModelError
from axpo.sandbox import Sandbox, SessionBounds
from axpo.sandbox.errors import SandboxFault
from axpo.sandbox.session import Result, Session, Stop
from axpo.tools.arguments import Arguments, function, parse_arguments
from axpo.tools.base import Observation, Tool, ToolContext, View

NAME = "python"
SPEC = function(
    NAME,
    "Run Python code in a notebook: variables persist between calls. The images so far "
    "are image_0, image_1, ... (PIL). Printed text, the value of the last expression, "
    "figures and images given to show(image) are returned. numpy, PIL, sympy and "
    "matplotlib are installed; there is no network.",
    argument="code",
    kind="string",
    meaning="The code to run.",
)
TOTAL = 60.0
"""Seconds that all cells of a trajectory together may run. A recipe's tool gets half of
`rollout.max_seconds` if that is less: otherwise code that sleeps could end its trajectory by wall
time, unscored (choice)."""
MAX_CODE = 50_000
"""The most characters of a cell's code (choice)."""
RESTARTED = "(The session was restarted; earlier variables and files are lost.)"
"""The model is told this once after a fault of the sandbox, because its code may rely on them."""


class PythonArguments(Arguments):
    """The arguments of one call."""

    code: StrictStr = Field(description="a string of Python code")


class PythonTool(Tool):
    """`python(code)` in a `Sandbox` of this `level` with these `packages` (see `Sandbox`).

    The cells of a trajectory, including those before its cut, may run for `total` seconds.
    """

    name = NAME
    spec = SPEC
    limits = LimitSettings(retries=0)
    """There are no retries: in a new session the same code would miss its variables."""

    def __init__(
        self,
        level: str | None = None,
        packages: str | Path = "own",
        bounds: SessionBounds | None = None,
        total: float = TOTAL,
    ) -> None:
        self.bounds = bounds or SessionBounds()
        self.total = total
        # It covers a cell's two stages, the removal of a lost session and a new start together.
        self.timeout = self.bounds.seconds + 3 * self.bounds.grace + self.bounds.start
        self._sandbox = Sandbox(level, packages, self.bounds)
        self._sessions: dict[str, Session] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._used: defaultdict[str, float] = defaultdict(float)  # seconds of a trajectory's cells
        self._restarted: set[str] = set()  # lost a session and were not told yet

    async def start(self) -> None:
        """Start the sandbox and have it prove itself; raises `InfraError` if it does not hold."""
        with _faults_are_ours():
            await self._sandbox.start()

    async def __call__(self, arguments: dict[str, Any], context: ToolContext) -> Observation:
        call = parse_arguments(PythonArguments, arguments)
        if len(call.code) > MAX_CODE:
            raise ModelError(f"code has {len(call.code)} characters: expected at most {MAX_CODE}")
        if self._sandbox.server is None:
            raise InfraError("the Python tool was not started")
        with _faults_are_ours():
            return await self._cell(call.code, context)

    async def _cell(self, code: str, context: ToolContext, again: bool = False) -> Observation:
        """Run a cell. With `again` it counts in the total, but may take a cell's whole time."""
        lock = self._locks.setdefault(context.trajectory, asyncio.Lock())
        async with lock:
            seconds = self.bounds.seconds if again else self._seconds(context.trajectory)
            session = await self._session(context.trajectory, code)
            images = [view.image for view in context.views[session.sent :]]
            began = time.monotonic()
            try:
                result = await session.run(code, images, seconds)
            except (SandboxFault, asyncio.CancelledError):
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
        """The seconds that the next cell may take; raises `ModelError` if none are left."""
        left = self.total - self._used.get(trajectory, 0.0)
        if left <= 0:
            raise ModelError(
                f"your code has run for {self.total:g} s in all, the limit: no more is run"
            )
        return min(self.bounds.seconds, left)

    async def resume(self, context: ToolContext) -> None:
        """Run the cells of a prefix again in a new session; their results are not shown again."""
        with _faults_are_ours():
            for call in context.earlier:
                seen = replace(context, views=context.views[: call.pictures])
                await self._cell(call.arguments["code"], seen, again=True)

    async def _session(self, trajectory: str, code: str) -> Session:
        session = self._sessions.get(trajectory)
        if session is None:
            with waiting():  # Another trajectory may be starting a new server.
                server = await self._sandbox.ready()
            session = await self._sandbox.open(server, code)
            self._sessions[trajectory] = session
        return session

    def _observation(self, result: Result, seconds: float) -> Observation:
        """The result of a cell that was allowed `seconds`, as the model reads it."""
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
            running.kill()  # A cell that still runs ends at once and releases the lock.
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
        await self._sandbox.close()
        self._locks.clear()
        self._used.clear()
        self._restarted.clear()


@contextmanager
def _faults_are_ours() -> Iterator[None]:
    """Turn a fault of the sandbox into an infrastructure fault of the tool."""
    try:
        yield
    except SandboxFault as fault:
        raise InfraError(str(fault)) from fault
