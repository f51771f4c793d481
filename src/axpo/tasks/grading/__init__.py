"""Turning an answer into a reward: 1.0 where it is right, 0.0 where it is not.

`GRADERS` maps the name in `Example.grading` to an asynchronous check of (answer, truth). A wrong
or unreadable *answer* scores 0; a check that cannot be made (a truth that is no letter, a checker
that crashes or hangs) raises `GradingError`: our fault, and the trajectory stays unscored.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from axpo.tasks.grading.maths import math
from axpo.tasks.grading.text import GradingError, choice, exact

__all__ = ["GRADERS", "GradingError", "check_grader", "grade"]

GRADERS: dict[str, Callable[[str, str], Awaitable[float]]] = {
    "exact": exact,
    "choice": choice,
    "math": math,
}


def check_grader(grading: str) -> None:
    """Raise `GradingError` that lists the valid names where `grading` is not one."""
    if grading not in GRADERS:
        raise GradingError(f"unknown grader {grading!r}; there are {', '.join(GRADERS)}")


async def grade(grading: str, answer: str, truth: str) -> float:
    """Reward of `answer` by grader `grading`; raises `GradingError` where it cannot be told."""
    check_grader(grading)
    return await GRADERS[grading](answer, truth)
