"""An agent's tools, each with its places, deadline, retries and figures, from start to close.

A `Lane` carries out the calls of one tool; a `Toolbox` starts the tools, tells them when a
trajectory ends, and closes them. `runner` decides whose fault a failure is.

Nothing here waits for a tool that does not react. A call is cancelled at its deadline or when its
trajectory ends. If it goes on nevertheless (a thread, a tool that swallows cancellation), it is
given up: its place is free again, and the call counts as stuck until it ends. Further calls of a
tool with `max_stuck` such calls are refused.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from typing import Any, TypeVar

import stamina

from axpo.clock import Clock
from axpo.config import LimitSettings
from axpo.errors import InfraError, LateError, ModelError, UserError
from axpo.tools.base import Observation, Tool, ToolContext
from axpo.tools.limits import Gate, Tokens, capped
from axpo.tools.stats import ToolStats

GRACE = 1.0
"""Seconds that a cancelled call has to clean up before it is given up."""
END_SECONDS = 10.0
"""Seconds that a tool has to clean up after a trajectory, and to close."""
RETRY_WAIT, RETRY_WAIT_MAX = 0.1, 5.0
"""Seconds before the second attempt (plus up to one at random), which double up to a maximum."""

Result = TypeVar("Result")

_log = logging.getLogger(__name__)
# Retries are counted in `ToolStats`; without a handler each would be printed.
logging.getLogger("stamina").addHandler(logging.NullHandler())


class Lane:
    """One tool, with the limits, figures and places that its calls share."""

    def __init__(self, tool: Tool, settings: LimitSettings | None = None) -> None:
        self.tool = tool
        changed = settings.model_dump(exclude_unset=True) if settings else {}
        self.limits = tool.limits.model_copy(update=changed)
        self.timeout = self.limits.timeout or tool.timeout
        self.stats = ToolStats()
        self.gate = Gate(self.limits)
        self._given_up: set[asyncio.Task[Any]] = set()
        self._resumed: set[str] = set()

    @property
    def stuck(self) -> int:
        """The number of calls that were given up and still run."""
        return len(self._given_up) + self.tool.stuck

    def counters(self) -> dict[str, float]:
        """The figures that only grow: those of the calls and the tool's own."""
        return {**self.tool.figures, **self.stats.counters()}

    async def call(
        self, arguments: dict[str, Any], context: ToolContext, tokens: Tokens | None
    ) -> Observation:
        """The tool's result within the limits; raises `LateError`, or the tool's error."""
        queued = time.perf_counter()
        async with self.gate.place():
            began = time.perf_counter()
            self.stats.seconds_queued += began - queued
            try:
                await self._resume(context)
                observation = await self._within_deadline(
                    self._attempts(arguments, context, tokens), self.timeout
                )
            finally:
                self.stats.latencies.append(time.perf_counter() - began)
        self.stats.cache_hits += observation.cached
        return observation

    async def end(self, trajectory: str) -> None:
        """Tell the tool that a trajectory is over."""
        self._resumed.discard(trajectory)
        await self.tool.end(trajectory)

    async def _resume(self, context: ToolContext) -> None:
        """Let the tool repeat the calls before the cut, once per trajectory.

        Each call adds its deadline to the time allowed; a failure is an infrastructure fault.
        """
        if not context.earlier or context.trajectory in self._resumed:
            return
        try:
            seconds = self.timeout * len(context.earlier)
            await self._within_deadline(self.tool.resume(context), seconds)
        except ModelError as error:
            raise InfraError(f"an earlier call cannot be made again: {error}") from error
        self._resumed.add(context.trajectory)

    async def _within_deadline(self, work: Coroutine[Any, Any, Result], seconds: float) -> Result:
        if self.stuck >= self.limits.max_stuck:
            work.close()
            raise InfraError(f"{self.stuck} calls were given up and still run")
        task: asyncio.Task[Result] | None = None
        try:
            async with Clock(seconds):
                # The task is made inside the block so that its waits stop the clock.
                task = asyncio.create_task(work)
                await asyncio.wait({task})
        except TimeoutError:
            if task is None or not task.done():
                raise LateError(f"no result after {seconds:g} s") from None
        finally:
            if task is not None and not task.done():
                await self._give_up(task)
        assert task is not None
        if task.cancelled():  # It did so itself, which must not look like the trajectory's end.
            raise InfraError("the tool cancelled its own call")
        return task.result()

    async def _attempts(
        self, arguments: dict[str, Any], context: ToolContext, tokens: Tokens | None
    ) -> Observation:
        attempts = stamina.retry_context(
            on=_worth_another,
            attempts=1 + self.limits.retries,
            timeout=None,  # The call's deadline covers all attempts.
            wait_initial=RETRY_WAIT,
            wait_max=RETRY_WAIT_MAX,
        )
        observation = Observation()
        async for attempt in attempts:
            with attempt:
                if attempt.num > 1:
                    self.stats.retries += 1
                    await self.gate.pace()
                observation = await self.tool(arguments, context)
        return await capped(observation, self.limits, tokens)

    async def _give_up(self, task: asyncio.Task[Any]) -> None:
        """Cancel a call; it counts as stuck until it ends."""
        self._given_up.add(task)
        task.add_done_callback(self._ended)
        task.cancel()
        await asyncio.wait({task}, timeout=GRACE)
        self.stats.given_up += not task.done()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._given_up.discard(task)
        if not task.cancelled():
            task.exception()  # Unread, asyncio would log it.


