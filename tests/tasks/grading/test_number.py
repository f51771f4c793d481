"""Numbers within a tolerance, and texts that only look like one number."""

from __future__ import annotations

import time

import pytest

from axpo.errors import GradingError
from axpo.tasks.base import Example
from axpo.tasks.grading import check_example
from axpo.tasks.grading.number import quantity
from tests.support.grading import reward, verdict


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        # Public scorers get these wrong.
        ("2.094", "2.0944"), ('{"short answer": 2.094}', "2.0944"), ("π", "3.1416"),
        ("\\frac{1}{2}", "0.5"),
        ("1,234.5", "1234.5"), ("50%", "0.5"), ("50%", "50"), ("12 cm", "12"), ("x = 4.000", "4"),
        # Signs, decimals, exponents, thousands.
        ("-3", "-3"), ("+3", "3"), ("\u22123", "-3"), ("5.0", "5"), (".5", "0.5"), ("5.", "5"),
        ("\uff15", "5"),
        ("1.5e3", "1500"), ("2 \u00d7 10^3", "2000"), ("2 \\times 10^{-3}", "0.002"),
        ("10\u00b2", "100"),
        ("1{,}234", "1234"), ("1\\,234", "1234"), ("7{,}685{,}413{,}092", "7685413092"),
        ("$1,000", "1000"),
        # Fractions and pi.
        ("1/2", "0.5"), ("-\\dfrac{3}{4}", "-0.75"), ("1 1/2", "1.5"), ("\u00bd", "0.5"),
        ("2\u00bd", "2.5"),
        ("2\\pi", "6.2832"), ("2*pi", "6.283"), ("\\frac{\\pi}{3}", "1.047"),
        ("3\u03c0/4", "2.356"),
        ("\\frac{1}{2}\\pi", "1.571"), ("\\frac{2\\pi}{3}", "2.094"), ("0.5", "1/2"),
        ("3.1416", "\\pi"),
        # Units, currencies, percentages, scales.
        ("12 cm", "12 cm"), ("12", "12 cm"), ("12 cm^2", "12 cm\u00b2"), ("90\u00b0", "90"),
        ("90^\\circ", "90 degrees"),
        ("\\$1.45", "1.45"), ("$5", "5 dollars"), ("11.5\\text{ cm}", "11.5"), ("30 km/h", "30"),
        ("3.14 \\mathrm{~cm}", "3.14 cm"),
        ("50 percent", "50%"),
        ("50", "50%"), ("0.5", "50%"), ("5 million", "5000000"), ("50\\%", "0.5"),
        ("3 apples", "3"), ("-$5", "-5"),
        # In a text.
        ("The area is 12 cm.", "12"), ("\\boxed{12}", "12"), ("The answer is 12. Good.", "12"),
        ("about 12", "12"),
        ("It is 50% of it", "0.5"), ("**12**", "12"), ("2 + 2 = 4", "4"), ("x \u2248 4", "4"),
        ("(4)", "4"), ("=4", "4"),
        # The tolerance.
        ("4.001", "4"), ("0.0005", "0.0005"), ("0", "0"), ("0.001", "0"), ("2.0934", "2.0944"),
    ],
)  # fmt: skip
def test_right(answer: str, truth: str) -> None:
    assert reward("number", answer, truth) == 1


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("2.09", "2.0944"), ("-3", "3"), ("nan", "4"), ("inf", "4"), ("-inf", "4"),
        ("Infinity", "4"),
        ("", "4"), ("no", "4"), ("<think>4", "4"), ("\\boxed{}", "4"),
        # The tolerance is absolute, and never reaches from a truth to nothing.
        ("4.0011", "4"), ("2.0933", "2.0944"), ("0", "0.0005"), ("0.002", "0"),
        ("9007199254740993", "9007199254740992"),
        # Several are none.
        ("4 or 5", "4"), ("4 or 5", "5"), ("4, 5", "4"), ("4; 5", "5"), ("4 5", "4"),
        ("5-6", "5"), ("1 2 3 4 5", "4"),
        ("x = 4, y = 5", "5"), ("x = 4 or x = 5", "5"), ("between 4 and 5", "4"),
        ("4\u00b11", "4"), ("3,4", "3.4"),
        ("1,2345", "12345"), ("4 or five", "4"), ("not 4", "4"), ("It isn't 4", "4"),
        ("4:45", "4"), ("4^5", "4"),
        ("1.2.3", "1.2"), ("4 = 5", "4"), ("2^3", "23"), ("10\u00b2", "102"), ("4e", "5"),
        ("1/2/3", "0.5"),
        ("0 1 2 3 4 5 6 7 8 9", "7"), ("3 1/2 or 4", "4"), ("$4 or $5", "4"), ("4 to 5", "4"),
        ("1,5", "1.5"),
        # Units, percentages and scales that differ.
        ("5 cm", "5 m"), ("5000%", "50%"), ("50%", "5000"), ("5 million", "5"), ("5 mW", "5 MW"),
        ("$5", "\u20ac5"),
        ("about 5 million people", "5"), ("90\u00b0C", "90\u00b0F"),
        # No number, or none in bounds.
        ("\u221a4", "4"), ("\\sqrt{4}", "4"),
        ("1/0", "0"), ("9^{9^9}", "9"), ("9" * 5000, "9"), ("1e999", "1"), ("0^-1", "0"),
         ("\\frac{1}{0}", "1"),
        ("\u0417", "3"), ("O", "0"), ("l", "1"), ("four", "4"), ("\u2463", "4"), ("A4", "4"),
        ("x4", "4"),
    ],
)  # fmt: skip
def test_wrong(answer: str, truth: str) -> None:
    assert reward("number", answer, truth) == 0


@pytest.mark.parametrize("truth", ["nan", "inf", "red", "4 or 5", "1e999", "None", ""])
def test_a_truth_that_no_answer_gives(truth: str) -> None:
    with pytest.raises(GradingError, match="is not one finite number"):
        check_example(Example("q", "?", (), truth, grading="number"))


def test_several_truths_and_what_was_read() -> None:
    assert reward("number", "5", "4", "5") == 1
    found = verdict("number", "Answer: 50%", "0.5")
    assert (found.rule, found.detail) == ("number", "read '50%', expected '0.5'")
    assert verdict("number", "4 or 5", "4").detail == "read nothing, expected '4'"


@pytest.mark.parametrize(
    "text",
    ["1", "1 ", "1,", "1,234,", "1.", "=", "= 1 ", "\\frac{", "π", "2^", "cm ", "½", "²", "-"],
)
def test_any_text_takes_linear_time(text: str) -> None:
    began = time.process_time()
    quantity(text * (10_000 // len(text)))
    assert time.process_time() - began < 1
