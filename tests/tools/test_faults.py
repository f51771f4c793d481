"""Whole trajectories beside a fault: the right status, nobody else notices, nothing leaks.

Each scenario runs a healthy trajectory beside those that meet a fault of ours, through the agent
with real tools, and counts processes, threads, descriptors and temporary files before and after.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import tempfile
import threading
from collections.abc import Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from axpo.config import LimitSettings
from axpo.rollout.agent import Agent
from axpo.rollout.paths import start_path
from axpo.rollout.sampling import new_group
from axpo.sandbox import SessionBounds, levels
from axpo.search.tavily import KEY, Tavily
from axpo.tasks.grading import Graders
from axpo.tools import toolbox as toolbox_module
from axpo.tools.base import Tool
from axpo.tools.python import PythonTool
from axpo.tools.toolbox import Toolbox
from axpo.tools.web_search import WebSearchTool
from axpo.tree import CallStatus, StopReason, Trajectory
from tests.support.rollouts import LIMITS, FakeEngine, decode, example, make_rendering
from tests.support.tavily import SECRET, serving

ANSWER = "it is 7</think>\n\nAnswer: 7"
HEALTHY = "healthy"
LEVELS = [level for level in ("landlock", "bubblewrap") if levels.obstacle(level) is None]
sandboxed = pytest.mark.skipif(not LEVELS, reason="no level of the sandbox works here")


def call(name: str, **arguments: Any) -> str:
    written = json.dumps({"name": name, "arguments": arguments})
    return f"</think><tool_call>{written}</tool_call>"


def descendants() -> set[int]:
    """Processes below this one, those that nobody has waited for included."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                status = (folder / "stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            parents[int(folder.name)] = int(status.rpartition(")")[2].split()[1])
    found, new = set[int](), {os.getpid()}
    while new:
        new = {pid for pid, parent in parents.items() if parent in new} - found
        found |= new
    return found


def census() -> dict[str, Any]:
    """What a leak would add to."""
    return {
        "processes": descendants(),
        "threads": threading.active_count(),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
    }


@pytest.fixture(autouse=True)
def nothing_leaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(toolbox_module, "RETRY_WAIT", 0.01)
    gc.collect()  # what tests before left open and unreachable would be closed in between
    before = census()
    yield
    assert census() == before
    assert list(tmp_path.iterdir()) == []


def agent_of(
    tools: Mapping[str, Tool], says: Mapping[str, str], limits: LimitSettings, **settings: Any
) -> Agent:
    """The trajectories named in `says` begin with that turn and answer in the next."""
    box = Toolbox(tools, dict.fromkeys(tools, limits))
    engine = FakeEngine({f"{id}/t1": say for id, say in says.items()}, ANSWER)
    return Agent(
        engine, make_rendering(box), box, LIMITS.model_copy(update=settings), Graders().grade
    )


async def all_of(
    agent: Agent, ids: list[str], beside: Coroutine[Any, Any, None] | None = None
) -> dict[str, Trajectory]:
    """Run trajectories at once, with `beside` meanwhile; the agent is closed at the end."""
    group = new_group(agent.rendering, example(), "g")
    others = [asyncio.ensure_future(beside)] if beside is not None else []
    try:
        runs = [agent.run(start_path(group), id, 0) for id in ids]
        return dict(zip(ids, await asyncio.gather(*runs), strict=True))
    finally:
        await asyncio.gather(*others)
        await agent.close()


def check_healthy(trajectory: Trajectory, shows: str) -> None:
    assert (trajectory.stop, trajectory.reward, trajectory.fault) == (StopReason.ANSWER, 1.0, None)
    assert [made.status for made in trajectory.calls] == [CallStatus.OK]
    assert shows in decode(trajectory.segments[1].tokens)


def check_fault(trajectory: Trajectory, says: str) -> None:
    assert (trajectory.stop, trajectory.reward) == (StopReason.TOOL_FAULT, None)
    assert [made.status for made in trajectory.calls] == [CallStatus.INFRA_ERROR]
    assert trajectory.fault is not None and says in trajectory.fault, trajectory.fault


# --------------------------------------------------------------------------- python

LOOP = call("python", code="while True: pass")
SUM = call("python", code="import time; time.sleep(0.4); 6 * 7")


def notebook(level: str) -> PythonTool:
    return PythonTool(level, packages="current", bounds=SessionBounds(seconds=5.0, grace=0.5))


async def session_of(tool: PythonTool, trajectory: str) -> Any:
    """The trajectory's session, once a cell runs in it."""
    while not ((found := tool._sessions.get(trajectory)) and found.cells):
        await asyncio.sleep(0.01)
    return found


@sandboxed
@pytest.mark.parametrize("level", LEVELS)
def test_a_killed_session_is_one_trajectorys_fault(level: str) -> None:
    tool = notebook(level)

    async def kill() -> None:
        session = await session_of(tool, "killed")
        await asyncio.sleep(0.1)
        session.child.signal(signal.SIGKILL)

    agent = agent_of({"python": tool}, {"killed": LOOP, HEALTHY: SUM}, LimitSettings())
    found = asyncio.run(all_of(agent, ["killed", HEALTHY], kill()))
    check_fault(found["killed"], "tool python: a Python session was killed from outside")
    check_healthy(found[HEALTHY], "42")
    counters = agent.tools.stats["python"].counters()
    assert (counters["fault"], counters["ok"], counters["retries"]) == (1, 1, 0)


