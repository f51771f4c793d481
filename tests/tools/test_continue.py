"""A continuation finds what the calls before its cut left in a tool."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from axpo.errors import InfraError, ModelError
from axpo.rollout.agent import Agent
from axpo.rollout.sampling import new_group, resample, sample_group
from axpo.sandbox import levels
from axpo.tools.base import Observation, Tool, ToolContext
from axpo.tools.python import PythonTool
from axpo.tools.zoom import ZoomTool
from axpo.tree import CallStatus, Group, StopReason, Trajectory
from tests.support.rollouts import (
    LIMITS,
    FakeEngine,
    FakeTool,
    decode,
    encode,
    example,
    make_agent,
    zoom,
)

ANSWER = "</think>\n\nAnswer: 7"
LEVEL = next((level for level in ("bubblewrap", "landlock") if not levels.obstacle(level)), None)


def call(name: str, **arguments: Any) -> str:
    written = json.dumps({"name": name, "arguments": arguments})
    return f"<tool_call>\n{written}\n</tool_call>"


def rest(name: str, **arguments: Any) -> str:
    """A call after its opening tag."""
    return call(name, **arguments).removeprefix("<tool_call>")


class Memory(FakeTool):
    """Keeps what it is told, a list a trajectory; `resume` brings it back."""

    def __init__(self) -> None:
        super().__init__(self.tell)
        self.kept: dict[str, list[int]] = {}
        self.resumed: list[tuple[str, list[tuple[int, int]]]] = []
        self.fault: Exception | None = None

    async def tell(self, arguments: dict[str, Any], context: ToolContext) -> Observation:
        if arguments["n"] < 0:
            raise ModelError("n is negative")
        kept = self.kept.setdefault(context.trajectory, [])
        kept.append(arguments["n"])
        return Observation(f"kept {kept}")

    async def resume(self, context: ToolContext) -> None:
        if self.fault is not None:
            raise self.fault
        earlier = [(made.arguments["n"], made.pictures) for made in context.earlier]
        self.resumed.append((context.trajectory, earlier))
        self.kept[context.trajectory] = [n for n, _ in earlier]


def cut_at_call(source: Trajectory, number: int) -> int:
    return source.calls[number].start + len(encode("<tool_call>"))


async def grown(agent: Agent, number: int, k: int = 1) -> Group:
    """One rollout of the script, and `k` continuations from its call `number`."""
    group = await sample_group(agent, new_group(agent.rendering, example(), "g"), 1, 0)
    source = group.rollouts[0]
    branch = group.fork(source, cut_at_call(source, number))
    await resample(agent, group, branch, k, 0)
    return group


def seen(trajectory: Trajectory, number: int = 1) -> str:
    return decode(trajectory.segments[number].tokens)


def script(*turns: str, continued: dict[str, str]) -> FakeEngine:
    rollout = {f"g/r0/t{turn}": say for turn, say in enumerate(turns, start=1)}
    return FakeEngine(rollout | continued, ANSWER)


def test_the_calls_of_whole_turns_before_the_cut_are_brought_back_once() -> None:
    memory = Memory()
    tools: dict[str, Tool] = {"look": memory, ZoomTool.name: ZoomTool()}
    first = f"</think>{call('look', n=1)}{call('look', n=-1)}{zoom()}"
    engine = script(
        first, f"</think>{call('look', n=2)}", ANSWER,
        continued={"g/r0/c0/t2": rest("look", n=3) + call("look", n=4)},
    )  # fmt: skip
    group = asyncio.run(grown(make_agent(engine, tools), 3))
    (continuation,) = group.branches[0].continuations
    # The refused call left nothing; one picture was there when the first was made.
    assert memory.resumed == [("g/r0/c0", [(1, 1)])]
    assert "kept [1, 3]" in seen(continuation) and "kept [1, 3, 4]" in seen(continuation)
    assert [made.status for made in continuation.calls] == [CallStatus.OK] * 2
    assert continuation.stop is StopReason.ANSWER
    assert group.rollouts[0].stop is StopReason.ANSWER


def test_a_cut_at_the_first_call_has_nothing_to_bring_back() -> None:
    memory = Memory()
    engine = script(f"</think>{call('look', n=1)}", continued={"g/r0/c0/t1": rest("look", n=5)})
    group = asyncio.run(grown(make_agent(engine, {"look": memory}), 0))
    assert memory.resumed == []
    assert "kept [5]" in seen(group.branches[0].continuations[0])


def test_a_refused_first_call_does_not_lose_the_earlier_ones() -> None:
    memory = Memory()
    refused = '\n{"name": "look", "arguments": [3]}\n</tool_call>'
    engine = script(
        f"</think>{call('look', n=1)}", f"</think>{call('look', n=2)}",
        continued={"g/r0/c0/t2": refused, "g/r0/c0/t3": f"</think>{call('look', n=4)}"},
    )  # fmt: skip
    limits = LIMITS.model_copy(update={"max_turns": 5})
    group = asyncio.run(grown(make_agent(engine, {"look": memory}, limits), 1))
    (continuation,) = group.branches[0].continuations
    assert [made.status for made in continuation.calls] == [CallStatus.MODEL_ERROR, CallStatus.OK]
    assert "kept [1, 4]" in seen(continuation, 3)


def test_a_continuation_of_a_continuation_replays_its_own_path() -> None:
    memory = Memory()
    engine = script(
        f"</think>{call('look', n=1)}",
        continued={
            "g/r0/c0/t1": rest("look", n=5),
            "g/r0/c0/t2": f"</think>{call('look', n=6)}",
            "g/r0/c0/c0/t2": rest("look", n=7),
        },
    )

    async def scenario() -> Group:
        agent = make_agent(engine, {"look": memory})
        group = await grown(agent, 0)
        source = group.branches[0].continuations[0]
        branch = group.fork(source, cut_at_call(source, 1))
        await resample(agent, group, branch, 1, 0)
        return group

    group = asyncio.run(scenario())
    assert memory.resumed == [("g/r0/c0/c0", [(5, 1)])]
    assert "kept [5, 7]" in seen(group.branches[1].continuations[0])


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (InfraError("gone"), "gone"),
        (ModelError("no n"), "an earlier call cannot be made again: no n"),
        (KeyError("bug"), "KeyError: 'bug'"),
    ],
)
def test_what_cannot_be_brought_back_is_a_fault_of_ours(error: Exception, fault: str) -> None:
    memory = Memory()
    memory.fault = error
    engine = script(
        f"</think>{call('look', n=1)}", f"</think>{call('look', n=2)}",
        continued={"g/r0/c0/t2": rest("look", n=3)},
    )  # fmt: skip
    group = asyncio.run(grown(make_agent(engine, {"look": memory}), 1))
    (continuation,) = group.branches[0].continuations
    assert (continuation.stop, continuation.reward) == (StopReason.TOOL_FAULT, None)
    assert continuation.fault == f"tool look: {fault}"
    assert group.rollouts[0].scored


@pytest.mark.skipif(LEVEL is None, reason="no level of the sandbox works here")
def test_a_notebook_goes_on_where_its_source_stood() -> None:
    tools = {"python": PythonTool(LEVEL, packages="current")}
    first = call("python", code="x = 20; open('f', 'w').write('kept')")
    engine = script(
        f"</think>{first}",
        f"</think>{call('python', code='x += image_0.width; x')}", ANSWER,
        continued={
            "g/r0/c0/t2": rest("python", code="x += 1; x"),
            "g/r0/c1/t2": rest("python", code="open('f').read()"),
        },
    )  # fmt: skip

    async def scenario() -> Group:
        agent = make_agent(engine, tools)
        try:
            return await grown(agent, 1, k=2)
        finally:
            await agent.close()

    group = asyncio.run(scenario())
    first, second = group.branches[0].continuations
    assert "\n84\n" in seen(group.rollouts[0], 3)
    assert "\n21\n" in seen(first)
    assert "'kept'" in seen(second)
