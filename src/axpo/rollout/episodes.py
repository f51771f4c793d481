"""The agent asks a task's environments, one per trajectory, as if they were a tool.

Places, deadlines, the rule whose fault a failure is, and the end of a trajectory are those of a
tool that the policy does not see (`axpo.tools.toolbox`).
"""

from __future__ import annotations

from typing import Any

from axpo.errors import InfraError, UserError
from axpo.rollout.rendering import Rendering
from axpo.tasks.base import Task
from axpo.tasks.environment import Environment, Reply, as_reply
from axpo.threads import Threads
from axpo.tools.base import Observation, Tool, ToolContext
from axpo.tools.limits import capped
from axpo.tools.toolbox import Toolbox

NAME = "environment"


def episodes(task: Task, rendering: Rendering) -> Toolbox | None:
    """The toolbox through which an agent asks the task's environments; None if it has none."""
    return Toolbox({NAME: _Episodes(task, rendering)}) if task.environment else None


class _Episodes(Tool):
    """A call's arguments are the `example` and what the policy `said`; an earlier call's also hold
    the `segment` that answered it."""

    name = NAME
    spec: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, task: Task, rendering: Rendering) -> None:
        assert task.environment is not None
        self._kind, self._task, self._rendering = task.environment, task, rendering
        self.timeout, self.limits = self._kind.timeout, self._kind.limits
        self._running: dict[str, Environment] = {}
        self._threads = Threads(NAME)

    @property
    def stuck(self) -> int:
        return self._threads.stuck

    async def __call__(self, arguments: dict[str, Any], context: ToolContext) -> Observation:
        return await self._reply(arguments, context.trajectory)

    async def resume(self, context: ToolContext) -> None:
        """Tell a new environment the prefix's turns; its replies must be those of the prefix."""
        if not self._kind.rebuilds:
            raise UserError(
                f"{self._kind.__name__} cannot be rebuilt (rebuilds = False), and "
                f"{context.trajectory} goes on from inside another rollout"
            )
        for number, call in enumerate(context.earlier, start=1):
            told = call.arguments
            reply = await capped(
                await self._reply(told, context.trajectory), self.limits, self._rendering
            )
            segment, _ = self._rendering.reply(reply, told["segment"].id)
            if _is_over(reply) or segment != told["segment"]:
                raise InfraError(
                    f"rebuilt, it does not answer turn {number} as before; expected replies that "
                    "depend on the example and the turns alone, or rebuilds = False"
                )

    async def _reply(self, arguments: dict[str, Any], trajectory: str) -> Reply:
        call = self._threads.call
        if trajectory not in self._running:
            made = await call(self._kind, self._task, arguments["example"])
            self._running[trajectory] = made
        value = await call(self._running[trajectory].reply, arguments["said"])
        return await self._threads.run(lambda: as_reply(value))

    async def end(self, trajectory: str) -> None:
        if (environment := self._running.pop(trajectory, None)) is not None:
            await self._threads.call(environment.close)


def _is_over(reply: Observation) -> bool:
    return isinstance(reply, Reply) and reply.over
