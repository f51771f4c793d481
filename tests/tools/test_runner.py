"""Whose fault a failed call is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from axpo.errors import InfraError, ModelError
from axpo.tools.base import Observation, ToolContext
from axpo.tools.runner import CallResult, run_call
from axpo.tree import CallStatus
from tests.support.rollouts import FakeTool

Body = Callable[[dict[str, Any], ToolContext], Awaitable[Observation]]


def run(body: Body, name: str = "look", arguments: Any = None, timeout: float = 5) -> CallResult:
    tool = FakeTool(body)
    tool.timeout = timeout
    arguments = {} if arguments is None else arguments
    return asyncio.run(run_call({"look": tool}, name, arguments, ToolContext()))


def raising(error: Exception) -> Body:
    async def body(arguments: dict[str, Any], context: ToolContext) -> Observation:
        raise error

    return body


async def echo(arguments: dict[str, Any], context: ToolContext) -> Observation:
    return Observation(str(arguments))


def test_a_result_passes_through() -> None:
    assert run(echo, arguments={"a": 1}) == CallResult(CallStatus.OK, Observation("{'a': 1}"))


@pytest.mark.parametrize(
    ("name", "arguments", "error"),
    [
        ("search", {}, "unknown tool 'search': expected look"),
        ("look", [1], "arguments are [1]: expected an object"),
        ("look", "{}", "arguments are '{}': expected an object"),
    ],
)
def test_the_callers_mistakes_are_read_by_the_model(name: str, arguments: Any, error: str) -> None:
    result = run(echo, name, arguments)
    assert result == CallResult(CallStatus.MODEL_ERROR, Observation(f"Error: {error}"), error)


def test_a_model_error_is_read_by_the_model() -> None:
    result = run(raising(ModelError("x is 3: expected 4")))
    assert result.status is CallStatus.MODEL_ERROR
    assert result.observation.text == "Error: x is 3: expected 4"


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (InfraError("no connection"), "look: no connection"),
        (ZeroDivisionError("division by zero"), "look: ZeroDivisionError: division by zero"),
        (TimeoutError("socket"), "look: TimeoutError: socket"),
    ],
)
def test_any_other_error_is_ours(error: Exception, fault: str) -> None:
    assert run(raising(error)) == CallResult(CallStatus.INFRA_ERROR, Observation(), fault)


def test_a_hung_tool_is_ours() -> None:
    async def hang(arguments: dict[str, Any], context: ToolContext) -> Observation:
        await asyncio.sleep(60)
        return Observation()

    result = run(hang, timeout=0.01)
    assert result == CallResult(
        CallStatus.INFRA_ERROR, Observation(), "look: no result after 0.01 s"
    )


def test_cancellation_is_no_result() -> None:
    async def scenario() -> None:
        async def hang(arguments: dict[str, Any], context: ToolContext) -> Observation:
            await asyncio.sleep(60)
            return Observation()

        task = asyncio.create_task(run_call({"look": FakeTool(hang)}, "look", {}, ToolContext()))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
