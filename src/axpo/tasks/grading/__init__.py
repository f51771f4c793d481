"""Turning an answer into a reward: 1.0 where it is right, 0.0 where it is not.

`GRADERS` maps the name in `Group.grading` to an asynchronous check of (answer, truth); a name with
a colon is a function of a user's own, which is given the question and the whole rollout. A wrong or
unreadable *answer* scores 0; a check that cannot be made (a truth that is no letter, a checker that
crashes or hangs) raises `GradingError`: our fault, and the trajectory stays unscored.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import cast

from axpo.errors import GradingError, PluginError
from axpo.plugins import load
from axpo.tasks.grading.maths import math
from axpo.tasks.grading.text import choice, exact, normalise, true_letter
from axpo.tree import Group, Trajectory

__all__ = [
    "GRADERS",
    "Grader",
    "check_grader",
    "check_truth",
    "grade",
    "grade_text",
]

GRADERS: dict[str, Callable[[str, str], Awaitable[float]]] = {
    "exact": exact,
    "choice": choice,
    "math": math,
}
Grader = Callable[[Group, Trajectory], float | Awaitable[float]]
"""A user's own, plain or async: (question, a rollout that answered it) -> reward, from 0 (wrong) to
1 (right). What it raises is our fault."""


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
    """The function that "module:name" stands for; raises `GradingError`."""
    try:
        found = load(grading, inspect.isroutine, "functions")
    except PluginError as error:
        raise GradingError(str(error)) from error
    if not inspect.isroutine(found):
        raise GradingError(
            f"{grading!r} is a {type(found).__name__}, expected a function of a question and a "
            "rollout that gives a reward"
        )
    return cast("Grader", found)


def check_truth(grading: str, truth: str) -> None:
    """Raise `GradingError` where no answer could ever be found right by `grading`."""
    check_grader(grading)
    if grading == "choice":
        true_letter(truth)
    elif ":" not in grading and not normalise(truth):
        raise GradingError(f"truth {truth!r} has nothing that an answer could equal")


async def grade_text(grading: str, answer: str, truth: str) -> float:
    """Reward of `answer` by axpo's own grader `grading`; raises `GradingError`."""
    check_grader(grading)
    return await GRADERS[grading](answer, truth)


async def grade(group: Group, trajectory: Trajectory) -> float:
    """Reward of a rollout that answered the group's question: the best for any of its truths.

    Raises `GradingError` where it cannot be told.
    """
    assert trajectory.answer is not None
    if ":" in group.grading:
        return await _graded_by(own_grader(group.grading), group, trajectory)
    rewards: list[float] = []
    for truth in group.truths:
        rewards.append(await grade_text(group.grading, trajectory.answer, truth))
        if rewards[-1] == 1.0:
            break
    return max(rewards)


async def _graded_by(grader: Grader, group: Group, trajectory: Trajectory) -> float:
    reward = grader(group, trajectory)
    reward = await reward if inspect.isawaitable(reward) else reward
    if not isinstance(reward, int | float) or not 0.0 <= reward <= 1.0:
        raise GradingError(f"{group.grading} gave {reward!r}, expected a number from 0 to 1")
    return float(reward)
