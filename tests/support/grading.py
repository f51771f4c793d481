"""Answers graded by hand-written examples."""

from __future__ import annotations

import asyncio

from axpo.tasks.base import Example
from axpo.tasks.grading import Graders, Verdict


def verdict(grading: str, answer: str, *truths: str, options: tuple[str, ...] = ()) -> Verdict:
    """A grader's verdict on an answer."""
    example = Example("q", "What is it?", (), truths[0], truths[1:], grading, options=options)
    return asyncio.run(Graders().grade_answer(example, answer))


def reward(grading: str, answer: str, *truths: str, options: tuple[str, ...] = ()) -> float:
    return verdict(grading, answer, *truths, options=options).reward
