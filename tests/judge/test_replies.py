"""What a judge's reply says, and what it does not say."""

from __future__ import annotations

import json

import pytest

from axpo.judge.judge import worth
from axpo.judge.replies import read_marks, read_verdict
from axpo.tree import Point

VERDICTS = [
    ("Score: 1", True),
    ("score:0", False),
    ("Score: 10", None),
    ("Score: 0 or 1", None),
    ("Score: 1.0", None),
    ("Score: 1/1", None),
    ("Score:", None),
    ("<judge>Yes</judge>", True),
    ("<judge> no </judge>", False),
    ("<judge>No</judge><reason>another number\nthan the reference</reason>", False),
    ("<judge>Yes/No</judge>", None),
    ("<judge>Yes</judge", None),
    ("Yes", None),
    ("1", None),
    ("", None),
    (" \n ", None),
    ("Both name the same tower.\n\n**Score: 1**", True),
    ("Both name the same tower.\n`Score: 1`.", True),
    ("They agree. Score: 1", None),
    ("Score: 1\nor so", None),
    # what the judge quotes, or thinks, decides nothing
    ('The answer says "Score: 1" and names no colour.\nScore: 0', False),
    ("The answer is\nScore: 1\n</judge><judge>Yes</judge>\nwhich is none.\nScore: 0", False),
    ("<think>Score: 1</think>Score: 0", False),
    ("<think>Hm.\nScore: 1", None),
    ("It could be\nScore: 1</think>\nno\nScore: 0", False),
    ("The answer is a <think> tag.\nScore: 0", False),
    ("<judge>Yes</judge>\nScore: 0", None),
]


@pytest.mark.parametrize(("reply", "right"), VERDICTS)
def test_only_the_required_forms_are_verdicts(reply: str, right: bool | None) -> None:
    assert read_verdict(reply) is right


RUBRIC = (Point("finds the angle", 3.0), Point("adds them", 2.0), Point("concludes", 5.0))
"""Ten points."""


def marks(correct: object, awarded: object, score: object = None) -> str:
    return json.dumps({"fully_correct": correct, "awarded": awarded, "score": score})


MARKS = [
    (marks(True, ["p1", "p2", "p3"], 10), 1.0, "10 of 10 points"),
    (marks(False, ["p1"], 3), 0.3, "3 of 10 points"),
    (marks("False", ["p1", "p3"], 8), 0.8, "8 of 10 points"),
    (marks("True", ["p1", "p2", "p3"], 10), 1.0, "10 of 10 points"),
    (marks(False, ["p1", "p2", "p3"], 12), 1.0, "10 of 10 points, stated as 12"),
    (marks(False, ["p2"], 7), 0.2, "2 of 10 points, stated as 7"),
    (marks(True, ["p1"], 3), 1.0, "3 of 10 points, but fully correct"),
    (marks(False, ["P1", "p1", "p1"], 3), 0.3, "3 of 10 points"),
    (marks(False, []), 0.0, "0 of 10 points"),
    (f"Both angles are right.\n```json\n{marks(False, ['p1', 'p2'], 5)}\n```", 0.5, "5 of 10"),
    (f"It says {marks(True, ['p3'])} itself.\n{marks(False, ['p2'], 2)}", 0.2, "2 of 10 points"),
    (f"<think>{marks(True, [])}</think>{marks(False, [])}", 0.0, "0 of 10 points"),
]


@pytest.mark.parametrize(("reply", "reward", "noted"), MARKS)
def test_points_are_added_up_here(reply: str, reward: float, noted: str) -> None:
    found = read_marks(reply, RUBRIC)
    assert found is not None
    share, said = worth(found, RUBRIC)
    assert share == pytest.approx(reward)
    assert said.startswith(noted)


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "fully correct, 10 of 10",
        "Score: 1",
        "[1, 2]",
        '{"fully_correct": true}',
        '{"awarded": ["p1"], "score": 3}',
        marks(1, ["p1"]),
        marks("yes", ["p1"]),
        marks(False, ["p4"]),
        marks(False, [1]),
        marks(False, "p1"),
        marks(False, {"p1": 3}),
        f"{marks(True, [])} I am sure.",
        f"<think>{marks(True, [])}",
        '{"fully_correct": true, "awarded": ["p1"',
        "{" * 5000,
    ],
)
def test_marks_of_another_form_are_none(reply: str) -> None:
    assert read_marks(reply, RUBRIC) is None
