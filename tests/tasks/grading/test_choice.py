"""The letter that an answer concludes with, and the many ways to name more than one."""

from __future__ import annotations

import time

import pytest

from axpo.errors import GradingError
from axpo.tasks.base import Example
from axpo.tasks.grading import check_example
from axpo.tasks.grading.choice import chosen_letter
from tests.support.grading import reward, verdict

COLOURS = ("red", "blue", "green", "yellow")
OTHER_LETTERS = ("A", "B", "D", "F", "G")


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        # Public scorers get these wrong.
        ("Based on the image, the answer is (A).", "A"),
        ("\\boxed{\\text{B}}", "B"),
        ("A red car is visible, but the glove is blue. Answer: B", "B"),
        ("Answer: A\nWait, actually: \\boxed{D}", "D"),
        ("The correct option is B because A is too dark.", "B"),
        ("Option B", "B"),
        ("<answer>B</answer>", "B"),
        ("Comparing both, the correct answer is **D**.", "D"),
        ("A, B and C are wrong, so D", "D"),
        ("The answer is not A; it is C.", "C"),
        ("blue or green", None),
        ("Cannot determine the answer", None),
        ("Both (A) and (B)", None),
        ("The color of the glove is blue.", "B"),
        ("<think>The glove is blue, so (B)", None),
        # How a letter is written.
        ("B", "B"), ("b", "B"), ("(B)", "B"), ("(b)", "B"), ("B.", "B"), ("[B]", "B"),
        ("option b", "B"),
        ("**B**", "B"), ("$B$", "B"), ("\\textbf{(B)}", "B"), ("\\mathrm{B}", "B"), ("\uff22", "B"),
        ("**Answer**: B", "B"), ("Answer\uff1aB", "B"), ("\\boxed{B. blue}", "B"),
        ("\\boxed{\\mathbf{B}}", "B"),
        ("Choice B", "B"), ("The correct option is **B**", "B"), ("B. blue", "B"),
        ("(B) blue", "B"),
        ("B: blue.", "B"), ("b) blue", "B"), ("B) Blue", "B"), ("blue (B)", "B"),
        ('{"short answer": "B"}', "B"),
        ('{"solution": "A or C", "short answer": "B. blue"}', "B"), ("I think it's B", "B"),
        ("Answer: B!", "B"),
        # A text alone.
        ("blue", "B"), ("Blue.", "B"), ("\\text{blue}", "B"), ("The glove is Blue", "B"),
        ("it is not red but green", "C"), ("It's yellow because it isn't red", "D"),
        # What it concludes, not how it begins.
        ("A. wrong. B. fits. So the answer is B", "B"), ("A. dark. B. fits. So it must be B", "B"),
        ("A is red, C is dark. Therefore, B.", "B"), ("Not (A), not (B): (C)", "C"),
        ("not A but C", "C"),
        ("A is wrong. B is wrong. C is wrong. D", "D"), ("I choose C. A and B are too dark.", "C"),
        ("Option A is incorrect; option B is correct.", "B"), ("B, not A", "B"), ("B (not A)", "B"),
        ("Since A is dark, B", "B"), ("It can't be (B), it is (C)", "C"),
        ("Neither A nor B; C", "C"),
        ("Only C fits.", "C"), ("C rather than D", "C"),
        ("I don't think it's A, it's C", "C"), ("A shows a cat. C matches the picture.", "C"),
        ("B\n\nExplanation: A is too dark, C is too light.", "B"), ("None of A, B, C; D", "D"),
        ("Reasoning: A is red and C is dark, so B", "B"), ("Between B and C, B is better.", None),
        ("A) is wrong, B) is wrong, C) fits", "C"), ("A and B, clearly, are wrong. C", None),
        ("It is A, as B and C are too small", "A"), ("The glove is blue, so B", "B"),
        ("B is the answer", "B"),
        # Several letters are no letter.
        ("A, B, C, D", None), ("A) or B)", None), ("\\boxed{B,A}", None), ("B. A.", None),
        ("A B C D", None),
        ("(A)(B)(C)(D)", None), ("A/B", None), ("A and B", None), ("B or (C)", None),
        ("A; B", None),
        ("A. red\nB. blue\nC. green\nD. yellow", None), ("red, blue, green, yellow", None),
        ("ABCD", None),
        ("red blue", None), ("The answer is A or B", None), ("either (A) or (B)", None),
        ("A-D", None),
        ("<answer>A</answer><answer>A, B</answer>", None), ("B, or maybe C", None), ("A|B", None),
        ("A is correct. B is correct.", None), ("A. Wait, no, it is C.", None),
        ("\\boxed{A \\text{ or } B}", None),
        ("Answer: A and also B", None), ("all of them", None),
        ("Both A and B are correct", None), ("A & B", None),
        ("A\nB\nC\nD", None), ("Options A, B", None), ("A+B", None), ("so A or B", None),
        ("(a) or (b)", None),
        # None, ruled out, contradicted, no letter of these.
        ("It can't be (B)", None), ("not B", None), ("B is wrong", None), ("B. red", None),
        ("E", None),
        ("", None), ("no idea", None), ("the sea", None), ("A red car", "A"),
        ("I see a dog", None), ("Best", None),
        ("The answer isn't B", None), ("I would rule out B", None), ("?", None),
        ("\\boxed{}", None),
        # Letters that only look alike: Cyrillic А and В, Greek Β; circled, mathematical.
        ("\u0410", None), ("\u0412", None), ("\u0392", None), ("\u24b7", None),
        ("\U0001d401", None),
        ("\\boxed{\u0412}", None),
    ],
)  # fmt: skip
def test_chosen_letter(answer: str, letter: str | None) -> None:
    assert chosen_letter(answer, COLOURS)[0] == letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B. a red car", "B"), ("(C) left", "C"), ("Answer: D) up", "D"), ("\\boxed{A}", "A"),
        ("The answer is B because", "B"), ("not option A but option C", "C"), ("B. A red car", "B"),
        ("It must be (D).", "D"), ("A red car", None), ("A dog is there", None), ("H", "H"),
        ("b. red", "B"),
        ("I think so", None), ("The U.S. flag", None), ("It's a plan", None), ("Z", "Z"),
        ("A-shaped", None),
        ("A is right", "A"), ("A", "A"), ("a", "A"), ("I", "I"),
    ],
)  # fmt: skip
def test_letters_of_options_that_stand_in_the_question(answer: str, letter: str | None) -> None:
    assert chosen_letter(answer)[0] == letter


