"""What answers the policy's turns: a game, a simulated user, anything that a turn changes.

A task names its class (`Task.environment`). Each rollout has one of its own, made from the example;
it is told every turn of the policy that calls no tool, and answers with an observation or says that
the episode is over. A rollout that goes on from inside another has a new one, which is first told
that one's earlier turns and must answer as it did then. So an environment draws from nothing but
its example and what it was told; one that cannot be repeated says so (`rebuilds`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from enum import Enum
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, Final

from axpo.config import LimitSettings
from axpo.tasks.base import Example
from axpo.tasks.grading.verdict import Verdict, as_verdict
from axpo.tools.base import Observation
from axpo.tools.function import as_observation

if TYPE_CHECKING:
    from axpo.tasks.base import Task


JUDGED_BY = "environment"
"""How the rule of an environment's own verdict begins."""


class _Over(Enum):
    OVER = "over"


class Environment(ABC):
    """One rollout's environment; a subclass says what it answers."""

    OVER: Final = _Over.OVER
    """The reply that ends the episode and leaves the verdict on the last turn to the grader."""
    rebuilds: ClassVar[bool] = True
    """Whether a new one that is told the same turns answers the same. Where not, algorithms that go
    on from inside rollouts (AXPO, ARPO) are refused."""
    timeout: ClassVar[float] = 30.0
    """Seconds of one reply, making the environment included; beyond is our fault."""
    limits: ClassVar[LimitSettings] = LimitSettings()
    """Of its replies, as of a tool's results."""

    def __init__(self, task: Task, example: Example) -> None:
        self.task = task
        self.example = example

    @abstractmethod
    def reply(self, said: str) -> Any:
        """What the policy is shown after a turn that `said` this behind its thinking: a text, a
        picture, a list of both, or an `Observation`. Or that the episode is over: a reward or
        `Verdict`, or `OVER`.

        May be `async`; a plain one runs in a thread. What it raises is our fault: the rollout stays
        unscored.
        """

    def close(self) -> Any:  # noqa: B027
        """Called once when the rollout is over, however it ended; may be `async`."""


@dataclass(frozen=True, slots=True)
class Reply(Observation):
    """What the policy is shown, or with `over` that its episode is; then the environment's own
    `verdict`, None where it leaves that to the grader."""

    over: bool = False
    verdict: Verdict | None = None


def as_reply(value: Any) -> Reply:
    """What `Environment.reply` returned; raises `TypeError` and `GradingError` for what is none."""
    if value is Environment.OVER:
        return Reply(over=True)
    if isinstance(value, Verdict | Real):
        verdict = as_verdict(value, JUDGED_BY)
        if verdict.rule != JUDGED_BY:
            verdict = replace(verdict, rule=f"{JUDGED_BY}: {verdict.rule}")
        return Reply(over=True, verdict=verdict)
    try:
        shown = as_observation(value)
    except TypeError as error:
        raise TypeError(f"reply {error}, axpo.Verdict, a reward or self.OVER") from error
    return Reply(shown.text, shown.views)
