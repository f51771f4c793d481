"""Plain functions beside the event loop: a user's function may block, the loop must not.

A thread cannot be stopped. One that goes on after whoever waited for it was cancelled is counted
until it ends, and dies with the process.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

Result = TypeVar("Result")


class Threads:
    """Threads called `name`; `stuck` of them still run though nobody waits for them any more."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.stuck = 0

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a user's function returns: an `async` one runs on the event loop, a plain one in a
        thread. Raises what it raises, `SystemExit` as a `RuntimeError`."""
        try:
            if inspect.iscoroutinefunction(function):
                return await function(*arguments)
            value = await self.run(lambda: function(*arguments))
            return await value if isinstance(value, Awaitable) else value
        except SystemExit as error:  # would end the whole run
            raise RuntimeError(f"{function.__name__} called exit") from error

    async def run(self, work: Callable[[], Result]) -> Result:
        """What `work` returns, from a thread of its own; raises what it raises, `SystemExit` and
        the like as a `RuntimeError`."""
        loop = asyncio.get_running_loop()
        over: asyncio.Future[Result] = loop.create_future()
        run = contextvars.copy_context().run

        def finish(results: list[Result], error: BaseException | None) -> None:
            if over.cancelled():
                self.stuck -= 1
            elif error is not None:
                over.set_exception(_raisable(error))
            else:
                over.set_result(results[0])

        def body() -> None:
            results: list[Result] = []
            error = None
            try:
                results.append(run(work))
            except BaseException as raised:
                error = raised
            try:
                loop.call_soon_threadsafe(finish, results, error)
            except RuntimeError:  # the loop is closed: the run is over
                self.stuck -= 1

        threading.Thread(target=body, name=self._name, daemon=True).start()
        try:
            return await over
        except asyncio.CancelledError:
            self.stuck += over.cancelled()  # else the thread has ended already
            raise


def _raisable(error: BaseException) -> BaseException:
    """A future cannot hold `StopIteration`, and a thread's exit must not end the loop."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    return RuntimeError(f"{type(error).__name__}: {error}")
