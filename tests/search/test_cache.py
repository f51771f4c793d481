"""Recorded answers: asked once, replayed by anyone, paid for within a budget."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest

from axpo.errors import BudgetSpent, SourceFault, UserError
from axpo.recorded import cache as cache_module
from axpo.recorded.cache import AnswerCache, Mode
from axpo.rollout.paths import start_path
from axpo.rollout.sampling import new_group, sample_group
from axpo.search.base import Hit, PageText, Results, TextSource
from axpo.search.recorded import RecordedSearch
from axpo.tools.base import ToolContext
from axpo.tools.runner import run_call
from axpo.tools.toolbox import Toolbox
from axpo.tools.web_extractor import WebExtractorTool
from axpo.tools.web_search import WebSearchTool
from axpo.tree import CallStatus, StopReason, Trajectory
from tests.support.rollouts import FakeEngine, decode, example, make_agent


class Counting(TextSource):
    """A paid backend that counts its calls and answers when `gate` is open."""

    identity = "counting"
    paid = True

    def __init__(self, fault: Exception | None = None) -> None:
        self.asked: list[str] = []
        self.fault = fault
        self.started = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def start(self) -> None:
        self.started = True

    async def search(self, query: str, results: int) -> Results[Hit]:
        self.asked.append(query)
        await self.gate.wait()
        if self.fault is not None:
            raise self.fault
        return Results([Hit(f"{query} {len(self.asked)}", "u", "s")][:results])

    async def page(self, url: str) -> PageText | None:
        self.asked.append(url)
        return PageText("title", url, "text") if url == "known" else None

    async def close(self) -> None:
        pass


def recorded(
    path: Path, backend: Counting, mode: Mode = "record", budget: int | None = None
) -> tuple[RecordedSearch, AnswerCache]:
    cache = AnswerCache(path, mode, budget)
    return RecordedSearch(backend, cache), cache


def counts(cache: AnswerCache) -> tuple[float, float, float, float]:
    """The calls of all kinds: recorded before, not recorded, shared, paid."""
    found = [cache.figures(kind) for kind in list(cache.kinds)]
    names = ("recorded", "not_recorded", "shared", "paid")
    recorded, not_recorded, shared, paid = (sum(f[name] for f in found) for name in names)
    return recorded, not_recorded, shared, paid


def spent(path: Path) -> int:
    connection = sqlite3.connect(path)
    (calls,) = connection.execute("SELECT calls FROM spent").fetchone()
    connection.close()
    return calls


def test_an_answer_is_asked_once_and_replayed_without_the_backend(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "answers.db"

    async def record() -> None:
        backend = Counting()
        search, cache = recorded(path, backend)
        await search.start()
        first = await search.search(" Two  words", 5)
        assert first == Results([Hit(" Two  words 1", "u", "s")], cached=False)
        assert await search.search("two words", 5) == Results(first.items, cached=True)
        assert (await search.search("two words", 3)).cached is False
        assert await search.page("known") == PageText("title", "known", "text")
        assert await search.page("KNOWN") is None
        assert backend.asked == [" Two  words", "two words", "known", "KNOWN"]
        assert counts(cache) == (1, 4, 0, 4)
        await search.close()

    async def replay() -> None:
        backend = Counting()
        search, cache = recorded(path, backend, "replay")
        await search.start()
        assert (await search.search("TWO words ", 5)).items == [Hit(" Two  words 1", "u", "s")]
        assert await search.page("known") == PageText("title", "known", "text", cached=True)
        assert await search.page("KNOWN") is None
        assert await search.search("other", 5) == Results([])
        assert await search.page("elsewhere") is None
        assert (backend.started, backend.asked) == (False, [])
        assert counts(cache) == (3, 2, 0, 0)
        await search.close()

    asyncio.run(record())
    asyncio.run(replay())


def test_a_question_that_was_not_recorded_is_no_way_out(tmp_path: Path) -> None:
    """The policy reads that nothing was found; its answer is scored, and the question counted."""

    async def record() -> None:
        search, _ = recorded(tmp_path / "a.db", Counting())
        await search.search("known", 5)
        await search.close()

    asyncio.run(record())
    search, _ = recorded(tmp_path / "a.db", Counting(), "replay")
    tools: Any = {t.name: t for t in (WebSearchTool(search, 5, 80), WebExtractorTool(search, 80))}
    calls = (
        '<tool_call>{"name": "web_search", "arguments": {"query": "new"}}</tool_call>'
        '<tool_call>{"name": "web_extractor", "arguments": {"url": "new"}}</tool_call>'
    )
    agent = make_agent(FakeEngine({"r/t1": f"</think>{calls}"}, "</think>\n\nAnswer: 8"), tools)

    async def run() -> Trajectory:
        group = new_group(agent.rendering, example(), "g")
        try:
            return await agent.run(start_path(group), "r", 0)
        finally:
            await agent.close()

    trajectory = asyncio.run(run())
    assert (trajectory.stop, trajectory.reward) == (StopReason.ANSWER, 0.0)
    assert [c.status for c in trajectory.calls] == [CallStatus.OK, CallStatus.MODEL_ERROR]
    text = decode(trajectory.segments[1].tokens)
    assert "No results." in text and "expected the url of a search result" in text
    assert agent.tools.lanes["web_search"].counters()["not_recorded"] == 1
    assert agent.tools.lanes["web_extractor"].counters()["not_recorded"] == 1


def test_a_replay_with_other_settings_stops_instead_of_finding_nothing(tmp_path: Path) -> None:
    async def run() -> None:
        search, _ = recorded(tmp_path / "a.db", Counting())
        await search.search("x", 5)
        await search.close()
        search, _ = recorded(tmp_path / "a.db", Counting(), "replay")
        with pytest.raises(UserError, match=r"search answers with .*5.*, not with .*7"):
            await search.search("x", 7)
        assert await search.page("never recorded") is None
        await search.close()
        other = Counting()
        other.identity = "another"
        search, _ = recorded(tmp_path / "a.db", other, "replay")
        with pytest.raises(UserError, match=r"answers of \['counting'\], not of 'another'"):
            await search.search("x", 5)
        await search.close()

    asyncio.run(run())


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_is_gone_ends_the_run_before_more_is_paid(
    tmp_path: Path, replaced: bool
) -> None:
    path = tmp_path / "a.db"

    async def run() -> None:
        backend = Counting()
        search, _ = recorded(path, backend)
        await search.search("x", 5)
        backend.gate.clear()
        under_way = asyncio.create_task(search.search("y", 5))
        while len(backend.asked) < 2:
            await asyncio.sleep(0.001)
        path.rename(tmp_path / "moved.db")
        if replaced:
            AnswerCache(path, "record")
        says = rf"a\.db was {'replaced' if replaced else 'deleted'} while its answers were in use"
        with pytest.raises(UserError, match=says):
            await search.search("z", 5)
        backend.gate.set()
        with pytest.raises(UserError, match=says):  # paid for, and said to be lost
            await under_way
        assert backend.asked == ["x", "y"]
        await search.close()

    asyncio.run(run())


def test_a_deleted_file_is_not_made_anew_by_who_comes_late(tmp_path: Path) -> None:
    backend = Counting()
    search, _ = recorded(tmp_path / "a.db", backend)
    (tmp_path / "a.db").unlink()  # before any thread has opened it
    with pytest.raises(UserError, match=r"a\.db was deleted while its answers were in use"):
        asyncio.run(search.search("x", 5))
    assert not backend.asked
    assert not (tmp_path / "a.db").exists()


@pytest.mark.parametrize("damage", ["{", "[1]", '[{"title": 1}]', "[" * 5000])
def test_a_damaged_row_is_asked_again_or_finds_nothing(tmp_path: Path, damage: str) -> None:
    async def ask(mode: Mode) -> Results[Hit]:
        search, _ = recorded(tmp_path / "a.db", Counting(), mode)
        found = await search.search("x", 5)
        await search.close()
        return found

    async def life() -> None:
        await ask("record")
        with closing(sqlite3.connect(tmp_path / "a.db")) as file:
            file.execute("UPDATE answers SET answer = ?", (damage,))
            file.commit()
        assert await ask("replay") == Results([])
        assert await ask("record") == Results([Hit("x 1", "u", "s")], cached=False)
        assert await ask("replay") == Results([Hit("x 1", "u", "s")], cached=True)

    asyncio.run(life())
    assert spent(tmp_path / "a.db") == 2


def test_a_file_in_a_folder_that_cannot_be_written_is_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask(mode: Mode) -> None:
        search, _ = recorded(tmp_path / "a.db", Counting(), mode)
        await search.search("x", 5)
        await search.close()

    asyncio.run(ask("record"))
    monkeypatch.setattr("axpo.recorded.database.os.access", lambda *_: False)
    before = {file.name for file in tmp_path.iterdir()}
    asyncio.run(ask("replay"))
    assert {file.name for file in tmp_path.iterdir()} == before == {"a.db"}


def test_equal_questions_at_once_make_one_call(tmp_path: Path) -> None:
    async def run() -> None:
        backend = Counting()
        backend.gate.clear()
        search, cache = recorded(tmp_path / "a.db", backend)
        tasks = [asyncio.create_task(search.search("same", 5)) for _ in range(20)]
        other = asyncio.create_task(search.search("other", 5))
        while len(backend.asked) < 2:
            await asyncio.sleep(0.001)
        tasks[0].cancel()  # the first asker: the call is its task's
        tasks[7].cancel()
        await asyncio.sleep(0.01)
        backend.gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await other
        assert sum(isinstance(result, asyncio.CancelledError) for result in results) == 2
        assert sum(isinstance(result, Results) for result in results) == 18
        assert sorted(backend.asked) == ["other", "same"]
        assert counts(cache) == (0, 2, 19, 2)
        await search.close()

    asyncio.run(run())


def test_an_answer_paid_for_is_kept_though_nobody_waits(tmp_path: Path) -> None:
    async def run() -> None:
        backend = Counting()
        backend.gate.clear()
        search, _ = recorded(tmp_path / "a.db", backend)
        task = asyncio.create_task(search.search("x", 5))
        while not backend.asked:
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        backend.gate.set()
        assert (await search.search("x", 5)).items[0].title == "x 1"
        await search.close()

    asyncio.run(run())


def test_a_shared_fault_reaches_all_and_is_not_kept(tmp_path: Path) -> None:
    async def run() -> None:
        backend = Counting(SourceFault("busy", retryable=True))
        search, cache = recorded(tmp_path / "a.db", backend)
        both = await asyncio.gather(
            search.search("x", 5), search.search("x", 5), return_exceptions=True
        )
        assert [str(error) for error in both] == ["busy", "busy"]
        assert (len(backend.asked), counts(cache), spent(tmp_path / "a.db")) == (1, (0, 1, 1, 0), 0)
        backend.fault = None
        assert (await search.search("x", 5)).items[0].title == "x 2"
        await search.close()

    asyncio.run(run())


def test_the_budget_stops_paid_calls_for_good(tmp_path: Path) -> None:
    path = tmp_path / "a.db"

    async def run(budget: int, queries: list[str]) -> tuple[list[str], list[str]]:
        backend = Counting()
        search, _ = recorded(path, backend, budget=budget)
        answers: list[str] = []
        for query in queries:
            try:
                answers.append((await search.search(query, 5)).items[0].title)
            except BudgetSpent as error:
                answers.append(str(error))
        await search.close()
        return backend.asked, answers

    asked, answers = asyncio.run(run(2, ["a", "b", "c", "a"]))
    stop = (
        f"tools.search.budget: 2 paid calls recorded in {path}, the budget is 2; raise it and run "
        "the same command again, which goes on where this run stopped"
    )
    assert asked == ["a", "b"]
    assert answers == ["a 1", "b 2", stop, "a 1"]
    assert asyncio.run(run(2, ["c", "b"])) == ([], [stop, "b 2"])  # a new process would see it
    assert asyncio.run(run(3, ["c", "d"]))[0] == ["c"]
    assert asyncio.run(run(0, ["e"]))[0] == []


@pytest.mark.parametrize(
    ("fault", "calls"),
    [(SourceFault("timed out", charged=True), 1), (SourceFault("429"), 0), (ValueError("bug"), 1)],
)
def test_what_may_have_been_billed_stays_spent(
    tmp_path: Path, fault: Exception, calls: int
) -> None:
    async def run() -> None:
        search, _ = recorded(tmp_path / "a.db", Counting(fault))
        with pytest.raises(type(fault)):
            await search.search("x", 5)
        await search.close()

    asyncio.run(run())
    assert spent(tmp_path / "a.db") == calls


WRITER = """
import asyncio, sys
from pathlib import Path
from pydantic import TypeAdapter
from axpo.recorded.cache import AnswerCache, Key
from axpo.errors import BudgetSpent

