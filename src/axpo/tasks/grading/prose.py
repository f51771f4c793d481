"""The normalisation of prose: how a text is written does not matter, what it says does.

`plain` removes what only dresses a text and keeps its case; `normalise` folds the case as well. No
formula becomes another one: exponents, fractions and signs stay what they are, and case counts
where a formula's signs are left. Letters that only look alike (Cyrillic А, Greek Α, Latin A) stay
different, for what a reader takes for the right letter is not yet the right answer; full-width
letters are the same letters, as keyboards in Asia type them.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from axpo.errors import GradingError
from axpo.tasks.base import Example
from axpo.tasks.grading.verdict import truths_of

_SAME = str.maketrans("‘’‚‛′“”„‟«»″−‐‑‒–—", "'''''" + '"""""""' + "------")
_VARIANTS = ("<wide>", "<narrow>", "<noBreak>", "<compat>")
_WRAPPER = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|sc|up|md|normal)?|math(?:bf|it|rm|sf|tt)|emph|mbox|operatorname)"
    r"\s{0,4}\{([^{}]*)\}"
)
_DOLLARS = re.compile(r"\$\$?(?=[^\s$])([^$]*)(?<=[^\s\\])\$\$?(?![\d$])")
_OPENING_MARK = re.compile(r"(?<![\w*_`\\])(?:\*\*\*?|__|`{1,3})(?=[^\s*_`])")
_CLOSING_MARK = re.compile(r"(?<=[^\s*_`])(?:\*\*\*?|__|`{1,3})(?![\w*_`])")
_QUOTED = re.compile(r"""(?<![^\s(\[])(?:"([^"\n]*)"|'([^'\n]*)'(?!\w))""")
_LATEX = (
    (r"\\[()\[\]]|\\!|\\(?:left|right)(?![a-zA-Z])", ""),
    (r"(?<=\d)(?:\{,\}|\\,|[\u2009\u202f])(?=\d{3}(?!\d))", ","),  # thousands
    (r"\\[,;: ]|\\q?quad(?![a-zA-Z])|(?<=[\w{])~(?=[\w\\])", " "),
    (r"\\([$%&#_])", r"\1"),
)
_FORMULA = re.compile(r"[\\^_={}]")


def plain(text: str) -> str:
    """`text` without what only dresses it, its case kept, one space between words.

    Gone are LaTeX's text commands and spaces, `$...$`, Markdown's marks, quotation marks around
    words, and characters without a width; dashes and quotes become ASCII, full-width letters
    ordinary ones.
    """
    text = unicodedata.normalize("NFC", text)
    for pattern, replaced in _LATEX:
        text = re.sub(pattern, replaced, text)
    text = re.sub(r"[^\x00-\x7f]", lambda one: _ordinary(one[0]), text)
    for _ in range(4):  # wrappers in wrappers
        text = _WRAPPER.sub(r"\1", text)
    text = _QUOTED.sub(lambda found: found[1] or found[2] or "", _DOLLARS.sub(r"\1", text))
    text = _CLOSING_MARK.sub("", _OPENING_MARK.sub("", text))
    text = " ".join(text.split())
    if len(text) > 2 and text[0] == text[-1] and text[0] in "*_":
        text = text[1:-1].strip()
    return text


def normalise(text: str) -> str:
    """`plain` prose for comparing: without case and a full stop at the end.

    Case stays where a formula's signs are left (`\\frac{A}{a}`, `x = Y`).
    """
    text = plain(text).removesuffix(".").rstrip()
    return text if _FORMULA.search(text) else text.casefold()


@lru_cache(4096)
def _ordinary(one: str) -> str:
    """The character as it is compared."""
    one = one.translate(_SAME)
    if one.isascii():
        return one
    category = unicodedata.category(one)
    if category in ("Cf", "Zs"):  # invisible, or a space
        return "" if category == "Cf" else " "
    variant = unicodedata.decomposition(one).startswith(_VARIANTS)
    return unicodedata.normalize("NFKC", one) if variant else one


def check_text(example: Example) -> None:
    """Raise `GradingError` for a truth without anything to compare."""
    for truth in truths_of(example):
        if not normalise(truth):
            raise GradingError(f"truth {truth!r} has nothing that an answer could equal")