@sandboxed
@pytest.mark.parametrize("level", LEVELS)
def test_a_killed_fork_server_is_replaced_for_who_comes_after(
    level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = notebook(level)
    ready = tool._sandbox.ready

    async def slowly() -> Any:
        await asyncio.sleep(5)
        return await ready()

    async def kill() -> None:
        await session_of(tool, "killed")
        assert tool._sandbox.server is not None
        tool._sandbox.server._process.kill()
        monkeypatch.setattr(tool._sandbox, "ready", slowly)

    async def later(agent: Agent) -> tuple[Trajectory, Trajectory]:
        group = new_group(agent.rendering, example(), "g")
        killer = asyncio.ensure_future(kill())
        try:
            first = await agent.run(start_path(group), "killed", 0)
            return first, await agent.run(start_path(group), HEALTHY, 0)
        finally:
            await killer
            await agent.close()

    agent = agent_of({"python": tool}, {"killed": LOOP, HEALTHY: SUM}, LimitSettings())
    killed, healthy = asyncio.run(later(agent))
    check_fault(killed, "fork server has ended")
    check_healthy(healthy, "42")
    assert agent.stats.seconds_waited > 5 > healthy.seconds  # a new server's start is nobody's time


@sandboxed
@pytest.mark.parametrize("level", LEVELS)
def test_a_cell_past_the_calls_deadline_is_a_fault_and_its_process_ends(level: str) -> None:
    limits = LimitSettings(timeout=3.0)
    agent = agent_of({"python": notebook(level)}, {"late": LOOP, HEALTHY: SUM}, limits)
    found = asyncio.run(all_of(agent, ["late", HEALTHY]))
    check_fault(found["late"], "no result after 3 s")
    check_healthy(found[HEALTHY], "42")
    assert agent.tools.stats["python"].counters()["timeout"] == 1


@sandboxed
def test_a_trajectory_out_of_time_within_a_cell_is_unscored_and_its_process_ends() -> None:
    says = {"slow": LOOP}
    agent = agent_of({"python": notebook(LEVELS[0])}, says, LimitSettings(), max_seconds=2.0)
    slow = asyncio.run(all_of(agent, ["slow"]))["slow"]
    assert (slow.stop, slow.reward) == (StopReason.MAX_SECONDS, None)
    assert agent.tools.stats["python"].counters()["cancelled"] == 1


# --------------------------------------------------------------------------- search

FAULTS: Mapping[str, tuple[int, bytes | None, str, int]] = {
    "429": (429, b"{}", "too many requests (429)", 3),
    "500": (500, b"oops", "status 500", 3),
    "garbage": (200, b"\xff<html>", "not JSON", 3),
    "other-json": (200, b'{"results": "none"}', "expected form", 3),
    "empty": (200, b"", "not JSON", 3),
    "hang-up": (0, b"", "no connection", 3),
    "silence": (200, None, "did not answer in time", 3),
    "404": (404, b"", "status 404", 1),
}
"""Query -> status, body, what the fault says, attempts."""


def query(text: str) -> str:
    return call("web_search", query=text)


async def searched(
    ids: list[str], timeout: float, limits: LimitSettings
) -> tuple[dict[str, Trajectory], list[str], dict[str, float]]:
    """Trajectories that ask for their own id; all queries that came, the tool's figures."""
    async with serving(timeout) as server:
        server.by_query = {id: (status, body) for id, (status, body, _, _) in FAULTS.items()}
        tool = WebSearchTool(Tavily(), 5, 80)
        agent = agent_of({"web_search": tool}, {id: query(id) for id in ids}, limits)
        found = await all_of(agent, ids)
        asked = [body["query"] for _, _, body in server.requests if body]
        return found, asked, agent.tools.stats["web_search"].counters()


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, SECRET)


@pytest.mark.usefixtures("key")
def test_a_failing_backend_is_tried_again_where_that_may_help_and_never_scored() -> None:
    ids = [*FAULTS, HEALTHY]
    found, asked, counters = asyncio.run(searched(ids, 1.0, LimitSettings(retries=2)))
    for id, (_, _, says, attempts) in FAULTS.items():
        check_fault(found[id], says)
        assert asked.count(id) == attempts, id
    check_healthy(found[HEALTHY], "https://a.example")
    assert asked.count(HEALTHY) == 1
    assert (counters["fault"], counters["ok"]) == (len(FAULTS), 1)
    assert counters["retries"] == 2 * (len(FAULTS) - 1)


@pytest.mark.usefixtures("key")
def test_a_backend_that_never_answers_is_given_up_at_the_deadline() -> None:
    limits = LimitSettings(timeout=2.0)
    found, asked, counters = asyncio.run(searched(["silence", HEALTHY], 20.0, limits))
    check_fault(found["silence"], "no result after 2 s")
    check_healthy(found[HEALTHY], "https://a.example")
    assert sorted(asked) == [HEALTHY, "silence"]
    assert (counters["timeout"], counters["given_up"]) == (1, 0)
