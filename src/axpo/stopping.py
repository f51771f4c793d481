"""How a command ends early: Ctrl-C, SIGTERM, a closed terminal, a reader that is gone.

A signal asks for the stop, and `Stopped` is raised where nothing is half done: usually at once, in
an event loop (`run`) by cancelling its work, and after a block that must be whole (`held`) at its
owner's next `check`. `Stopped` is no `Exception`, so that nothing takes it for an error. A second
signal ends the process at once.
"""

from __future__ import annotations

import asyncio
import gc
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from axpo.errors import Stopped

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGPIPE")
TOGETHER = 0.5
"""Seconds within which several signals are one request: `timeout` sends two, and a terminal and the
process that started the command may send one each."""
SHOW_CURSOR = b"\x1b[?25h"

Result = TypeVar("Result")


class _Request:
    """The stop that was asked for, if any, and the blocks that it has to wait for."""

    number: int | None = None
    at = 0.0
    held = 0
    cancel: Callable[[], object] | None = None
    last_acts: list[Callable[[], object]] = []  # noqa: RUF012 - one object, never copied


_request = _Request()


def listen() -> None:
    """Let signals ask this process to stop, from now on. Call it once, in the main thread.

    A signal that the process was started to ignore (`nohup`) stays ignored, except SIGPIPE, which
    Python itself ignores.
    """
    for name in SIGNALS:
        number = getattr(signal, name, None)  # Windows has two of them
        if number is None:
            continue
        if name == "SIGPIPE" or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _asked)


def let_go() -> None:
    """Give signals back their usual effect on a process, from now on."""
    for name in SIGNALS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is _asked:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def listening() -> Iterator[None]:
    """Let Ctrl-C ask for a stop while the context lasts, if nobody else listens: a function that is
    called from Python then ends like the command, with `KeyboardInterrupt`."""
    ours = signal.getsignal(signal.SIGINT)
    if ours is _asked or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, _asked)
    try:
        yield
    except Stopped as stop:
        raise KeyboardInterrupt(str(stop)) from None
    finally:
        signal.signal(signal.SIGINT, ours)
        _request.number = None


def check() -> None:
    """Raise `Stopped` where a stop was asked for."""
    if _request.number is not None:
        raise Stopped(_request.number)


@contextmanager
def held() -> Iterator[None]:
    """Let the block end whole: a stop that is asked for meanwhile waits for the next `check`."""
    _request.held += 1
    try:
        yield
    finally:
        _request.held -= 1


@contextmanager
def last_act(act: Callable[[], object]) -> Iterator[None]:
    """While the context lasts, do `act` if a second signal ends the process at once."""
    _request.last_acts.append(act)
    try:
        yield
    finally:
        _request.last_acts.remove(act)


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run `work` as `asyncio.run` does, in another thread if an event loop runs in this one.

    A stop cancels `work`, and `Stopped` is raised once it has cleaned up.
    """

    async def cancellable() -> Result:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        outer = _request.cancel
        _request.cancel = lambda: loop.call_soon_threadsafe(task.cancel)
        try:
            return await work
        finally:
            _request.cancel = outer

    # What lives now outlives the loop. A full collection of garbage need not walk it (100 ms with
    # torch imported), during which the loop would stand still.
    outermost = gc.get_freeze_count() == 0
    gc.freeze()
    try:
        if not _in_a_loop():
            return asyncio.run(cancellable())
        with ThreadPoolExecutor(max_workers=1) as thread:  # a notebook's cell
            return thread.submit(asyncio.run, cancellable()).result()
    except (asyncio.CancelledError, CancelledError):
        check()
        raise
    finally:
        if outermost:
            gc.unfreeze()


def _in_a_loop() -> bool:
    """Whether an event loop runs in this thread already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _asked(number: int, _: object) -> None:
    """A signal came: note it, and stop unless something has to become whole first."""
    if number == getattr(signal, "SIGPIPE", None) and not _reader_gone():
        return  # a child's pipe or a socket: its writer gets an error
    now = time.monotonic()
    if _request.number is None:
        _request.number, _request.at = number, now
    elif number == getattr(signal, "SIGPIPE", None) or now - _request.at < TOGETHER:
        return
    else:
        _end_now(number)
    if _request.held:
        return
    if _request.cancel is not None:
        _request.cancel()
    else:
        raise Stopped(number)


def _reader_gone() -> bool:
    """Whether nobody reads the output any more (`axpo show ... | head`)."""
    for descriptor in (1, 2):
        poll = select.poll()
        poll.register(descriptor, 0)
        if any(events & select.POLLERR for _, events in poll.poll(0)):
            return True
    return False


def _end_now(number: int) -> None:
    """Die of the signal; only the terminal is cleaned up, and the acts of `last_act` are done."""
    for act in _request.last_acts:
        act()
    if os.isatty(2):
        os.write(2, SHOW_CURSOR + b"\n")
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
