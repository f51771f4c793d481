"""The official rule of MathVision: mathllm/MATH-V, evaluation/evaluate.py and utils.py.

Reading, in this order: a letter A-E that ends a reply (" B.", " (B).") or is its first line; a
number behind the last "is "; without a box, what follows "the answer is" up to the end of its
sentence; of several boxes the last; what stands between the first box's brace and the last brace of
all; that in lower case, behind the last "=", without spaces, styles and some units.

An answer is right where it is the truth, or the right option's text: as a text, as a tuple element
by element, or in its value rounded to two decimals. What fails is wrong.

Their values are latex2sympy's and Python's `eval`, which hang on a large power. Here they are those
of `axpo.tasks.grading.expressions`, read as theirs are: `4/3\\pi` is 4 over 3π, `1:2` a half, and
what holds a variable, a unit or a sign such as ° has none. Nor has what is too large to compute.
"""

from __future__ import annotations

import re
from fractions import Fraction

import mpmath

from axpo.tasks.grading import expressions
from axpo.tasks.grading.arithmetic import TooLarge
from axpo.tasks.grading.expressions import Unreadable
from axpo.tasks.grading.formulas import beyond_limits

LONGEST = 200
"""Characters of an expression that is evaluated (choice)."""

_PHRASES = ("the final answer is", "the answer is", "the correct answer is", "the answer should be")
_DROPPED = (
    (" ", ""), ("\\,", ""), ("\\\\", "\\"), ("\n", ""),
    *((one, "") for one in (
        "\\text", "\\mbox", "\\left", "\\right", "^{\\circ}", "^\\circ", "{m}^3", "m^3", "{units}",
        "units", "{km}", "km", "\\!",
    )),
    ("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac"),
    *((one, "") for one in ("\\left", "\\right", "^{\\circ}", "^\\circ", "\\$", "$", "\\%")),
)  # fmt: skip
"""Replaced in this order; some twice, for one may bring another together."""
_ROOTS = (
    (r"\\sqrt(?!\\sqrt)([^{])", r"\\sqrt{\1}"),
    (r"\\frac([^{])(?=\{)", r"\\frac{\1}"),
    (r"\\frac([^{])([^{])", r"\\frac{\1}{\2}"),
)
"""Braces that are added where there is a root."""
_READABLE = re.compile(
    r"(?:\\frac(?=\s*\{)(?!\s*\{(?:[^{}]|\{[^{}]*\})*\}\s*(?:[^\s{]|$))|\\sqrt(?=\s*[{\[])"
    r"|\\(?:pi|cdot|times|div|binom|log|exp|lfloor|rfloor|(?:arc)?(?:sin|cos|tan)h?)(?![a-z])"
    r"|(?<=[0-9])\\%|e(?=\s*\^)|[0-9.,:+\-*/^_!(){}\[\]\s])+"
)
_REWRITTEN = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"\$|\\(?:left|right|displaystyle)(?![a-z])", ""),
        (r"\\,|\\q?quad(?![a-z])|~", " "),
        (r"\\[dt]frac", r"\\frac"),
        (r"(?:&|\.(?![0-9])|\\rightarrow|triangle).*", ""),
    )
)
_ORDERED = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"\\%", "%"),
        (r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))", ""),
        (r":", "/"),
        (r"/\s*([0-9.]+)", r"/{\1}"),
        (r"(?<=[0-9])\s+([0-9.]+)|(?<=[)}i])\s*([0-9.]+)", r"{\1\2}"),
    )
)
"""What makes numbers side by side factors, and a divisor take all factors behind it."""


def read(reply: str) -> str:
    """What the rule reads in a reply, in lower case."""
    said = reply.strip()
    said = next((letter for letter in "ABCDE" if _names(said, letter)), said)
    number = said.split("is ")[-1].rstrip(".")
    said = number if _is_number(number) else said
    boxes = said.count("oxed{")
    if boxes > 1:
        said = "oxed{" + said.split("oxed{")[-1]
    for phrase in _PHRASES if not boxes else ():
        for start in (phrase, phrase.capitalize()):
            behind = said.split(start)[-1].strip()
            said = behind.split("\n")[0].split(". ")[0] if start in said else behind
    found = _undressed(_inside(said.lower().replace("{}", "")))
    found = re.sub(r"\{([a-e])\}", r"\1", re.sub(r"\(([a-e])\)", r"\1", found))
    return found.rstrip(".").lstrip(":").strip()


def is_right(found: str, *truths: str) -> bool:
    """Whether what was read is one of the truths."""
    return any(_same(truth.lower(), found) for truth in truths)


def _names(said: str, letter: str) -> bool:
    ends = said.endswith((f" {letter}.", f" ({letter})."))
    return ends or said.startswith((f"{letter}\n", f"({letter})\n", f"({letter}) {letter}\n"))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _inside(said: str) -> str:
    start, end = said.find("oxed{"), said.rfind("}")
    found = said[start + 5 : end] if -1 < start < end else said
    first = found.find("}")
    return found[:first] if first != -1 and "{" not in found[:first] else found


def _undressed(text: str) -> str:
    text = text.split("=")[-1].split("\\approx")[-1]
    for old, new in _DROPPED:
        text = text.replace(old, new)
    for pattern, new in _ROOTS if "sqrt" in text else ():
        text = re.sub(pattern, new, text)
    return text


def _same(truth: str, found: str) -> bool:
    if not truth.strip() or not found.strip():
        return False
    if truth.strip() == found.strip():
        return True
    for valued in (_tuple, value):
        one = valued(truth)
        if one is not None and one == valued(found):
            return True
    return False


def _tuple(text: str) -> list[str] | None:
    """The bracket and the values of a tuple as they print, None for anything else."""
    parts = text[1:-1].split(",")
    if text[0] + text[-1] not in ("()", "[]") or len(parts) < 2:
        return None
    values = [value(part) for part in parts]
    return None if None in values else [text[0], *map(str, values)]


def _begun(text: str) -> str:
    """The text up to a bracket that nothing opened: theirs reads no further, and says nothing."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth < 0:
            return text[:place]
    return text


def value(text: str) -> float | None:
    """The value of an expression to two decimals, None where it has none."""
    for pattern, new in _REWRITTEN:
        text = pattern.sub(new, text)
    text = _begun(text)
    if len(text) > LONGEST or beyond_limits(text) or not _READABLE.fullmatch(text):
        return None
    for pattern, new in _ORDERED:
        text = pattern.sub(new, text)
    try:
        found = expressions.value_at(expressions.parse(text), {})
        if found is None or isinstance(found, mpmath.mpc):
            return None
        whole = isinstance(found, Fraction) and found.denominator == 1
        return int(found) if whole else round(float(found), 2)
    except (Unreadable, TooLarge, OverflowError, KeyError):
        return None
