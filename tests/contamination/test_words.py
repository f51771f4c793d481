"""What is left of a question: the same words however it is dressed, others for another question."""

from __future__ import annotations

import pytest

from axpo.contamination.words import question_words

SAME = [
    "What is the colour of the car?",
    "what is  the colour of **the car**",
    "<image>What is the colour of the car?\n(A) red\n(B) blue\n(C) a (dark) green\n"
    "Answer with the option's letter from the given choices directly.",
    "Question: What is the colour of the car?\nOptions:\nA. red\nB. blue\n"
    "Choose one of the options and answer with its letter.",
    "What is the colour of the car? Options: A. red B. blue C. green",
    "<image1>\nHint: Please answer the question and provide the correct option letter, e.g., A, B, "
    "at the end.\nQuestion: What is the colour of the car?\nChoices:\n(A) red\n(B) blue",
    "What is the colour of the car?\nPut the final answer in \\boxed{}.",
    "Answer the question using a single word or phrase. What is the colour of the car?",
]


@pytest.mark.parametrize("text", SAME)
def test_dress_options_and_requests_do_not_count(text: str) -> None:
    assert " ".join(question_words(text)) == "what is the colour of the car"


def test_lines_that_are_known_options_do_not_count() -> None:
    text = "What is the colour of the car?\nred\nBlue."
    assert question_words(text, ("red", "blue")) == question_words(SAME[0])
    assert question_words(text) != question_words(SAME[0])


OTHER = [
    ("Find $x^2 + 1$.", "Find $x^3 + 1$.", "find x ^ 2 + 1"),
    ("What is 3 - 5?", "What is 3 + 5?", "what is 3 5"),
    ("Is it 3.5 or -2?", "Is it 35 or 2?", "is it 3.5 or -2"),
    ("In a right angle at A. Point D is on B. Find DA.", "In a right angle at A.",
     "in a right angle at a point d is on b find da"),
    ("图中的角是多少?", "图中的边是多少?", "图 中 的 角 是 多 少"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "other", "words"), OTHER)
def test_what_is_asked_counts(text: str, other: str, words: str) -> None:
    assert " ".join(question_words(text)) == words
    assert question_words(other) != question_words(text)


def test_something_is_left_where_the_text_is_nothing_else() -> None:
    assert question_words("Select the correct option.") == ("select", "the", "correct", "option")
    assert question_words("(A) red\n(B) blue") == ("a", "red", "b", "blue")
    assert question_words("?!") == ()
