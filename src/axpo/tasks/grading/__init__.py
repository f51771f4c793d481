"""Turning an answer into a verdict: a reward (1.0 where it is right, 0.0 where not), and why.

`BUILT_IN` maps the name in `Example.grading` to a grader of axpo's own; a name with a colon is a
function of a user's own, which is given the example and the whole rollout. A wrong or unreadable
*answer* scores 0; a check that cannot be made (a truth that is no letter, a judge that does not
answer) raises `GradingError`: our fault, and the trajectory stays unscored.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Protocol

from axpo.errors import GradingError, PluginError
from axpo.plugins import load
from axpo.tasks.base import Example
from axpo.tasks.grading.choice import choice
from axpo.tasks.grading.exact import exact
from axpo.tasks.grading.gym import reasoning_gym
from axpo.tasks.grading.maths import math
from axpo.tasks.grading.number import number
from axpo.tasks.grading.prose import check_text
from axpo.tasks.grading.rubric import check_rubric
from axpo.tasks.grading.short import f1, short
from axpo.tasks.grading.turns import turn
from axpo.tasks.grading.verdict import BuiltIn, Grader, Verdict, grader
from axpo.tree import Trajectory

__all__ = [
    "BUILT_IN",
    "BuiltIn",
    "Grader",
    "Graders",
    "Judging",
    "Verdict",
    "check_example",
    "check_grader",
    "grader",
]

BUILT_IN: dict[str, BuiltIn] = {
    "exact": exact,
    "short": short,
    "f1": f1,
    "choice": choice,
    "number": number,
    "math": math,
    "reasoning_gym": reasoning_gym,
}
JUDGED: dict[str, Callable[[Example], None]] = {"judge": check_text, "rubric": check_rubric}
"""The graders that ask the judge, and what checks an example of theirs."""


class Judging(Protocol):
    """A model that judges answers."""

    async def grade(self, example: Example, answer: str) -> Verdict:
        """Its verdict; raises `GradingError` where it gives none."""
        ...

    @property
    def figures(self) -> Mapping[str, float]:
        """Counts and sums since the start, as metrics; always of the same names."""
        ...

    async def close(self) -> None: ...


class Graders:
    """What grades a run's answers; `judge` is asked by the graders that need one."""

    def __init__(self, judge: Judging | None = None) -> None:
        self._judge = judge

    async def grade(self, example: Example, trajectory: Trajectory) -> Verdict:
        """The verdict on a rollout that answered the example.

        Raises `GradingError` where it cannot be told, and what a user's grader raises.
        """
        assert trajectory.answer is not None
        if ":" in example.grading:
            return await own_grader(example.grading).grade(example.grading, example, trajectory)
        return await self.grade_answer(example, trajectory.answer)

    async def grade_answer(self, example: Example, answer: str) -> Verdict:
        """The verdict of axpo's own grader of the example on an answer's text."""
        check_grader(example.grading)
        await turn()
        if example.grading not in JUDGED:
            return await BUILT_IN[example.grading].grade(example, answer)
        if self._judge is None:
            raise GradingError(f"the grader {example.grading!r} needs a judge; there is none")
        return await self._judge.grade(example, answer)

    @property
    def figures(self) -> dict[str, float]:
        """What the judge did since the start, as metrics; empty without one."""
        found = {} if self._judge is None else self._judge.figures
        return {f"judge_{name}": value for name, value in found.items()}

    async def close(self) -> None:
        """End what the graders hold."""
        if self._judge is not None:
            await self._judge.close()


def check_grader(grading: str) -> None:
    """Raise `GradingError` that lists the valid names where `grading` is not one."""
    if ":" in grading:
        own_grader(grading)
    elif grading not in (*BUILT_IN, *JUDGED):
        raise GradingError(
            f"unknown grader {grading!r}; there are {', '.join((*BUILT_IN, *JUDGED))}, "
            'or "module:name" of your own'
        )


def own_grader(grading: str) -> Grader:
    """The grader that "module:name" stands for; raises `GradingError`."""
    try:
        found = load(grading, _fits, "functions")
    except PluginError as error:
        raise GradingError(str(error)) from error
    if isinstance(found, Grader):
        return found
    if not inspect.isroutine(found):
        raise GradingError(
            f"{grading!r} is a {type(found).__name__}, expected a function of an example and a "
            "rollout that gives a reward or axpo.Verdict"
        )
    return Grader(found)


def _fits(found: object) -> bool:
    return isinstance(found, Grader) or inspect.isroutine(found)


def check_example(example: Example) -> None:
    """Raise `GradingError` where no answer could ever be found right by the example's grader.

    Its pictures are not looked at.
    """
    check_grader(example.grading)
    if example.grading in BUILT_IN:
        BUILT_IN[example.grading].check(example)
    elif example.grading in JUDGED:
        JUDGED[example.grading](example)
