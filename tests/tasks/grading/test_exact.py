"""The strict grader: the same text, apart from how it is written."""

from __future__ import annotations

import pytest

from tests.support.grading import reward, verdict


@pytest.mark.parametrize(
    ("answer", "truth", "right"),
    [
        ("Answer: 7", "7", 1),
        ("Answer:  New   york.", "New York", 1),
        ("\u201cBlue\u201d", "blue", 1),
        ("\\boxed{\\text{red}}", "red", 1),
        ("\uff12", "2", 1),
        ("\u22125", "-5", 1),
        # It is strict.
        ("Answer: 17", "7", 0),
        ("7 or 8", "7", 0),
        ("7, 8", "7", 0),
        ("", "7", 0),
        ("5.0", "5", 0),
        ("1,000", "1000", 0),
        ("The Louvre", "Louvre", 0),
        ("Louvre!", "Louvre", 0),
        ("10\u00b2", "102", 0),
        ("5'", '5"', 0),
        ("\\frac{A}{a}", "\\frac{a}{A}", 0),
        ("\u0410", "A", 0),
    ],
)
def test_exact(answer: str, truth: str, right: float) -> None:
    assert reward("exact", answer, truth) == right


def test_the_verdict_says_what_it_compared() -> None:
    found = verdict("exact", "It is.\nAnswer: Blue.", "blue")
    assert (found.rule, found.detail) == ("exact", "read 'Blue', expected 'blue'")
