"""Places for a limited number of requests at once; the other requests wait by priority."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from axpo.clock import waiting


class Places:
    """`count` places for requests, on one event loop.

    The waiting request of the highest priority gets the next place; among equals, the first.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = count
        self._order = itertools.count()
        self._queue: list[tuple[int, int, asyncio.Future[None]]] = []

    @asynccontextmanager
    async def take(self, priority: int) -> AsyncIterator[None]:
        """Hold a place; the time until one is free counts as `waiting`."""
        with waiting():
            await self._enter(priority)
        try:
            yield
        finally:
            self._leave()

    async def _enter(self, priority: int) -> None:
        if self._free:  # Then nobody waits.
            self._free -= 1
            return
        place = asyncio.get_running_loop().create_future()
        heapq.heappush(self._queue, (-priority, next(self._order), place))
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # It got a place at the same moment.
                self._leave()
            raise

    def _leave(self) -> None:
        """Give the place to the next request."""
        while self._queue:
            place = heapq.heappop(self._queue)[2]
            if not place.done():
                place.set_result(None)
                return
        self._free += 1
