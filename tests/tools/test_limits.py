"""Limits around a tool's calls: places, pace, deadline, retries, what is shown of a result."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from axpo.config import LimitSettings
from axpo.errors import InfraError, ModelError
from axpo.pictures import MAX_ASPECT
from axpo.tools import toolbox
from axpo.tools.base import Observation, ToolContext, View
from axpo.tools.limits import cut_characters, cut_tokens, shown
from axpo.tools.runner import CallResult, run_call
from axpo.tools.stats import CallOutcome, ToolStats
from axpo.tools.toolbox import Toolbox
from axpo.tree import CallStatus
from tests.support.rollouts import FakeTool
from tests.support.tiny import tiny_checkpoint

Body = Callable[[], Awaitable[Observation]]


def box(body: Body, tool_timeout: float = 5.0, **limits: Any) -> Toolbox:
    async def run(arguments: dict[str, Any], context: ToolContext) -> Observation:
        return await body()

    tool = FakeTool(run)
    tool.timeout = tool_timeout
    return Toolbox({"look": tool}, {"look": LimitSettings(**limits)})


async def call(tools: Toolbox) -> CallResult:
    return await run_call(tools, "look", {}, ToolContext())


def calls(tools: Toolbox, n: int = 1) -> list[CallResult]:
    async def scenario() -> list[CallResult]:
        return await asyncio.wait_for(asyncio.gather(*(call(tools) for _ in range(n))), 30)

    return asyncio.run(scenario())


class Busy:
    """A body that notes how many of its calls run at once."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.now, self.most = seconds, 0, 0

    async def __call__(self) -> Observation:
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(self.seconds)
        self.now -= 1
        return Observation("done")


class Failing:
    """A body that fails `times` times with `error`."""

    def __init__(self, times: int, error: Exception) -> None:
        self.times, self.error, self.calls = times, error, 0

    async def __call__(self) -> Observation:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error
        return Observation("done")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolbox, "RETRY_WAIT", 0.001)
    monkeypatch.setattr(toolbox, "RETRY_WAIT_MAX", 0.01)
    monkeypatch.setattr(toolbox, "GRACE", 0.05)


def test_no_more_calls_run_at_once_than_there_are_places() -> None:
    body = Busy(0.01)
    tools = box(body, concurrency=2)
    assert {r.status for r in calls(tools, 7)} == {CallStatus.OK}
    assert body.most == 2
    assert tools.stats["look"].seconds_queued > 0


def test_waiting_for_a_place_is_not_the_tools_time() -> None:
    waits = box(Busy(0.3), concurrency=1, timeout=1)
    assert {r.status for r in calls(waits, 4)} == {CallStatus.OK}
    assert waits.stats["look"].seconds_queued > 1


def test_a_retry_that_waits_for_the_pace_is_not_late() -> None:
    """Four calls that each need a second attempt: at 4 a second the last one comes 1 s late."""
    failed: set[str] = set()

    async def each(arguments: dict[str, Any], context: ToolContext) -> Observation:
        if context.trajectory not in failed:
            failed.add(context.trajectory)
            raise InfraError("down")
        return Observation("done")

    limits = LimitSettings(calls_per_second=4, retries=1, timeout=0.8)
    tools = Toolbox({"look": FakeTool(each)}, {"look": limits})

    async def main() -> list[CallResult]:
        contexts = [ToolContext(trajectory=str(i)) for i in range(4)]
        return await asyncio.gather(*(run_call(tools, "look", {}, c) for c in contexts))

    assert [r.status for r in asyncio.run(main())] == [CallStatus.OK] * 4
    assert tools.stats["look"].retries == 4


def test_calls_keep_to_the_pace_after_a_burst() -> None:
    starts: list[float] = []

    async def note() -> Observation:
        starts.append(time.monotonic())
        return Observation()

    calls(box(note, calls_per_second=20), 26)
    assert len(starts) == 26
    assert starts[-1] - starts[0] >= 0.25  # 20 at once, 6 more at 20 a second


def test_a_call_that_is_cancelled_as_it_waits_for_its_turn_leaves_its_place() -> None:
    async def scenario() -> None:
        tools = box(Busy(0), concurrency=1, calls_per_second=1)
        assert (await call(tools)).status is CallStatus.OK
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(call(tools), 0.05)
        assert (await call(tools)).status is CallStatus.OK

    asyncio.run(asyncio.wait_for(scenario(), 30))


