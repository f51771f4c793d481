"""Short answers: the same words, however they are written."""

from __future__ import annotations

import time

import pytest

from axpo.errors import GradingError
from axpo.tasks.base import Example
from axpo.tasks.grading import check_example
from axpo.tasks.grading.short import words
from tests.support.grading import reward, verdict


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        # Public scorers get these wrong.
        ("(2,4)", "(2, 4)"), ("04:45", "4:45"), ("September", "Sep"),
        ("The Eiffel Tower", "Eiffel Tower"),
        ("a", "A"), ("\u201cDune\u201d", "Dune"),
        # Chosen against MMSearch, whose exact match is 0 here: the date is the same.
        ("August 9, 2024", "2024-08-09"),
        # Dates, months, times.
        ("9 August 2024", "2024-08-09"), ("Aug. 9th, 2024", "August 9, 2024"),
        ("2024/8/9", "2024-08-09"),
        ("the 9th of August 2024", "9 Aug 2024"), ("11/2/2006", "11/02/2006"), ("3:00", "3:0"),
        ("Sept", "Sep"),
        ("It opened on May 1, 1931", "It opened on 1931-05-01"), ("23:38", "23:38"),
        ("March", "Mar"),
        # Articles, punctuation, quotes, dress.
        ("Louvre!", "Louvre"), ("the Louvre", "Louvre"),
        ("<answer>Louvre</answer>", "The Louvre."), ("U.S.", "US"),
        ("an apple", "apple"), ("well-known", "well known"), ("don't", "don\u2019t"),
        ("\\text{red}", "red"),
        ("**Paris**", "paris"), ("Paris, France", "Paris France"),
        ("Dune: Part Two", "Dune Part Two"), ("!", "!"),
        ('the film "Dune"', "film Dune"), ("\\boxed{Spain}", "Spain"),
        ("The answer is Spain. It is far.", "Spain"),
        # Numbers.
        ("1,000", "1000"), ("5.0", "5"), ("three", "3"), ("$5", "5"), ("50%", "50"),
        ("\uff15", "5"), ("3.50", "3.5"),
        ("\u22125", "-5"), ("(2.000, 3.000)", "(2, 3)"), ("y=4", "y = 4"),
        ("[3,2,3,3,6]", "[3, 2, 3, 3, 6]"),
        ("1,234,567.0", "1234567"), ("1990\u20131995", "1990-1995"), ("A", "A"), ("the", "the"),
        ("AC", "ac"),
    ],
)  # fmt: skip
def test_right(answer: str, truth: str) -> None:
    assert reward("short", answer, truth) == 1


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("", "Sunday"), ("S", "Sunday"), ("Friday", "Feb"), ("3.5", "35"), ("-5", "5"), ("A", "B"),
        # One answer.
        ("Paris, London", "Paris"), ("Paris or London", "Paris"), ("red blue green", "red"),
        ("Sunday Monday", "Sunday"),
        ("<think>Paris", "Paris"), ("Paris <answer></answer>", "Paris"),
        ("\\boxed{Paris}\\boxed{London}", "Paris"),
        ("not Paris", "Paris"), ("The color of the flag is white.", "white"), ("un", "unknown"),
        ("Sun", "Sunday"),
        # Numbers and dates that differ.
        ("1010", "10:10"), ("2.5", "25"), ("1 000", "1001"), ("(3,4)", "(4,3)"),
        ("10\u00b2", "102"), ("x\u00b2", "x2"),
        ("5'", '5"'), ("5 x 7", "7 x 5"), ("x < 5", "x > 5"), ("C++", "C"), ("A-", "A+"),
        ("(2,400)", "2400"),
        ("August 10, 2024", "2024-08-09"), ("2/11/2006", "11/02/2006"),
        ("2024-13-45", "2024-12-45"), ("007", "7"),
        ("2010-12", "201012"), ("May", "Mar"), ("16:45", "4:45"), ("1.2.3", "1.23"), ("1/2", "12"),
        # Articles that say something.
        ("Vitamin", "Vitamin A"), ("the", "a"), ("", "a"),
        # Letters that only look alike.
        ("\u0421\u0410\u0422", "CAT"), ("\u0391", "A"), ("O", "0"),
    ],
)  # fmt: skip
def test_wrong(answer: str, truth: str) -> None:
    assert reward("short", answer, truth) == 0


@pytest.mark.parametrize(
    ("answer", "truths", "f1"),
    [
        ("The director is Paul Thomas Anderson", ("Paul Thomas Anderson",), 0.75),
        ("Dune: Part Two (2024)", ("Dune Part Two",), 6 / 7),
        ("50 percent", ("50%",), 2 / 3),
        ("Thomas Anderson", ("Nobody", "Paul Thomas Anderson"), 0.8),  # the best truth
        ("", ("x",), 0),
        ("x", ("x",), 1),
        ("x x x x", ("x",), 0.4),  # a word counts as often as the truth has it
        ("blue", ("red",), 0),
        ("August 9, 2024", ("2024-08-10",), 2 / 3),
    ],
)
def test_token_f1(answer: str, truths: tuple[str, ...], f1: float) -> None:
    assert reward("f1", answer, *truths) == pytest.approx(f1)


def test_several_truths_and_what_was_read() -> None:
    assert reward("short", "New York City", "NYC", "New York City") == 1
    found = verdict("short", "Answer: Paul Thomas", "nobody", "Paul Anderson")
    expected = "read 'Paul Thomas', expected 'Paul Anderson', token F1 0.5"
    assert (found.rule, found.detail) == ("short", expected)


@pytest.mark.parametrize("grading", ["short", "f1", "exact"])
def test_a_truth_that_no_answer_gives(grading: str) -> None:
    with pytest.raises(GradingError, match="nothing that an answer could equal"):
        check_example(Example("q", "?", (), " . ", grading=grading))


@pytest.mark.parametrize(
    "text",
    ["1,234", "1", "a.", "may 1 ", "12:", "1/1/", "'", "a'", "the ", "2024-1-", "-", "a+", "x "],
)
def test_any_text_takes_linear_time(text: str) -> None:
    began = time.process_time()
    words(text * (10_000 // len(text)))
    assert time.process_time() - began < 1
