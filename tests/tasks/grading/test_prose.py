"""What prose is compared without, and what it is not."""

from __future__ import annotations

import time

import pytest

from axpo.tasks.grading.prose import normalise, plain


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("  **A  B.** ", "a b"), ("New   York.", "new york"), ("“Blue”", "blue"),
        ("\u2018x\u2019 y", "x y"),
        ("\"Blue\".", "blue"), ("`red`", "red"), ("*red*", "red"),
        ("the **Eiffel** Tower", "the eiffel tower"),
        ("\\text{red}", "red"), ("\\mathrm{B}", "b"), ("\\textbf{\\text{B}}", "b"),
        ("11.5\\text{ cm}", "11.5 cm"),
        ("$5$", "5"), ("\\(x\\)", "x"), ("\\$5", "$5"), ("50\\%", "50%"),
        ("cost $5 or $6", "cost $5 or $6"),
        ("\uff22", "b"), ("\uff12", "2"), ("\u22125", "-5"), ("1990\u20131995", "1990-1995"),
        ("a\u00a0b", "a b"), ("a\u200bb", "ab"),
        ("cafe\u0301", "café"), ("\ufb01ne", "fine"), ("\uff21\uff22\uff23", "abc"),
        ("1{,}000", "1,000"), ("1\\,000", "1,000"),
        ("it's James\u2019 dog", "it's james' dog"), ("Straße", "strasse"),
    ],
)  # fmt: skip
def test_how_it_is_written_does_not_matter(text: str, same: str) -> None:
    assert normalise(text) == same


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("10²", "102"), ("2³", "23"), ("x²", "x2"), ("½", "1/2"), ("5'", '5"'),
        ("5\u2032", "5\u2033"), ("-5", "5"),
        ("\\frac{A}{a}", "\\frac{a}{A}"), ("x = Y", "x = y"), ("R_1", "r_1"), ("2**3", "23"),
        ("2 * 3", "2 3"),
        ("H₂O", "H2O"), ("3.5", "35"), ("a_1", "a1"), ("\\mathbb{R}", "R"), ("50%", "50"),
        ("\u211d", "R"),
        # Letters that only look alike.
        ("\u0410", "A"), ("\u0391", "A"), ("\u0392", "B"), ("\u0441at", "cat"), ("\u041e", "0"),
        ("l", "1"), ("I", "l"),
    ],
)  # fmt: skip
def test_different_texts_stay_different(one: str, other: str) -> None:
    assert normalise(one) != normalise(other)


def test_plain_keeps_case() -> None:
    assert plain("**(B)** \\text{Red}.") == "(B) Red."


@pytest.mark.parametrize(
    "text",
    ["**a ", "$a", '"', " '", "\\text{", "\\text{\\text{a}}", "`", "__a", "\\,", "é", "~a", "$$"],
)
def test_any_text_takes_linear_time(text: str) -> None:
    began = time.process_time()
    normalise(text * 50_000)
    assert time.process_time() - began < 2
