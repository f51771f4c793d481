"""Places for a limited number of requests at once; the others wait by priority."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from axpo.clock import waiting


class Places:
    """`count` places: the waiting request of the highest priority is next, then the first to come.

    Places belong to one event loop.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = count
        self._order = itertools.count()
        self._queue: list[tuple[int, int, asyncio.Future[None]]] = []

    @asynccontextmanager
    async def take(self, priority: int) -> AsyncIterator[None]:
        """Hold a place; the time until it is free is `waiting`."""
        with waiting():
            await self._enter(priority)
        try:
            yield
        finally:
            self._leave()

    async def _enter(self, priority: int) -> None:
        if self._free:  # then nobody waits
            self._free -= 1
            return
        place = asyncio.get_running_loop().create_future()
        heapq.heappush(self._queue, (-priority, next(self._order), place))
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # it was given one at the same moment
                self._leave()
            raise

    def _leave(self) -> None:
        """Give the place to whoever is next."""
        while self._queue:
            place = heapq.heappop(self._queue)[2]
            if not place.done():
                place.set_result(None)
                return
        self._free += 1
