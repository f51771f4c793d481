"""What a grader says of an answer, and what makes a grader of a user's function.

A wrong answer gets the reward 0. Whatever else goes wrong in a grader is our fault (`GradingError`
or what it raises): the rollout stays unscored.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from numbers import Real
from typing import Any, overload

from axpo.clock import Clock
from axpo.errors import GradingError
from axpo.tasks.base import Example
from axpo.threads import Threads
from axpo.tools.arguments import shorten
from axpo.tools.limits import cut_characters
from axpo.tree import Trajectory

SECONDS = 300.0
"""Deadline of a grader that names none (choice): a judge may have to wait for a model."""
MAX_TEXT = 1000
"""Characters of a verdict's rule and detail that are kept."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an answer is worth: a `reward` from 0 (wrong) to 1 (right), the `rule` that decided, and
    in `detail` what it was applied to. Both texts are kept with the rollout."""

    reward: float
    rule: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """A grader of axpo's own: its verdict on the text of an answer to an example, the best for any
    of the truths, and a check of the example that raises `GradingError` where no answer could be
    found right."""

    grade: Callable[[Example, str], Awaitable[Verdict]]
    check: Callable[[Example], None]


def truths_of(example: Example) -> tuple[str, ...]:
    """All right answers of an example."""
    return (example.answer, *example.alternatives)


def best(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict with the highest reward, the first of equals; those behind a 1.0 are not asked
    for."""
    found: Verdict | None = None
    for verdict in verdicts:
        if found is None or verdict.reward > found.reward:
            found = verdict
        if verdict.reward == 1.0:
            break
    assert found is not None
    return found


def compared(right: bool, rule: str, read: str | None, truth: str) -> Verdict:
    """The verdict of a rule that compares what it read in the answer with a truth."""
    seen = "nothing" if read is None else shorten(read)
    return Verdict(float(right), rule, f"read {seen}, expected {shorten(truth)}")


def as_verdict(value: Any, who: str) -> Verdict:
    """A reward or a verdict as a verdict, by the rule `who` where it names none, its texts cut.

    Raises `GradingError` for anything else.
    """
    given = value if isinstance(value, Verdict) else Verdict(value)
    texts = isinstance(given.rule, str) and isinstance(given.detail, str)
    if not (texts and isinstance(given.reward, Real) and 0.0 <= given.reward <= 1.0):
        raise GradingError(
            f"{who} gave {shorten(value)}, expected a number from 0 to 1, or axpo.Verdict with one "
            "and with texts as rule and detail"
        )
    rule, detail = given.rule or who, given.detail
    return Verdict(
        float(given.reward), cut_characters(rule, MAX_TEXT), cut_characters(detail, MAX_TEXT)
    )


Grading = Callable[[Example, Trajectory], Any]
"""A user's function, plain or async: (example, a rollout that answered it) -> reward or verdict."""


class Grader:
    """A user's function as a grader; calling it calls the function."""

    def __init__(self, function: Grading, timeout: float = SECONDS) -> None:
        self.function, self.timeout = function, timeout
        self.__name__: str = getattr(function, "__name__", type(function).__name__)
        self._threads = Threads(f"grader {self.__name__}")
        signature = inspect.signature(function)
        try:
            signature.bind(None, None)
        except TypeError as error:
            raise GradingError(
                f"{self.__name__}({', '.join(signature.parameters)}): expected a function of an "
                "example and a rollout that gives a reward or axpo.Verdict"
            ) from error

    def __call__(self, example: Example, trajectory: Trajectory) -> Any:
        return self.function(example, trajectory)

    async def grade(self, name: str, example: Example, trajectory: Trajectory) -> Verdict:
        """The function's verdict, within its deadline; a plain one runs in a thread of its own.

        Raises `GradingError` for none, and what the function raises.
        """
        clock = Clock(self.timeout)
        try:
            async with clock:
                value = await self._threads.call(self.function, example, trajectory)
        except TimeoutError as error:
            if not clock.expired:
                raise
            raise GradingError(f"{name} gave nothing in {self.timeout:g} s") from error
        return as_verdict(value, name)


@overload
def grader(function: Grading, /) -> Grader: ...
@overload
def grader(*, timeout: float = SECONDS) -> Callable[[Grading], Grader]: ...
def grader(function: Grading | None = None, *, timeout: float = SECONDS) -> Any:
    """Mark a function as a grader: `@grader`, or `@grader(timeout=30)` with a deadline in seconds.

    A function without it is a grader too; this one is checked where it is defined. Raises
    `GradingError` where it does not take an example and a rollout.
    """
    return Grader(function, timeout) if function else lambda found: Grader(found, timeout)
