"""Running one call: whatever happens becomes a status, an observation and perhaps an error.

The one place that decides whose fault a failed call is. The caller's mistakes (malformed,
unknown tool, wrong arguments) become an observation that the model reads; a tool past its
deadline or with any other exception is a fault of ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from axpo.tools.arguments import shorten
from axpo.tools.base import InfraError, ModelError, Observation, Tool, ToolContext
from axpo.tree import CallStatus


@dataclass(frozen=True, slots=True)
class CallResult:
    """`error` is what the model reads, or what failed where the status is infra_error."""

    status: CallStatus
    observation: Observation
    error: str | None = None


def refuse(status: CallStatus, error: str) -> CallResult:
    """The result of a call that is the model's mistake."""
    return CallResult(status, Observation(f"Error: {error}"), error)


async def run_call(
    tools: Mapping[str, Tool], name: str, arguments: Any, context: ToolContext
) -> CallResult:
    """Run tool `name`; only cancellation gets out as an exception."""
    tool = tools.get(name)
    if tool is None:
        error = f"unknown tool {shorten(name)}: expected {' or '.join(tools)}"
        return refuse(CallStatus.MODEL_ERROR, error)
    if not isinstance(arguments, dict):
        error = f"arguments are {shorten(arguments)}: expected an object"
        return refuse(CallStatus.MODEL_ERROR, error)
    deadline = asyncio.timeout(tool.timeout)
    try:
        async with deadline:
            return CallResult(CallStatus.OK, await tool(arguments, context))
    except ModelError as error:
        return refuse(CallStatus.MODEL_ERROR, str(error))
    except InfraError as error:
        fault = f"{name}: {error}"
    except TimeoutError as error:
        late = f"no result after {tool.timeout:g} s"
        fault = f"{name}: {late if deadline.expired() else f'TimeoutError: {error}'}"
    except Exception as error:
        fault = f"{name}: {type(error).__name__}: {error}"
    return CallResult(CallStatus.INFRA_ERROR, Observation(), fault)
