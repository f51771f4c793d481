"""Graders, with answers written by hand."""

from __future__ import annotations

import asyncio

import pytest

from axpo.errors import GradingError
from axpo.tasks.base import Example
from axpo.tasks.grading import Graders
from axpo.tasks.grading.choice import chosen_letter
from axpo.tree import Trajectory


def asked(grading: str, *truths: str) -> Example:
    return Example("q", "What is it?", (), truths[0], truths[1:], grading)


def score(grading: str, answer: str, truth: str) -> float:
    return asyncio.run(Graders().grade_answer(asked(grading, truth), answer)).reward


@pytest.mark.parametrize(
    ("grading", "answer", "truth", "reward"),
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
    grading: str, answer: str, truth: str, reward: float
) -> None:
    assert score(grading, answer, truth) == reward


@pytest.mark.parametrize(
    ("answer", "truth", "reward"),
    [
        ("Answer: 7", "7", 1),
        ("Answer:  New   york.", "New York", 1),
        ("“Blue”", "blue", 1),
        ("Answer: 17", "7", 0),
        ("7 or 8", "7", 0),
        ("", "7", 0),
        ("２", "2", 1),
    ],
)
def test_exact(answer: str, truth: str, reward: float) -> None:
    assert score("exact", answer, truth) == reward


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"), ("b", "B"), ("(B)", "B"), ("B.", "B"), ("B. a red car", "B"),
        ("(C) left", "C"), ("Answer: D) up", "D"), ("\\boxed{A}", "A"),
        ("The answer is B because", "B"), ("not option A but option C", "C"),
        ("It must be (D).", "D"), ("either (A) or (B)", None), ("A red car", None),
        ("no idea", None), ("", None),
    ],
)  # fmt: skip
def test_chosen_letter(answer: str, letter: str | None) -> None:
    assert chosen_letter(answer) == letter


def test_choice_needs_a_letter_as_truth() -> None:
    assert score("choice", "(B) red", "B") == 1
    assert score("choice", "A", "B") == 0
    with pytest.raises(GradingError, match="truth 'red' is not a letter"):
        score("choice", "B", "red")


def test_an_unknown_grader_lists_the_valid_ones() -> None:
    with pytest.raises(GradingError, match="unknown grader 'jugde'; there are exact, choice, math"):
        score("jugde", "1", "1")


@pytest.mark.parametrize(
    ("grading", "answer", "truth", "rule", "detail"),
    [
        ("exact", "It is.\nAnswer: Blue.", "blue", "exact", "read 'Blue', expected 'blue'"),
        ("choice", "option B", "B", "choice", "read 'B', expected 'B'"),
        ("choice", "A or (B)?", "C", "choice", "read 'B', expected 'C'"),
        ("choice", "none", "C", "choice", "read nothing, expected 'C'"),
        ("math", "\\boxed{7}", "7", "math: same text", "read '7', expected '7'"),
        ("math", "0.5", "1/2", "math: number", "read '0.5', expected '1/2'"),
    ],
)
def test_a_verdict_says_what_it_compared(
    grading: str, answer: str, truth: str, rule: str, detail: str
) -> None:
    verdict = asyncio.run(Graders().grade_answer(asked(grading, truth), answer))
    assert (verdict.rule, verdict.detail) == (rule, detail)


def test_the_best_truth_decides() -> None:
    example = Example("e", "?", (), "red", ("blue", "green"))
    rollout = Trajectory("r", answer="Answer: blue")
    verdict = asyncio.run(Graders().grade(example, rollout))
    assert (verdict.reward, verdict.detail) == (1.0, "read 'blue', expected 'blue'")
    rollout.answer = "x" * 5000
    wrong = asyncio.run(Graders().grade(example, rollout))
    assert wrong.reward == 0.0 and wrong.detail.endswith("..., expected 'red'")
    assert len(wrong.detail) < 100
