"""Turning an answer into a verdict: a reward (1.0 where it is right, 0.0 where not), and why.

`GRADERS` maps the name in `Example.grading` to an asynchronous check of (answer, truth); a name
with a colon is a function of a user's own, which is given the example and the whole rollout. A
wrong or unreadable *answer* scores 0; a check that cannot be made (a truth that is no letter, a
checker that crashes or hangs) raises `GradingError`: our fault, and the trajectory stays unscored.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable

from axpo.errors import GradingError, PluginError
from axpo.plugins import load
from axpo.tasks.base import Example
from axpo.tasks.grading.maths import math
from axpo.tasks.grading.text import choice, exact, normalise, true_letter
from axpo.tasks.grading.verdict import Grader, Verdict, grader
from axpo.tree import Trajectory

__all__ = [
    "GRADERS",
    "Grader",
    "Verdict",
    "check_grader",
    "check_truth",
    "grade",
    "grade_text",
    "grader",
]

GRADERS: dict[str, Callable[[str, str], Awaitable[Verdict]]] = {
    "exact": exact,
    "choice": choice,
    "math": math,
}


def check_grader(grading: str) -> None:
    """Raise `GradingError` that lists the valid names where `grading` is not one."""
    if ":" in grading:
        own_grader(grading)
    elif grading not in GRADERS:
        raise GradingError(
            f"unknown grader {grading!r}; there are {', '.join(GRADERS)}, "
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


def check_truth(grading: str, truth: str) -> None:
    """Raise `GradingError` where no answer could ever be found right by `grading`."""
    check_grader(grading)
    if grading == "choice":
        true_letter(truth)
    elif ":" not in grading and not normalise(truth):
        raise GradingError(f"truth {truth!r} has nothing that an answer could equal")


async def grade_text(grading: str, answer: str, truth: str) -> Verdict:
    """The verdict on `answer` by axpo's own grader `grading`; raises `GradingError`."""
    check_grader(grading)
    return await GRADERS[grading](answer, truth)


async def grade(example: Example, trajectory: Trajectory) -> Verdict:
    """The verdict on a rollout that answered the example: the best for any of its truths.

    Raises `GradingError` where it cannot be told.
    """
    assert trajectory.answer is not None
    if ":" in example.grading:
        return await own_grader(example.grading).grade(example.grading, example, trajectory)
    verdicts: list[Verdict] = []
    for truth in (example.answer, *example.alternatives):
        verdicts.append(await grade_text(example.grading, trajectory.answer, truth))
        if verdicts[-1].reward == 1.0:
            break
    return max(verdicts, key=lambda verdict: verdict.reward)
