"""Time limits that measure work: a clock stands still while what it measures waits for a place.

Code that lets others wait (an engine's queue, a tool's places, a weight update) says so with
`waiting`, however deep in the call it stands; every clock around it stands still until the wait is
over. Otherwise a full queue would look like slow work, and trajectories that queue more often,
because they use tools, would run out of time first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from typing import Any

_innermost: ContextVar[Clock | None] = ContextVar("clock", default=None)


class Clock:
    """Limits the block of its `async with` to `seconds` of work.

    At the limit it raises `TimeoutError` out of the block, as `asyncio.timeout` does. Tasks that
    the block starts are measured too. `worked` and `waited` are the block's seconds up to the last
    wait or its end.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = self._allowed = seconds
        self._timeout = asyncio.Timeout(None)
        self._outer: Clock | None = None
        self._token: Token[Clock | None] | None = None
        self._waits = 0
        self._lap: float | None = None
        self.worked = self.waited = 0.0

    async def __aenter__(self) -> Clock:
        self._outer = _innermost.get()
        self._token = _innermost.set(self)
        await self._timeout.__aenter__()
        self._lap = asyncio.get_running_loop().time()
        self._turn(0)
        return self

    async def __aexit__(self, *error: Any) -> None:
        self._turn(0)
        self._lap = None  # a wait of a task that outlives the block changes nothing
        assert self._token is not None
        _innermost.reset(self._token)
        await self._timeout.__aexit__(*error)

    def again(self) -> None:
        """From now on the block has its seconds anew."""
        self._turn(0)
        self._allowed = self.worked + self._seconds
        self._turn(0)

    @property
    def expired(self) -> bool:
        """Whether the seconds were used up."""
        return self._timeout.expired()

    def chain(self) -> Iterator[Clock]:
        """This clock and those around it."""
        clock: Clock | None = self
        while clock is not None:
            yield clock
            clock = clock._outer

    def _turn(self, waits: int) -> None:
        """Note the time that has passed; from now on there are `waits` more waits."""
        if self._lap is None:
            return
        now = asyncio.get_running_loop().time()
        if self._waits:
            self.waited += now - self._lap
        else:
            self.worked += now - self._lap
        self._lap = now
        self._waits += waits
        if not self._timeout.expired():
            left = self._allowed - self.worked
            self._timeout.reschedule(None if self._waits else now + left)


class Wait:
    """A wait that `waiting` began; `over` ends it before its block does, once."""

    def __init__(self, clock: Clock | None) -> None:
        self._clocks = [] if clock is None else list(clock.chain())
        for stopped in self._clocks:
            stopped._turn(1)

    def over(self) -> None:
        """What comes now is work."""
        stopped, self._clocks = self._clocks, []
        for clock in stopped:
            clock._turn(-1)


@contextmanager
def waiting(clock: Clock | None = None) -> Iterator[Wait]:
    """The block waits for others; clocks around it stand still until its end or `Wait.over`.

    Whoever lets what is under another `clock` wait names it.
    """
    wait = Wait(clock or _innermost.get())
    try:
        yield wait
    finally:
        wait.over()


TICK = 0.02
"""Seconds between two looks at the event loop."""


class Lag:
    """How late the event loop was: what runs in it for long holds up everything else.

    It is an async context manager that looks at the loop every `TICK` seconds.
    """

    def __init__(self) -> None:
        self._worst = 0.0
        self._since = 0.0

    async def __aenter__(self) -> Lag:
        self._loop = asyncio.get_running_loop()
        self._watch = asyncio.create_task(self._look())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watch.cancel()

    def worst(self) -> float:
        """The most seconds that something waited for the loop since the last call of this."""
        worst, self._worst, self._since = self._worst, 0.0, self._loop.time()
        return worst

    def _measure(self, due: float) -> None:
        self._worst = max(self._worst, self._loop.time() - max(due, self._since))

    async def _look(self) -> None:
        while True:
            due = self._loop.time() + TICK
            await asyncio.sleep(TICK)
            self._measure(due)