@pytest.mark.parametrize(
    ("error", "times", "ran", "status"),
    [
        (InfraError("down"), 2, 3, CallStatus.OK),
        (InfraError("down"), 9, 3, CallStatus.INFRA_ERROR),
        (InfraError("gone", retryable=False), 9, 1, CallStatus.INFRA_ERROR),
        (ModelError("wrong"), 1, 1, CallStatus.MODEL_ERROR),
        (ZeroDivisionError(), 1, 1, CallStatus.INFRA_ERROR),
    ],
)
def test_only_faults_of_ours_are_tried_again(
    error: Exception, times: int, ran: int, status: CallStatus
) -> None:
    body = Failing(times, error)
    tools = box(body, retries=2)
    assert calls(tools)[0].status is status
    assert (body.calls, tools.stats["look"].retries) == (ran, ran - 1)


def test_nothing_is_tried_again_by_default() -> None:
    body = Failing(1, InfraError("down"))
    assert calls(box(body))[0].error == "look: down"
    assert body.calls == 1


def test_attempts_end_with_the_deadline() -> None:
    tools = box(Failing(10**9, InfraError("down")), retries=10**6, timeout=0.2)
    assert calls(tools)[0].error == "look: no result after 0.2 s"
    assert tools.stats["look"].outcomes == {CallOutcome.TIMEOUT: 1}


def test_a_recipes_limit_overrides_the_tools_own_one_by_one() -> None:
    tool = FakeTool(Busy(0))  # pyright: ignore[reportArgumentType]
    tool.limits = LimitSettings(concurrency=3, retries=2)
    lane = Toolbox({"look": tool}, {"look": LimitSettings(retries=5, timeout=7)}).lanes["look"]
    assert (lane.limits.concurrency, lane.limits.retries, lane.timeout) == (3, 5, 7)
    with pytest.raises(ValueError, match="limits of 'zoom': the tools are look"):
        Toolbox({"look": tool}, {"zoom": LimitSettings()})


def test_a_call_that_swallows_its_cancellation_is_given_up_and_blocks_nobody() -> None:
    free = asyncio.Event()

    async def deaf() -> Observation:
        while not free.is_set():
            try:
                await free.wait()
            except asyncio.CancelledError:
                continue
        return Observation("late")

    async def scenario() -> None:
        tools = box(deaf, concurrency=1, timeout=0.05, max_stuck=2)
        lane = tools.lanes["look"]
        try:
            late = [await call(tools) for _ in range(2)]
            assert [r.error for r in late] == ["look: no result after 0.05 s"] * 2
            assert (lane.stuck, lane.stats.given_up) == (2, 2)
            refused = await call(tools)
            assert refused.error == "look: 2 calls were given up and still run"
        finally:
            free.set()
        while lane.stuck:
            await asyncio.sleep(0.01)
        assert (await call(tools)).status is CallStatus.OK

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_cancellation_reaches_the_tool_before_it_goes_on() -> None:
    seen: list[str] = []

    async def slow() -> Observation:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)
            seen.append("cleared up")
            raise
        return Observation()

    async def scenario() -> None:
        tools = box(slow)
        task = asyncio.create_task(call(tools))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert seen == ["cleared up"]
        assert tools.stats["look"].outcomes == {CallOutcome.CANCELLED: 1}
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(scenario())


def test_a_tool_that_cancels_itself_does_not_cancel_the_trajectory() -> None:
    async def odd() -> Observation:
        raise asyncio.CancelledError

    assert calls(box(odd))[0].error == "look: the tool cancelled its own call"


def test_long_text_loses_its_middle_and_says_so() -> None:
    assert cut_characters("a" * 50, 50) == "a" * 50
    text = "".join(chr(ord("a") + i % 26) for i in range(1000))
    cut = cut_characters(text, 100)
    assert len(cut) <= 100
    head, tail = cut.split("\n[... ")[0], cut.split(" ...]\n")[1]
    assert text.startswith(head) and text.endswith(tail) and head and tail
    assert f"[... {1000 - len(head) - len(tail)} characters left out ...]" in cut


class Bytes:
    """Counts a byte as a token."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode(errors="replace")


def test_long_text_is_cut_by_the_models_tokens() -> None:
    assert cut_tokens("ä" * 20, 40, Bytes()) == "ä" * 20
    for limit in (60, 61, 62, 63):
        cut = cut_tokens("ä" * 500, limit, Bytes())
        assert len(cut.encode()) <= limit
        assert "\ufffd" not in cut and cut.startswith("ä") and cut.endswith("ä")
        assert "tokens left out" in cut

    async def long() -> Observation:
        return Observation("ä" * 500)

    tools = box(long, max_tokens=60)
    result = asyncio.run(run_call(tools, "look", {}, ToolContext(), Bytes()))
    assert len(result.observation.text.encode()) <= 60


def test_a_large_picture_is_shrunk_and_its_original_kept() -> None:
    whole = View.whole(Image.new("RGB", (400, 100)))
    small = shown(whole, 10_000)
    assert small.image.size == (200, 50)
    assert (small.original, small.box) == (whole.image, (0, 0, 400, 100))

    async def show() -> Observation:
        return Observation(views=(whole, View.whole(Image.new("RGB", (10, 10)))))

    (result,) = calls(box(show, max_pixels=10_000))
    assert [v.image.size for v in result.observation.views] == [(200, 50), (10, 10)]


@pytest.mark.parametrize("size", [(201, 2), (2, 201), (0, 5)])
def test_a_picture_that_no_model_takes_is_told_to_the_model(size: tuple[int, int]) -> None:
    """The call's arguments decide what is cut out: else a policy could leave the statistics."""

    async def thin() -> Observation:
        return Observation(views=(View.whole(Image.new("RGB", size)),))

    (result,) = calls(box(thin))
    assert result.status is CallStatus.MODEL_ERROR
    width, height = size
    says = f"picture 0 of the result is {width} x {height}: expected sides of at most 100:1"
    assert result.observation.text == f"Error: {says}"


