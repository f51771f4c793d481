"""The grader `choice`: the letter that a multiple-choice answer names."""

from __future__ import annotations

import re

from axpo.errors import GradingError
from axpo.tasks.base import Example
from axpo.tasks.grading.final import final_answer
from axpo.tasks.grading.prose import plain
from axpo.tasks.grading.verdict import BuiltIn, Verdict, best, compared, truths_of

_LETTER = re.compile(r"\(?([a-z])\)?", re.I)
_LEADING = re.compile(r"\(?([A-Z])(?:[.:),]|\s*$|\s*\n|\s+because)")
_NAMED = re.compile(r"\b(?:option|choice|answer\s+is)\s*:?\s*[*(]*([A-Z])\b")
_BRACKETED = re.compile(r"\(([A-Z])\)")


def chosen_letter(answer: str) -> str | None:
    """The letter that a multiple-choice answer names, None where there is none or no single one.

    In this order: the final answer is a letter; it begins with one ("B.", "(B) red"); the last
    "option B" or "answer is B"; a single bracketed letter.
    """
    final = plain(final_answer(answer))
    if found := _LETTER.fullmatch(final.strip(".")):
        return found[1].upper()
    if found := _LEADING.match(final):
        return found[1]
    if named := _NAMED.findall(final):
        return named[-1]
    bracketed = set(_BRACKETED.findall(final))
    return bracketed.pop() if len(bracketed) == 1 else None


def true_letter(truth: str) -> str:
    """The letter that a multiple choice's truth is; raises `GradingError` where it is none."""
    letter = _LETTER.fullmatch(truth.strip())
    if letter is None:
        raise GradingError(f"truth {truth!r} is not a letter, as the grader 'choice' needs")
    return letter[1].upper()


async def _choice(example: Example, answer: str) -> Verdict:
    letter = chosen_letter(answer)
    return best(
        compared(letter == true_letter(truth), "choice", letter, true_letter(truth))
        for truth in truths_of(example)
    )


def _check_choice(example: Example) -> None:
    for truth in truths_of(example):
        true_letter(truth)


choice = BuiltIn(_choice, _check_choice)
"""1.0 where the answer names a truth's letter."""
