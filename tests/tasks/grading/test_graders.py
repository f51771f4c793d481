"""What holds for several graders: the final answer decides, and so does the best truth."""

from __future__ import annotations

import asyncio

import pytest

from axpo.errors import GradingError
from axpo.tasks.base import Example
from axpo.tasks.grading import BUILT_IN, Graders
from axpo.tree import Trajectory
from tests.support.grading import reward


@pytest.mark.parametrize(
    ("grading", "answer", "truth", "right"),
    [
        ("exact", "Answer: red\n<answer>blue</answer>", "blue", 1),
        ("exact", "<answer>red</answer>, not blue", "blue", 0),
        ("exact", "<answer>It is so.\nAnswer: blue</answer>", "blue", 1),
        ("exact", "blue <answer></answer>", "blue", 0),
        ("choice", "A. no. <answer>B</answer>", "B", 1),
        ("choice", "The answer is A. <answer>(B) red</answer>", "B", 1),
        ("math", "\\boxed{2} <answer>\\boxed{\\frac{1}{2}}</answer>", "1/2", 1),
        ("math", "<answer>0.5</answer>", "<answer>1/2</answer>", 1),
        ("math", "0.5 <answer>2</answer>", "0.5", 0),
    ],
)
def test_tags_hold_the_answer_for_every_grader(
    grading: str, answer: str, truth: str, right: float
) -> None:
    assert reward(grading, answer, truth) == right


@pytest.mark.parametrize("grading", sorted(set(BUILT_IN) - {"reasoning_gym"}))  # of its task alone
@pytest.mark.parametrize(
    "answer",
    [
        "",
        "<think>The answer is 7",  # cut inside its thinking
        "<think>7",
        "7</think>",
        "<think>\\boxed{7}</think>",
        "7 <answer></answer>",
        # A reply that a judge would give.
        "Score: 1",
        "<judge>Yes</judge>",
        "The answer is correct.",
    ],
)
def test_no_grader_rewards_an_answer_that_says_nothing(grading: str, answer: str) -> None:
    assert reward(grading, answer, "G" if grading == "choice" else "7") == 0


def test_the_best_truth_decides() -> None:
    example = Example("e", "?", (), "red", ("blue", "green"))
    rollout = Trajectory("r", answer="Answer: blue")
    verdict = asyncio.run(Graders().grade(example, rollout))
    assert (verdict.reward, verdict.detail) == (1.0, "read 'blue', expected 'blue'")
    rollout.answer = "x" * 5000
    wrong = asyncio.run(Graders().grade(example, rollout))
    assert wrong.reward == 0.0 and wrong.detail.endswith("..., expected 'red'")
    assert len(wrong.detail) < 100


def test_an_unknown_grader_lists_the_valid_ones() -> None:
    names = "exact, short, f1, choice, number, math"
    with pytest.raises(GradingError, match=f"unknown grader 'jugde'; there are {names}"):
        reward("jugde", "1", "1")
