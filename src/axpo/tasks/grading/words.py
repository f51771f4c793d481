"""Mathematical answers that are words, names or dates, and numbers inside sentences."""

from __future__ import annotations

import re

from axpo.tasks.grading.prose import normalise
from axpo.tasks.grading.tidying import tidy
from axpo.tasks.grading.units import split_unit

_VERBATIM = re.compile(
    # 2024-10, 11/02/2006, 3-0: digits joined by signs are no sums and quotients to be computed.
    r"^[0-9]+(?:-[0-9]+)+$|^[0-9]+/[0-9]+(?:/[0-9]+)+$"
    # Dots, feet and inches, numbers to a base, sets and shapes by their sign.
    r"|\.\.|\\[lc]?dots|[0-9] ?['\"]|[0-9] ?_"
    r"|\\(?:emptyset|mathbb|angle|triangle|text|setminus)(?![A-Za-z])"
    # AB, Rr, MW, BCA: letters with a capital are a name, whose order and case count.
    r"|^(?=.*[A-Z])[A-Za-z]{2,}$"
)
_SENTENCE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{5,}|(?<![\\A-Za-z])[A-Za-z]{2,},? [A-Za-z]{2,}")
_SHORT = re.compile(r"(?:yes|no|true|false|even|odd|none|zero|one|two|all|any)", re.I)
_ENVIRONMENT = re.compile(r"\\(?:begin|end) ?\{[a-z]+\}")
_TEXT = re.compile(r"\\text ?\{([^{}]*)\}")
_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.^\\])(?:\\dollar )?-?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)(?:/[0-9]+)?"
    r"(?![0-9A-Za-z])"
)
_FENCED = re.compile(r"\$\$?([^$]+)\$\$?|\\\(([^$]+?)\\\)|\\\[([^$]+?)\\\]")
_CHANGES = re.compile(
    r"\b(?:not|no|never|minus|negative|less|more|least|most|fewer|greater|over|under|below|above|than"
    r"|up|between|almost|hundreds?|thousands?|millions?|billions?|trillions?|dozens?|half|halves|thirds?"
    r"|quarters?|times|plus|squared|cubed|root|factorial|power|mod|modulo|base|pi)\b|n't\b",
    re.I,
)


def is_words(text: str) -> bool:
    """Whether a tidy expression is compared as it is written, not by its value."""
    text = _ENVIRONMENT.sub("", text)
    return bool(_VERBATIM.search(text) or _SENTENCE.search(text) or _SHORT.fullmatch(text))


def same_text(one: str, other: str) -> bool:
    """Whether two tidy texts differ in spaces alone."""
    return one.replace(" ", "") == other.replace(" ", "")


def same_words(answer: str, truth: str) -> bool:
    """Whether two texts are the same; in sentences and words (not names) case does not matter."""
    answer, truth = (_TEXT.sub(r"\1", text).strip() for text in (answer, truth))
    if same_text(answer, truth):
        return True
    prose = _SENTENCE.search(truth) or _SHORT.fullmatch(truth)
    return bool(prose) and normalise(answer) == normalise(truth)


def spoken(text: str, sentence: str) -> str | None:
    """What a sentence (as it is and `tidy`) says: its only formula in dollars, or only number.

    None for a text that is no sentence, and where words change what a number says.
    """
    if not _SENTENCE.search(sentence):
        return None
    fenced = {"".join(found).strip() for found in _FENCED.findall(text)}
    if not fenced:
        return number_in(sentence)
    changed = len(fenced) > 1 or _CHANGES.search(_FENCED.sub(" ", text))
    return None if changed else tidy(fenced.pop())


def number_in(sentence: str) -> str | None:
    """The only number in a tidy sentence, with the unit behind it.

    None for a text that is no sentence, has formulas or several numbers, or words that change what
    the number says ("at least 5", "5 million", "not 5").
    """
    if not _SENTENCE.search(sentence) or _CHANGES.search(sentence):
        return None
    found = list(_NUMBER.finditer(sentence))
    rest = _NUMBER.sub("", sentence)
    if len({match[0] for match in found}) != 1 or re.search(r"[0-9\\^{}]", rest):
        return None
    number, behind = found[-1][0].rstrip(","), sentence[found[-1].end() :].split()
    for count in (3, 2, 1):
        words = " ".join(behind[:count]).rstrip(".,;")
        if split_unit(f"{number} {words}")[1]:
            return f"{number} {words}"
    return number
