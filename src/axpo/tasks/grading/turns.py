"""Turns on the event loop: many rollouts end at once, and reading each takes some milliseconds."""

from __future__ import annotations

import asyncio
from weakref import WeakKeyDictionary

_LOCKS: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()


async def turn() -> None:
    """Wait until one may work on the event loop: one caller goes on per round of the loop, so that
    all else that is ready runs between two of them."""
    async with _LOCKS.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
        await asyncio.sleep(0)