Step = Callable[[Lane], Awaitable[None]]


class Toolbox(Mapping[str, Tool]):
    """Tools by name, with their limits (by default the tools' own) and figures.

    Agents may share a toolbox. It belongs to one event loop at a time; on another it starts anew.
    """

    def __init__(
        self, tools: Mapping[str, Tool], limits: Mapping[str, LimitSettings] | None = None
    ) -> None:
        limits = limits or {}
        if unknown := sorted(set(limits) - set(tools)):
            raise ValueError(f"limits of {unknown[0]!r}: the tools are {', '.join(tools)}")
        self.lanes = {name: Lane(tool, limits.get(name)) for name, tool in tools.items()}
        self._starting: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()

    @classmethod
    def of(cls, tools: Mapping[str, Tool]) -> Toolbox:
        """`tools` as a toolbox; a toolbox is returned unchanged."""
        return tools if isinstance(tools, Toolbox) else cls(tools)

    def __getitem__(self, name: str) -> Tool:
        return self.lanes[name].tool

    def __iter__(self) -> Iterator[str]:
        return iter(self.lanes)

    def __len__(self) -> int:
        return len(self.lanes)

    @property
    def stats(self) -> dict[str, ToolStats]:
        """The figures of each tool by its name."""
        return {name: lane.stats for name, lane in self.lanes.items()}

    async def start(self) -> None:
        """Start every tool once; if one does not start, every call raises its `UserError`."""
        loop = asyncio.get_running_loop()
        if self._starting is None or self._starting.get_loop() is not loop:
            for lane in self.lanes.values():
                lane.gate = Gate(lane.limits)
            self._starting = loop.create_task(self._start())
        await asyncio.shield(self._starting)

    async def end(self, trajectory: str) -> None:
        """Tell every tool that a trajectory is over, even if the caller is cancelled."""
        task = asyncio.create_task(self._all("end", lambda lane: lane.end(trajectory)))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        await asyncio.shield(task)

    async def close(self) -> None:
        """Close the tools if they were started; they may be started again."""
        starting, self._starting = self._starting, None
        if starting is None:
            return
        await asyncio.gather(*self._ending)
        if not starting.done():
            await asyncio.wait({starting})
        await self._all("close", lambda lane: lane.tool.close())

    async def _start(self) -> None:
        for name, lane in self.lanes.items():
            try:
                await lane.tool.start()
            except UserError:
                raise
            except Exception as error:
                raise UserError(
                    f"tool {name} does not start: {type(error).__name__}: {error}"
                ) from error

    async def _all(self, step: str, call: Step) -> None:
        """Take the step with every tool; a failure of one does not affect the others."""
        await asyncio.gather(
            *(_forgiven(lane, name, step, call) for name, lane in self.lanes.items())
        )


def _worth_another(error: Exception) -> bool:
    """Whether another attempt may succeed: the tool failed and does not exclude it."""
    return isinstance(error, InfraError) and error.retryable


async def _forgiven(lane: Lane, name: str, step: str, call: Step) -> None:
    """Clean up; a failure or a timeout is counted, and the tool's first one is logged."""
    try:
        async with asyncio.timeout(END_SECONDS):
            await call(lane)
    except Exception as error:
        lane.stats.end_errors += 1
        if lane.stats.end_errors == 1:
            _log.warning("tool %s: %s: %s: %s", name, step, type(error).__name__, error)