@pytest.mark.parametrize(
    ("size", "limit"),
    [((4000, 40), 65_536), ((40, 4000), 65_536), ((30_000, 300), 4_194_304), ((999, 10), 100)],
)
def test_a_picture_that_is_shrunk_stays_one_that_a_model_takes(
    size: tuple[int, int], limit: int
) -> None:
    async def thin() -> Observation:
        return Observation(views=(View.whole(Image.new("RGB", size)),))

    (result,) = calls(box(thin, max_pixels=limit))
    assert result.status is CallStatus.OK
    width, height = result.observation.views[0].image.size
    assert width * height <= limit and max(width, height) <= MAX_ASPECT * min(width, height)
    tiny_checkpoint().processor.pixels(
        "a picture", result.observation.views[0].image
    )  # raised ValueError


def test_a_tools_pictures_are_shown_as_a_viewer_shows_them() -> None:
    drawn = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    deep = Image.fromarray(np.array([[0, 32896]], np.uint16))
    cut = View(drawn.crop((1, 0, 2, 1)), drawn, (1, 0, 2, 1))

    async def show() -> Observation:
        views = (View.whole(drawn), View.whole(deep), cut, View(deep, deep, (0, 0, 2, 1)))
        return Observation(views=views)

    (result,) = calls(box(show))
    seen = [np.asarray(view.image)[0, :, 0].tolist() for view in result.observation.views]
    assert seen == [[255, 255], [0, 128], [255], [0, 128]]
    originals = [view.original for view in result.observation.views]
    assert [p.mode for p in originals] == ["RGB"] * 4
    assert np.asarray(originals[2])[0, 0].tolist() == [255] * 3


def test_a_photo_that_its_exif_turns_is_upright_or_refused() -> None:
    photo = Image.new("RGB", (4, 2), "red")
    photo.getexif()[0x0112] = 6  # turn right

    async def whole() -> Observation:
        return Observation(views=(View.whole(photo),))

    async def cut() -> Observation:
        return Observation(views=(View(photo.crop((0, 0, 2, 2)), photo, (0, 0, 2, 2)),))

    (result,) = calls(box(whole))
    (view,) = result.observation.views
    assert (view.image.size, view.box) == ((2, 4), (0, 0, 2, 4))
    assert calls(box(cut))[0].error == (
        "look: picture 0 of the result: its original is turned by EXIF; "
        "use ImageOps.exif_transpose first"
    )


def test_text_of_tools_is_what_a_tokenizer_takes() -> None:
    async def half() -> Observation:
        return Observation("a \ud83d b")

    async def wrong() -> Observation:
        raise ModelError("bad \ud800 " + "x" * 200_000)

    results: list[CallResult] = []
    for body in (half, wrong):
        run = run_call(box(body, max_tokens=100), "look", {}, ToolContext(), Bytes())
        results.append(asyncio.run(run))
    assert (results[0].status, results[0].observation.text) == (CallStatus.OK, "a ? b")
    assert results[1].status is CallStatus.MODEL_ERROR
    assert results[1].observation.text.startswith("Error: bad ? xxx")
    assert len(results[1].observation.text) <= len("Error: ") + 100
    assert results[1].error is not None and len(results[1].error) <= 100


def test_figures_count_outcomes_and_rank_latencies() -> None:
    async def known() -> Observation:
        return Observation(cached=True)

    tools = box(known)
    calls(tools, 3)
    figures = tools.stats["look"].counters()
    assert (figures["calls"], figures["ok"], figures["cache_hits"]) == (3, 3, 3)
    assert set(ToolStats().counters()) == set(figures)
    stats = ToolStats()
    assert stats.percentiles() == {}
    stats.latencies.extend([float(n) for n in range(100, 0, -1)])
    assert stats.percentiles() == {"seconds_p50": 51.0, "seconds_p95": 96.0}
