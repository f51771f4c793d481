"""The graders `short` and `f1`: short free-text answers, equal to a truth or sharing words with it.

Both compare the words of the final answer with those of each truth (`words`); in order:

1. `prose.normalise`: case, Unicode variants, quotes, Markdown, LaTeX's text commands.
2. A date with its month's name, or written year-month-day, is its three numbers
   ("August 9, 2024" is "2024-08-09"); "11/02/2006" stays as it is, for nobody knows which is the
   month. Months are their first three letters (Sep, Sept, September). Times lose leading zeros.
3. Numbers keep sign, point and value: "3.5" is not "35", "-5" not "5"; "1,000" is "1000" and "5.0"
   is "5". Zero to ten may be words.
4. Punctuation separates words and is dropped, but for signs of mathematics, the signs behind a word
   ("C++", "blood type A-"), and ' and " behind a number (feet, inches). "U.S." is "us".
5. Articles (a, an, the) before another word are dropped, so "A" stays "A", and "Vitamin A" too.

`short` is 1.0 where all words are equal, in order. `f1` is the harmonic mean of the shares of words
that answer and truth have in common (SQuAD's token F1, MMSearch's metric).
"""

from __future__ import annotations

import re
from collections import Counter
from datetime import date

from axpo.tasks.base import Example
from axpo.tasks.grading.final import final_answer
from axpo.tasks.grading.prose import check_text, normalise
from axpo.tasks.grading.verdict import BuiltIn, Verdict, compared, truths_of

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = (
    r"\b(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)(?:uary|ruary|ch|il|e|y|ust|t|tember|ober|"
    r"ember)?\b\.?"
)
_DAY = r"(\d{1,2})(?:st|nd|rd|th)?"
_DATES = (
    (re.compile(rf"{_MONTH}\s{_DAY},?\s(\d{{4}})(?!\d)"), (3, 1, 2)),
    (re.compile(rf"(?<![\d.,:/-]){_DAY}\s(?:of\s)?{_MONTH},?\s(\d{{4}})(?!\d)"), (3, 2, 1)),
    (re.compile(r"(?<![\d.,:/-])(\d{4})[-/](\d{1,2})[-/](\d{1,2})(?![\d/-])"), (1, 2, 3)),
)
_TIME = re.compile(r"(?<![\d:])\d{1,2}(?::\d{1,2}){1,2}(?![\d:])")
_SLASHED = re.compile(r"(?<![\d/])\d{1,2}/\d{1,2}/\d{4}(?![\d/])")
_INITIALS = re.compile(r"\b(?:[^\W\d_]\.)+[^\W\d_]\b\.?")
_WORD = re.compile(
    r"""
      (?:(?<![\w)\].])[-+])?(?:(?<![(\[])\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(?:\.\d+)?(?![.]?\d)['"]?
    | [^\W_]+(?:[+#-]+(?![\w+#-]))?
    | [<>=+±×÷√^|~≤≥≠≈∞°]
    """,
    re.X,
)
_NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_DIGITS = {name: str(value) for value, name in enumerate(_NAMES)}


def words(text: str) -> list[str]:
    """What `short` and `f1` compare of a text: its words, one where it has none."""
    text = normalised = normalise(text)
    for pattern, groups in _DATES:
        text = pattern.sub(lambda found, groups=groups: _date(found, groups), text)
    text = _TIME.sub(lambda found: _unpadded(found[0], ":"), text)
    text = _SLASHED.sub(lambda found: _unpadded(found[0], "/"), text)
    text = _INITIALS.sub(lambda found: found[0].replace(".", ""), text)
    text = re.sub(r"(?<=[^\W\d_])'(?=\w)|(?<=s)'(?!\w)", "", text)
    found = [_word(one) for one in _WORD.findall(text)]
    kept = [
        word
        for place, word in enumerate(found)
        if word not in ("a", "an", "the") or place + 1 == len(found)
    ]
    return kept or [normalised]


def _date(found: re.Match[str], groups: tuple[int, int, int]) -> str:
    """A date as its numbers; what is none stays."""
    year, month, day = (found[group] for group in groups)
    number = int(month) if month.isdecimal() else _MONTHS.index(month) + 1
    try:
        date(int(year), number, int(day))
    except ValueError:
        return found[0]
    return f"{int(year)} {number} {int(day)}"


def _unpadded(text: str, between: str) -> str:
    return between.join(str(int(part)) for part in text.split(between))


def _word(word: str) -> str:
    if word[-1].isdecimal() or word[0] in "+-":
        word = word.replace(",", "").removeprefix("+") or word
        return word.rstrip("0").rstrip(".") if "." in word else word
    if month := re.fullmatch(_MONTH, word):
        return month[1]
    return _DIGITS.get(word, word)


def token_f1(found: list[str], right: list[str]) -> float:
    """Token F1 of two lists of words: 2 x common / (all words of both)."""
    common = (Counter(found) & Counter(right)).total()
    return 2 * common / (len(found) + len(right))


def _nearest(example: Example, answer: str) -> tuple[bool, float, str, str]:
    """Whether the answer is the truth nearest to it, the token F1, what was read, that truth."""
    final = final_answer(answer)
    if not normalise(final):
        return False, 0.0, final, example.answer
    read = words(final)
    pairs = [(truth, words(truth)) for truth in truths_of(example)]
    compared = [(read == right, token_f1(read, right), final, truth) for truth, right in pairs]
    return max(compared, key=lambda one: one[:2])


async def _short(example: Example, answer: str) -> Verdict:
    equal, f1, final, truth = _nearest(example, answer)
    verdict = compared(equal, "short", final, truth)
    return Verdict(verdict.reward, verdict.rule, f"{verdict.detail}, token F1 {f1:.3g}")


async def _f1(example: Example, answer: str) -> Verdict:
    _, f1, final, truth = _nearest(example, answer)
    return Verdict(f1, "f1", compared(f1 == 1.0, "f1", final, truth).detail)


short = BuiltIn(_short, check_text)
"""1.0 where the final answer has a truth's words."""
f1 = BuiltIn(_f1, check_text)
"""The token F1 of the final answer, the best over the truths."""
