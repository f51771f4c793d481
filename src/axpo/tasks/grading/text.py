"""Finding the final answer in a turn's text, and graders that compare it as text or as a letter."""

from __future__ import annotations

import re
import unicodedata

from axpo.errors import GradingError
from axpo.tasks.base import Example
from axpo.tasks.grading.tags import tagged_answer
from axpo.tasks.grading.verdict import BuiltIn, Verdict, best, compared, truths_of

_ANSWER_LINE = re.compile(r"^[\s*#]*(?:final\s+)?answer\s*:[\s*]*(\S.*)$", re.I | re.M)
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_QUOTES = "\"'`*$“”‘’ "
_LETTER = re.compile(r"\(?([a-z])\)?", re.I)
_LEADING = re.compile(r"\(?([A-Z])(?:[.:),]|\s*$|\s*\n)")
_NAMED = re.compile(r"\b(?:option|choice|answer\s+is)\s*:?\s*[*(]*([A-Z])\b")
_BRACKETED = re.compile(r"\(([A-Z])\)")


def final_answer(text: str) -> str:
    """The last `\\boxed{...}`, else the last line `Answer: ...`, else the whole text; all of it
    inside the last `<answer>...</answer>` where there is one (`tagged_answer`)."""
    if (tagged := tagged_answer(text)) is not None:
        text = tagged
    boxed = [found for start in _BOXED.finditer(text) if (found := _braced(text, start.end()))]
    if boxed:
        return boxed[-1].strip()
    lines = _ANSWER_LINE.findall(text)
    return (lines[-1] if lines else text).strip()


def _braced(text: str, start: int) -> str | None:
    """What stands between the brace that opened before `start` and its partner."""
    depth = 1
    for position in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[start:position]
    return None


def normalise(text: str) -> str:
    """Case, spacing, quotes, Unicode variants and a full stop at the end do not matter."""
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return text.strip(_QUOTES).removesuffix(".").strip(_QUOTES)


async def _exact(example: Example, answer: str) -> Verdict:
    final = final_answer(answer)
    return best(
        compared(normalise(final) == normalise(truth), "exact", final, truth)
        for truth in truths_of(example)
    )


def check_text(example: Example) -> None:
    """Raise `GradingError` for a truth without anything to compare."""
    for truth in truths_of(example):
        if not normalise(truth):
            raise GradingError(f"truth {truth!r} has nothing that an answer could equal")


exact = BuiltIn(_exact, check_text)
"""1.0 where the final answer equals a truth after `normalise`."""


def chosen_letter(answer: str) -> str | None:
    """The letter that a multiple-choice answer names, None where there is none or no single one.

    In this order: the final answer is a letter; it begins with one ("B.", "(B) red"); the last
    "option B" or "answer is B"; a single bracketed letter.
    """
    final = final_answer(answer)
    if found := _LETTER.fullmatch(final.strip(_QUOTES + ".")):
        return found[1].upper()
    if found := _LEADING.match(final.strip(_QUOTES)):
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
