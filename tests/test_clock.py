"""Clocks measure work: they stand still while what they measure waits for others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

import pytest

from axpo.clock import Clock, Lag, Wait, waiting
from axpo.engines.places import Places


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, timeout=30))


async def wait(seconds: float) -> None:
    with waiting():
        await asyncio.sleep(seconds)


def test_work_is_bounded() -> None:
    async def main() -> None:
        clock = Clock(0.05)
        with pytest.raises(TimeoutError):
            async with clock:
                await asyncio.sleep(20)
        assert clock.expired
        assert 0.05 <= clock.worked < 10 and clock.waited == 0

    run(main())


def test_waiting_does_not_count_and_what_is_left_still_does() -> None:
    async def main() -> None:
        clock = Clock(0.3)
        with pytest.raises(TimeoutError):
            async with clock:
                for _ in range(3):
                    await wait(0.2)
                    await asyncio.sleep(0.05)
                await asyncio.sleep(20)
        assert clock.waited >= 0.6
        assert 0.3 <= clock.worked < 10

    run(main())


def test_seconds_that_begin_anew() -> None:
    async def main() -> None:
        clock = Clock(0.3)
        with pytest.raises(TimeoutError):
            async with clock:
                for _ in range(4):
                    await asyncio.sleep(0.1)
                    clock.again()
                await wait(0.4)
                await asyncio.sleep(20)
        assert 0.7 <= clock.worked < 10 and clock.waited >= 0.4

    run(main())


def test_every_clock_around_a_wait_stands_still_and_no_other() -> None:
    async def main() -> None:
        outer, inner, beside = Clock(20), Clock(20), Clock(20)

        async def measured() -> None:
            async with inner:
                await asyncio.create_task(wait(0.1))  # a task is measured as what started it

        async with outer, asyncio.TaskGroup() as tasks:
            tasks.create_task(measured())
        async with beside:
            await asyncio.sleep(0.01)
        assert outer.waited >= 0.1 and inner.waited >= 0.1
        assert beside.waited == 0

    run(main())


def test_a_clock_stands_still_until_the_last_of_several_waits_is_over() -> None:
    async def main() -> None:
        clock = Clock(0.2)
        async with clock:
            await asyncio.gather(wait(0.05), wait(0.4), wait(0.2))
        assert not clock.expired and clock.waited >= 0.4 and clock.worked < 0.2

    run(main())


def test_a_wait_may_end_before_its_block_and_ends_once() -> None:
    async def main() -> None:
        clock = Clock(20)
        async with clock:
            with waiting() as over:
                over.over()
                over.over()
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.05)
        assert clock.worked >= 0.1 and clock.waited < 0.05

    run(main())


def test_a_wait_that_outlives_its_clock_changes_nothing() -> None:
    async def main() -> None:
        waits: list[Wait] = []
        clock = Clock(20)
        async with clock:
            waits.append(Wait(clock))
        before = clock.waited
        await asyncio.sleep(0.02)
        waits[0].over()
        assert clock.waited == before
        with waiting():  # and without any clock there is nothing to stop
            pass

    run(main())


def test_cancellation_is_no_time_out() -> None:
    async def main() -> None:
        clock = Clock(20)

        async def work() -> None:
            async with clock:
                await wait(20)

        task = asyncio.create_task(work())
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not clock.expired

    run(main())


def test_places_go_by_priority_then_by_arrival() -> None:
    async def main() -> None:
        places, order = Places(2), list[str]()

        async def one(name: str, priority: int) -> None:
            async with places.take(priority):
                await asyncio.sleep(0.01)
                order.append(name)

        names = [("a", 0), ("b", 0), ("c", 0), ("d", 2), ("e", 1), ("f", 2)]
        await asyncio.gather(*(one(*name) for name in names))
        assert order == ["a", "b", "d", "f", "e", "c"]

    run(main())


@pytest.mark.parametrize("late", [False, True], ids=["while it waits", "as it gets its place"])
def test_a_cancelled_one_takes_no_place(late: bool) -> None:
    async def main() -> None:
        places = Places(1)
        free = asyncio.Event()

        async def hold() -> None:
            async with places.take(0):
                await free.wait()
            if late:  # the place is `gone`'s now, which has not run since
                gone.cancel()

        async def want() -> str:
            async with places.take(0):
                return "got it"

        holder = asyncio.create_task(hold())
        await asyncio.sleep(0)
        gone, stays = asyncio.create_task(want()), asyncio.create_task(want())
        await asyncio.sleep(0)
        free.set()
        if not late:
            gone.cancel()
        assert await stays == "got it"
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert await want() == "got it"
        await holder

    run(main())


def test_lag_is_what_held_up_the_loop_since_it_was_asked_for() -> None:
    async def main() -> None:
        async with Lag() as lag:
            await asyncio.sleep(0.1)
            time.sleep(0.5)
            await asyncio.sleep(0.1)
            assert 0.45 < lag.worst() < 10
            time.sleep(0.5)
            lag.worst()  # what comes before it is left out
            await asyncio.sleep(0)
            assert lag.worst() < 0.45

    run(main())