@pytest.mark.parametrize(
    ("options", "answer", "letter"),
    [
        # A letter is the option that it stands for, also where it is another's text.
        (OTHER_LETTERS, "D", "D"), (OTHER_LETTERS, "F", "D"), (OTHER_LETTERS, "G", "E"),
        (OTHER_LETTERS, "E", "E"), (OTHER_LETTERS, "(C) D", "C"), (OTHER_LETTERS, "C. F", None),
        (("Point B", "Point A"), "Point A", "B"), (("Point B", "Point A"), "It's point A.", "B"),
        (("A and B", "A", "B", "none"), "A and B", "A"), (("both", "C only"), "C only", "B"),
        (("2", "12", "3.5", "5"), "It is 12.", "B"), (("2", "12", "3.5", "5"), "3.5 cm", "C"),
        (("2", "-2"), "-2", "B"), (("2", "-2"), "The result is -2", "B"),
        (("1/2", "1/3"), "It is 1/3", "B"),
        (("red", "dark red"), "It is dark red", "B"), (("red", "red", "blue"), "red", None),
        (("red", "red", "blue"), "It is blue", "C"), (("A. red", "B. blue"), "blue", "B"),
        (("(A) red", "(B) blue"), "It is red", "A"), (("no", "yes"), "Yes", "B"),
        (("x", "y"), "C", None),
        (("10\u00b2", "102"), "102", "B"), (("$\\frac{1}{2}$", "2"), "\\frac{1}{2}", "A"),
        (("a.", "b."), "b", "B"),
    ],
)  # fmt: skip
def test_options_texts(options: tuple[str, ...], answer: str, letter: str | None) -> None:
    assert chosen_letter(answer, options)[0] == letter


def test_the_verdict_names_the_rule() -> None:
    for answer, rule in [
        ("B", "letter"),
        ("B. blue", "letter and text"),
        ("blue", "text"),
        ("not A; it is B", "letters of a sentence"),
        ("The glove is blue", "texts of a sentence"),
    ]:
        found = verdict("choice", answer, "B", options=COLOURS)
        assert (found.reward, found.rule) == (1.0, f"choice: {rule}")
        assert found.detail == "read 'B', expected 'B'"
    assert verdict("choice", "A or B", "B").detail == "read nothing, expected 'B'"


def test_several_truths() -> None:
    assert reward("choice", "C", "B", "C") == 1
    assert reward("choice", "B and C", "B", "C") == 0


@pytest.mark.parametrize(
    ("truth", "options", "message"),
    [
        ("red", (), "truth 'red' is not a letter"),
        ("0", COLOURS, "truth '0' is not a letter"),  # a class's number
        ("E", COLOURS, "truth 'E' is beyond the 4 options; expected a letter up to D"),
    ],
)
def test_a_truth_that_no_answer_gives(truth: str, options: tuple[str, ...], message: str) -> None:
    example = Example("q", "?", (), truth, grading="choice", options=options)
    with pytest.raises(GradingError, match=message):
        check_example(example)


@pytest.mark.parametrize(
    "text",
    [
        "A ",
        "(A)",
        "not A ",
        "red ",
        "A or ",
        "because A ",
        "so ",
        "correct ",
        "I ",
        "A. ",
        "right-",
        "a.b",
    ],
)
def test_any_text_takes_linear_time(text: str) -> None:
    began = time.process_time()
    chosen_letter(text * 100_000, COLOURS)
    assert time.process_time() - began < 2
