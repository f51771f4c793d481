"""Running a call: whatever happens becomes a status, an observation and perhaps an error.

Only this module decides whose fault a failed call is. The model's mistakes (malformed call, unknown
tool, wrong arguments) become an observation that the model reads; a missed deadline or any other
exception of a tool is an infrastructure fault.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from axpo.errors import InfraError, LateError, ModelError, UserError
from axpo.tools.arguments import shorten
from axpo.tools.base import Observation, Tool, ToolContext
from axpo.tools.limits import Tokens, readable
from axpo.tools.stats import CallOutcome
from axpo.tools.toolbox import Lane, Toolbox
from axpo.tree import CallStatus


@dataclass(frozen=True, slots=True)
class CallResult:
    """The outcome of a call. `error` is what the model reads; if the status is infra_error, what
    failed."""

    status: CallStatus
    observation: Observation
    error: str | None = None


def refuse(status: CallStatus, error: str) -> CallResult:
    """The result of a call that is the model's mistake."""
    return CallResult(status, Observation(f"Error: {error}"), error)


async def run_call(
    tools: Mapping[str, Tool],
    name: str,
    arguments: Any,
    context: ToolContext,
    tokens: Tokens | None = None,
) -> CallResult:
    """Run tool `name` within the limits of its toolbox (the defaults for a plain mapping).

    Raises only `UserError` (a tool does not start, a budget is spent), and when it is cancelled.
    """
    toolbox = Toolbox.of(tools)
    lane = toolbox.lanes.get(name)
    if lane is None:
        error = f"unknown tool {shorten(name)}: expected {' or '.join(tools)}"
        return refuse(CallStatus.MODEL_ERROR, error)
    await toolbox.start()
    outcome = CallOutcome.CANCELLED
    try:
        outcome, result = await _outcome(lane, name, arguments, context, tokens)
        return result
    except UserError:
        outcome = CallOutcome.FAULT
        raise
    finally:
        lane.stats.outcomes[outcome] += 1


async def _outcome(
    lane: Lane, name: str, arguments: Any, context: ToolContext, tokens: Tokens | None
) -> tuple[CallOutcome, CallResult]:
    try:
        if not isinstance(arguments, dict):
            raise ModelError(f"arguments are {shorten(arguments)}: expected an object")
        return CallOutcome.OK, CallResult(
            CallStatus.OK, await lane.call(arguments, context, tokens)
        )
    except ModelError as error:
        said = readable(str(error), lane.limits, tokens)
        return CallOutcome.MODEL_ERROR, refuse(CallStatus.MODEL_ERROR, said)
    except LateError as error:
        outcome, fault = CallOutcome.TIMEOUT, str(error)
    except UserError:
        raise
    except InfraError as error:
        outcome, fault = CallOutcome.FAULT, str(error)
    except Exception as error:
        outcome, fault = CallOutcome.CRASH, f"{type(error).__name__}: {error}"
    fault = readable(f"{name}: {fault}", lane.limits, None)
    return outcome, CallResult(CallStatus.INFRA_ERROR, Observation(), fault)