async def run(path, name, count):
    print("ready", flush=True); sys.stdin.readline()
    cache = AnswerCache(Path(path), "record", 150)
    async def one(i):
        async def ask():
            await asyncio.sleep(0.001)
            return name
        try:
            key = Key("b", "search", f"q{i}", "{}")
            answer = await cache.answer(key, ask, i >= count, TypeAdapter(str))
            return answer.value
        except BudgetSpent:
            return "stop"
    print(*await asyncio.gather(*(one(i) for i in range(2 * count))))
    await cache.close()

asyncio.run(run(sys.argv[1], sys.argv[2], 100))
"""


def test_processes_write_at_once_and_agree(tmp_path: Path) -> None:
    path = tmp_path / "answers.db"
    names = ["p0", "p1", "p2"]
    children = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for name in names
    ]  # fmt: skip
    for child in children:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
    outputs = []
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    for child in children:
        output, _ = child.communicate(timeout=60)
        assert child.returncode == 0
        outputs.append(output.split())
    for answers in zip(*(output[:100] for output in outputs), strict=True):
        assert len(set(answers)) == 1 and answers[0] in names
    for answers in zip(*(output[100:] for output in outputs), strict=True):
        assert len(set(answers) - {"stop"}) <= 1  # who was answered was answered the same
    assert 100 <= spent(path) <= 150
    assert [file.name for file in tmp_path.iterdir()] == ["answers.db"]


def test_another_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no recorded answers at"):
        AnswerCache(tmp_path / "none.db", "replay")
    assert not (tmp_path / "none.db").exists()
    (tmp_path / "text.db").write_text("not a database" * 100)
    connection = sqlite3.connect(tmp_path / "other.db")
    connection.execute("CREATE TABLE mine (x)")
    connection.close()
    modes: tuple[Mode, ...] = ("record", "replay")
    for name in ("text.db", "other.db"):
        before = (tmp_path / name).read_bytes()
        for mode in modes:
            with pytest.raises(UserError, match="no file of recorded answers"):
                AnswerCache(tmp_path / name, mode)
        assert (tmp_path / name).read_bytes() == before


def test_closing_waits_for_an_answer_that_is_paid_for(tmp_path: Path) -> None:
    async def run() -> None:
        backend = Counting()
        backend.gate.clear()
        search, _ = recorded(tmp_path / "a.db", backend)
        task = asyncio.create_task(search.search("x", 5))
        await asyncio.sleep(0.05)
        closing = asyncio.create_task(search.close())
        await asyncio.sleep(0.05)
        backend.gate.set()
        await closing
        assert (await task).items[0].title == "x 1"
        offline, _ = recorded(tmp_path / "a.db", Counting(), "replay")
        assert (await offline.search("x", 5)).cached
        await offline.close()

    asyncio.run(run())


def test_a_spent_budget_ends_the_run_with_one_message(tmp_path: Path) -> None:
    """Each rollout asks something else; one paid call is left for the second of them."""
    search, cache = recorded(tmp_path / "a.db", Counting(), budget=2)
    search_tool: Any = WebSearchTool(search, 5, 80)
    ask = '</think><tool_call>{{"name": "web_search", "arguments": {{"query": "q{}"}}}}</tool_call>'
    engine = FakeEngine({f"g/r{i}/t1": ask.format(i) for i in range(4)}, "</think>\n\nAnswer: 7")
    agent = make_agent(engine, {"web_search": search_tool})
    ended: list[str] = []
    search_tool.end = AsyncMock(side_effect=ended.append)

    async def run() -> None:
        try:
            await sample_group(agent, new_group(agent.rendering, example(), "g"), 4, 0)
        finally:
            await agent.close()

    with pytest.raises(BudgetSpent, match=r"^tools\.search\.budget: 2 paid calls"):
        asyncio.run(run())
    assert sorted(ended) == [f"g/r{i}" for i in range(4)]
    assert (spent(tmp_path / "a.db"), engine.released) == (2, ["g"])
    counters = agent.tools.stats["web_search"].counters()
    assert counters["fault"] >= 1 and counters["crash"] == counters["model_error"] == 0
    kept = sqlite3.connect(tmp_path / "a.db")
    assert kept.execute("SELECT count(*) FROM answers").fetchone() == (2,)
    kept.close()
    assert counts(cache)[-1] == 2


def test_nothing_stays_after_closing_amid_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "CLOSE_SECONDS", 0.05)

    async def run() -> None:
        backend = Counting()
        backend.gate.clear()
        search, _ = recorded(tmp_path / "a.db", backend)
        tasks = [asyncio.create_task(search.search(f"q{i}", 5)) for i in range(10)]
        await asyncio.sleep(0.05)
        await asyncio.gather(search.close(), search.close())
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)

    files, threads = len(list(Path("/proc/self/fd").iterdir())), threading.active_count()
    asyncio.run(run())
    assert (len(list(Path("/proc/self/fd").iterdir())), threading.active_count()) == (
        files,
        threads,
    )


def test_figures_of_the_cache_are_each_tools_own(tmp_path: Path) -> None:
    search, _ = recorded(tmp_path / "a.db", Counting())
    tools = {t.name: t for t in (WebSearchTool(search, 5, 80), WebExtractorTool(search, 80))}
    toolbox = Toolbox(tools)

    async def run() -> None:
        async def ask(name: str, **arguments: str) -> None:
            await run_call(toolbox, name, arguments, ToolContext())

        await asyncio.gather(*(ask("web_search", query="a") for _ in range(3)))
        await ask("web_search", query="A ")
        await ask("web_search", query="b")
        await ask("web_extractor", url="known")
        await toolbox.close()

    asyncio.run(run())
    names = ("calls", "ok", "cache_hits", "recorded", "not_recorded", "shared", "paid")
    found = {name: lane.counters() for name, lane in toolbox.lanes.items()}
    assert [found["web_search"][name] for name in names] == [5, 5, 1, 1, 2, 2, 2]
    assert [found["web_extractor"][name] for name in names] == [1, 1, 0, 0, 1, 0, 1]


def test_a_tools_own_figures_cannot_hide_the_toolboxs() -> None:
    tool = WebSearchTool(Counting(), 5, 80)
    lane = Toolbox({"web_search": tool}).lanes["web_search"]
    assert set(lane.counters()) == set(lane.stats.counters())
    tool.source = Mock(figures=lambda kind: {"ok": 9.0, "mine": 1.0})
    assert (lane.counters()["ok"], lane.counters()["mine"]) == (0.0, 1.0)
