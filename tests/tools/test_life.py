"""When a tool starts, hears that a trajectory is over, and closes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from axpo.config import LimitSettings
from axpo.errors import EngineError, InfraError, UserError
from axpo.rollout.agent import Agent
from axpo.rollout.paths import start_path
from axpo.rollout.sampling import new_group
from axpo.tasks.grading import Graders
from axpo.tools import toolbox
from axpo.tools.base import Observation, ToolContext
from axpo.tools.toolbox import Toolbox
from axpo.tree import StopReason, Trajectory
from tests.support.rollouts import LIMITS, FakeEngine, FakeTool, example, make_agent, make_rendering

LOOK = '</think><tool_call>{"name": "look", "arguments": {}}</tool_call>'
ANSWER = "</think>\n\nAnswer: 7"


class Notebook(FakeTool):
    """Keeps something for each trajectory; notes all that happens to it."""

    def __init__(self, error: Exception | None = None, seconds: float = 0.0) -> None:
        super().__init__(self.note)
        self.error, self.seconds = error, seconds
        self.log: list[str] = []
        self.broken: Exception | None = None

    async def note(self, arguments: dict[str, Any], context: ToolContext) -> Observation:
        self.log.append(f"call {context.trajectory}")
        if self.error is not None:
            raise self.error
        await asyncio.sleep(self.seconds)
        return Observation("noted")

    async def start(self) -> None:
        await asyncio.sleep(0)
        self.log.append("start")
        if self.broken is not None:
            raise self.broken

    async def end(self, trajectory: str) -> None:
        await asyncio.sleep(0.01)
        self.log.append(f"end {trajectory}")

    async def close(self) -> None:
        self.log.append("close")


def agent_of(tool: Notebook, *says: Any, **limits: Any) -> Agent:
    engine = FakeEngine({f"r/t{turn}": say for turn, say in enumerate(says, start=1)}, ANSWER)
    return make_agent(engine, {"look": tool}, LIMITS.model_copy(update=limits))


async def once(agent: Agent, id: str = "r") -> Trajectory:
    group = new_group(agent.rendering, example(), "g")
    return await agent.run(start_path(group), id, 0)


@pytest.mark.parametrize(
    ("says", "error", "limits", "stop"),
    [
        ((LOOK, ANSWER), None, {}, StopReason.ANSWER),
        ((LOOK, LOOK), None, {"max_turns": 2}, StopReason.MAX_TURNS),
        ((LOOK,), None, {"max_turn_tokens": 30}, StopReason.MAX_TOKENS),
        ((LOOK,), InfraError("down"), {}, StopReason.TOOL_FAULT),
        ((LOOK, EngineError("gone")), None, {}, StopReason.ENGINE_FAULT),
    ],
)
def test_every_ending_is_told_once(says: Any, error: Any, limits: Any, stop: StopReason) -> None:
    tool = Notebook(error)
    trajectory = asyncio.run(once(agent_of(tool, *says, **limits)))
    assert trajectory.stop is stop
    called = [] if stop is StopReason.MAX_TOKENS else ["call r"]
    assert tool.log == ["start", *called, "end r"]


def test_running_out_of_time_within_a_call_is_told_once() -> None:
    tool = Notebook(seconds=60)
    trajectory = asyncio.run(once(agent_of(tool, LOOK, max_seconds=0.5)))
    assert trajectory.stop is StopReason.MAX_SECONDS
    assert tool.log == ["start", "call r", "end r"]


def test_a_crash_of_the_loop_itself_is_told_once() -> None:
    tool = Notebook()
    with pytest.raises(RuntimeError, match="broken engine"):
        asyncio.run(once(agent_of(tool, RuntimeError("broken engine"))))
    assert tool.log == ["start", "end r"]


@pytest.mark.parametrize("cancels", [1, 2])
def test_a_cancelled_trajectory_is_told_once_even_if_cancelled_again(cancels: int) -> None:
    tool = Notebook(seconds=60)
    agent = agent_of(tool, LOOK)

    async def scenario() -> None:
        task = asyncio.create_task(once(agent))
        while "call r" not in tool.log:
            await asyncio.sleep(0.005)
        for _ in range(cancels):
            task.cancel()
            await asyncio.sleep(0.001)
        with pytest.raises(asyncio.CancelledError):
            await task
        await agent.tools.close()

    asyncio.run(scenario())
    assert tool.log == ["start", "call r", "end r", "close"]


def test_tools_start_once_for_all_trajectories_and_close_once() -> None:
    tool = Notebook()
    agent = agent_of(tool)

    async def scenario() -> None:
        await asyncio.gather(*(once(agent, id) for id in ("a", "b")))
        await agent.tools.close()
        await agent.tools.close()

    asyncio.run(scenario())
    assert tool.log == ["start", "end a", "end b", "close"]
    tool.log.clear()
    for _ in range(2):  # a new loop is a new life, closed before or not
        asyncio.run(once(agent))
    assert tool.log == ["start", "end r"] * 2


def test_agents_share_a_toolbox() -> None:
    tool = Notebook()
    first = agent_of(tool)
    second = make_agent(FakeEngine({}, ANSWER), first.tools)
    second = Agent(second.engine, second.rendering, first.tools, LIMITS, second.grade)
    assert second.tools is first.tools

    async def scenario() -> None:
        await once(first)
        await once(second)

    asyncio.run(scenario())
    assert tool.log == ["start", "end r", "end r"]


def test_an_observation_is_cut_by_the_models_tokens() -> None:
    async def long(arguments: dict[str, Any], context: ToolContext) -> Observation:
        return Observation("word " * 500)

    def seen(limits: LimitSettings) -> int:
        tools = Toolbox({"look": FakeTool(long)}, {"look": limits})
        engine = FakeEngine({"r/t1": LOOK}, ANSWER)
        settings = LIMITS.model_copy(update={"max_tokens": 8000})
        agent = Agent(engine, make_rendering(tools), tools, settings, Graders().grade)
        trajectory = asyncio.run(once(agent))
        assert trajectory.stop is StopReason.ANSWER
        return len(trajectory.segments[1])

    assert seen(LimitSettings()) > 500
    assert seen(LimitSettings(max_tokens=200)) < 300


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (UserError("install the sandbox"), "install the sandbox"),
        (OSError("no port"), "tool look does not start: OSError: no port"),
    ],
)
def test_a_tool_that_does_not_start_stops_the_run(error: Exception, says: str) -> None:
    tool = Notebook()
    tool.broken = error
    agent = agent_of(tool)

    async def scenario() -> None:
        for _ in range(2):
            with pytest.raises(UserError) as raised:
                await once(agent)
            assert str(raised.value) == says

    asyncio.run(scenario())
    assert tool.log == ["start"]


def test_a_tool_that_cannot_clear_up_harms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolbox, "END_SECONDS", 0.02)

    class Bad(Notebook):
        async def end(self, trajectory: str) -> None:
            raise OSError("in use")

    class Slow(Notebook):
        async def end(self, trajectory: str) -> None:
            await asyncio.sleep(60)

    good = Notebook()
    tools = Toolbox({"bad": Bad(), "slow": Slow(), "good": good})

    async def scenario() -> None:
        await tools.start()
        await tools.end("r")

    asyncio.run(scenario())
    assert good.log == ["start", "end r"]
    errors = {name: stats.counters()["end_errors"] for name, stats in tools.stats.items()}
    assert errors == {"bad": 1, "slow": 1, "good": 0}
