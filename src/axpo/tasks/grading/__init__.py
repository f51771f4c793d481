"""Turning an answer into a reward: 1.0 where it is right, 0.0 where it is not.

`GRADERS` maps the name in `Example.grading` to an asynchronous check of (answer, truth). A wrong
or unreadable *answer* scores 0; a check that cannot be made (a truth that is no letter, a checker
that crashes or hangs) raises `GradingError`: our fault, and the trajectory stays unscored.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from axpo.tasks.grading.maths import math
from axpo.tasks.grading.text import GradingError, choice, exact, normalise, true_letter

__all__ = ["GRADERS", "GradingError", "check_grader", "check_truth", "grade"]

GRADERS: dict[str, Callable[[str, str], Awaitable[float]]] = {
    "exact": exact,
    "choice": choice,
    "math": math,
}


def check_grader(grading: str) -> None:
    """Raise `GradingError` that lists the valid names where `grading` is not one."""
    if grading not in GRADERS:
        raise GradingError(f"unknown grader {grading!r}; there are {', '.join(GRADERS)}")


def check_truth(grading: str, truth: str) -> None:
    """Raise `GradingError` where no answer could ever be found right by `grading`."""
    check_grader(grading)
    if grading == "choice":
        true_letter(truth)
    elif not normalise(truth):
        raise GradingError(f"truth {truth!r} has nothing that an answer could equal")


async def grade(grading: str, answer: str, truth: str) -> float:
    """Reward of `answer` by grader `grading`; raises `GradingError` where it cannot be told."""
    check_grader(grading)
    return await GRADERS[grading](answer, truth)
