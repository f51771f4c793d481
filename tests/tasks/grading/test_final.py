"""Where an answer's text ends up as its final answer."""

from __future__ import annotations

import time

import pytest

from axpo.tasks.grading.final import GRADED, final_answer, tagged_answer


@pytest.mark.parametrize(
    ("text", "final"),
    [
        # The whole text, where nothing marks a part of it.
        ("7", "7"), ("  7\n", "7"), ("", ""), ("It is 7.", "It is 7."),
        ("I cannot answer the question", "I cannot answer the question"),
        # Answer: at a line's start, inside it, full-width, in Markdown, as a heading.
        ("It is 7.\nAnswer: 8", "8"),
        ("A red car is visible, but the glove is blue. Answer: B", "B"),
        ("Answer：B", "B"), ("**Answer**: B", "B"), ("**Answer:** B", "B"), ("**Answer: B**", "B"),
        ("### Final Answer\n\nB", "B"), ("**Final Answer**\n7 cm", "7 cm"),
        ("Answer:\n\n7", "7"), ("Answer:\n$$\n7\n$$", "7"), ("Final answer = 7", "7"),
        ("Answer: -5", "-5"), ("Answer: $5", "$5"), ("Answers: 3 and 4", "3 and 4"),
        # "answer is"
        ("So the answer is 7.", "7"), ("the correct answer is: **D**.", "D"),
        ("The correct option is B because A is too dark.", "B because A is too dark"),
        ("The answer to this question is red.", "red"), ("The answer should be 7", "7"),
        ("The answer isn't A", "The answer isn't A"),
        # To the end of the sentence, which no abbreviation ends.
        ("The answer is Paris. It is the capital.", "Paris"),
        ("The answer is 2.5. That is all.", "2.5"),
        ("The answer is Dr. No. It came first.", "Dr. No"),
        ("The answer is J. K. Rowling.", "J. K. Rowling"),
        ("The answer is not red. It is blue.", "not red. It is blue"),
        ("Answer: B. Wait, no, it is C.", "B. Wait, no, it is C"),  # after a letter it goes on
        # The last phrase that says something.
        ("Answer: 1\nno\n**Final answer:** 2", "2"), ("Answer: 1\nAnswer: 2\nAnswer:", "2"),
        ("The answer is A or the answer is B", "B"), ("The answer: 5 is wrong", "5 is wrong"),
        # JSON, with LaTeX as models write it in JSON.
        ('{"solution": "2 * 3", "short answer": 2.094}', "2.094"),
        ('```json\n{"short answer": "B. yes", "why": 1}\n```', "B. yes"),
        ('{"answer": "\\\\frac{1}{2}"}', "\\frac{1}{2}"),
        ('{"answer": "\\frac{1}{2}"}', "\\frac{1}{2}"),
        ('{"answer": "a \\"b\\""}', 'a "b"'), ('{"short_answer": [3, 2, 3]}', "[3, 2, 3]"),
        # Boxes: the last that is closed and not empty, of nested ones the inner.
        ("\\boxed{1} then \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{1} and an open \\boxed{2", "1"), ("\\boxed{1} \\boxed{ }", "1"),
        ("\\boxed{\\boxed{3}}", "3"), ("\\boxed{\\{1, 2)}", "\\{1, 2)"), ("{\\boxed{3}", "3"),
        ("Answer: A\nWait, actually: \\boxed{D}", "D"), ("\\boxed{1}\nAnswer: 2", "1"),
        ("\\\\boxed{B}", "B"),
        # Tags come before all.
        ("<answer>7</answer>\nAnswer: 8 \\boxed{9}", "7"), ("Answer: 8\n<answer></answer>", ""),
        ("<answer>It is \\boxed{7}.</answer>", "7"), ("<answer>1</answer><answer>2</answer>", "2"),
        # Thinking does not count, closed, unfinished, or opened by the prompt.
        ("<think>Answer: 1</think>Answer: 2", "2"), ("Answer: 1</think>2", "2"),
        ("<think>so it is \\boxed{7}", ""), ("<thinking>7</thinking>8", "8"),
        ("7 <think>or <answer>8</answer>", "7"), ("<answer>1</answer></think>", ""),
        ("<THINK>1</Think> <answer>2</answer> <think>3", "2"),
    ],
)  # fmt: skip
def test_final_answer(text: str, final: str) -> None:
    assert final_answer(text) == final


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>7</answer>", "7"),
        ("It is 7.\n<answer>\n 7 \n</answer>\nDone.", "7"),
        ("<ANSWER>7</Answer>", "7"),
        # None, or no pair.
        ("7", None), ("<answer>7", None), ("7</answer>", None), ("</answer>7<answer>", None),
        ("< answer>7</answer>", None), ("<answers>7</answers>", None),
        # Several: the last one, if complete.
        ("<answer>1</answer> no, <answer>2</answer>", "2"),
        ("<answer>1</answer> no, <answer>2", "1"),
        ("<answer>1</answer></answer>", "1"),
        # Nested and opened twice: the nearest opening.
        ("<answer>1<answer>2</answer>3</answer>", "2"),
        ("<answer>let me see <answer>2</answer>", "2"),
        # Empty is an answer.
        ("<answer>1</answer><answer> </answer>", ""),
        # Only what follows the last thinking.
        ("<think><answer>1</answer></think><answer>2</answer>", "2"),
        ("<think><answer>1</answer></think>2", None),
        ("<think>so <answer>1</answer>", None),
        ("<answer>1</answer><think><answer>2</answer>", "1"),
        ("<answer>1</answer><think>or 2?</think>yes", None),
        ("<answer>1</answer></think>2", None),
        ("<answer>1<think>2</answer>3</think>4</answer>", None),
        ("<think><answer>1</think>2</answer>", None),
    ],
)  # fmt: skip
def test_tagged_answer(text: str, answer: str | None) -> None:
    assert tagged_answer(text) == answer


def test_the_end_of_a_long_answer_counts() -> None:
    assert final_answer("Answer: 1\n" + "so. " * GRADED + "Answer: 2") == "2"
    assert final_answer("<think>" + "so " * GRADED + "Answer: 1") == ""
    assert len(final_answer("x" * 3 * GRADED)) == GRADED


@pytest.mark.parametrize(
    "text",
    [
        "\n" * 1_000_000, "x" + "\n" * 1_000_000 + "y", "answer" + "\n" * 1_000_000,
        "\\boxed{" * 100_000, "\\boxed{" * 50_000 + "}" * 50_000, "*\n" * 500_000,
        "answer " * 200_000, "answer:\n" * 200_000, "answer: \"" * 100_000,
        "\"answer\": \"" * 100_000, "**answer**" * 100_000, "<answer>" * 200_000,
        "</answer>" * 200_000, "<think>" * 200_000, "A. " * 400_000, "answer to " * 100_000,
        "{" * 1_000_000, "*" * 1_000_000, "answer is" + " " * 1_000_000, "# " * 500_000,
    ],
    ids=lambda text: repr(text[:12]),
)  # fmt: skip
def test_any_text_takes_linear_time(text: str) -> None:
    began = time.process_time()
    final_answer(text)
    assert time.process_time() - began < 2  # quadratic would be minutes
