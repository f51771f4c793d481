"""The grader `number`: a number within an absolute tolerance of the truth.

What is read, in this order, of the final answer without its dress (`prose.plain`):

1. **A value**, alone or after the last `=` or `≈` (`x = 4.000`): decimals, thousands by commas in
   groups of three (`1,234.5`), exponents (`1.5e3`, `2 × 10^3`, `10²`), one fraction (`1/2`,
   `\\frac{1}{2}`, `1 1/2`, `½`), and π as a factor (`2π`, `\\frac{\\pi}{3}`).
2. **A sentence with exactly one number**: "The area is about 12 cm.".

Several numbers are none ("12 or 13", "5-6"), and so are nan, infinities and a decimal comma. Behind
the value may stand `%` or a unit, before it a currency:

- `50%` is 50 or 0.5, whichever the truth is; 50 % and 50 % must both say so to be the same.
- A unit counts where answer and truth both have one (`5 cm` is not `5 m`); a missing one is no
  mistake. Nothing is converted. "hundred" to "trillion" multiply.

The tolerance is 0.001, as DynaMath has it, and a tenth of the truth where that is less, so that 0
is not right for 0.0005.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from math import pi

from axpo.errors import GradingError
from axpo.tasks.base import Example
from axpo.tasks.grading.final import final_answer
from axpo.tasks.grading.prose import plain
from axpo.tasks.grading.verdict import BuiltIn, Verdict, best, compared, truths_of

TOLERANCE = Fraction(1, 1000)
LONGEST = 200
"""Characters of a value with its unit; a longer text is a sentence."""

_DIGITS = r"(?:\d{1,3}(?:,\d{3}){1,12}(?![\d,])|\d{1,40}(?![\d,]*\d))"
_NUMBER = rf"(?:{_DIGITS}(?:\.\d{{0,40}})?|\.\d{{1,40}})(?:[eE][-+]?\d{{1,2}})?"
_FACTOR = re.compile(rf"([-+]?)({_NUMBER})(?:\^\{{?([-+]?\d{{1,2}})\}}?)?|([-+]?)π")
_FRACTION = re.compile(r"([-+]?)\\[dt]?frac\s?\{([^{}]{1,60})\}\s?\{([^{}]{1,60})\}(.{0,9})")
_MIXED = re.compile(rf"([-+]?)({_NUMBER}) (\d{{1,9}}/\d{{1,9}})")
_HEAD = re.compile(r"(?:\\[dt]?frac|[eE](?=[-+]?\d)|[-+\d.,π*/^{}\s])*")
_IN_SENTENCE = re.compile(rf"(?<![\w.,/^])((?:(?<![\w)])[-+])?{_NUMBER}(?:\s?π)?\s?)(%?)")
_UNIT_WORD = r"[^\W\d_]{1,20}(?:\^\{?-?\d\}?)?|°[CF]?|['\"]"
_UNIT = re.compile(rf"(?:{_UNIT_WORD})(?:[ /*.\-]{{1,3}}(?:{_UNIT_WORD})){{0,3}}")
_NO_UNIT = re.compile(r"\b(?:or|and|not|to|nor|but)\b")
_DENIED = re.compile(r"\b(?:not|cannot|never|or)\b|n't\b|[\\^√]", re.I)
"""What keeps the number of a sentence from being what it says: a denial, a formula."""
_SCALES = {
    "hundred": 10**2,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
}
_UNITS = {"degree": "°", "deg": "°", "dollar": "$", "euro": "€"}
_REWRITTEN = (
    (r"\\(?:pi(?![a-zA-Z])|Pi(?![a-zA-Z]))|\bpi\b", "π"),
    (r"\^\{?\\circ\}?|\\(?:degree|circ)(?![a-zA-Z])", "°"),
    (r"\\(?:times|cdot|ast)(?![a-zA-Z])|[×·⋅∗]|(?<=\d)\s?x\s?(?=10\^)", "*"),
    (r"\\(?:approx|simeq|sim)(?![a-zA-Z])|[≈≃∼]", "="),
    (r"\bper\s?cent\b", "%"),
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number that a text says; `unit` is "" without one."""

    value: Fraction
    percent: bool = False
    unit: str = ""


def quantity(text: str) -> Quantity | None:
    """The one number of a final answer or a truth, None where there is none or no single one."""
    text = _rewritten(text)
    left, _, last = text.rpartition("=")
    if re.search(r"[,;]\s|\b(?:or|and)\b", left):  # two equations
        return None
    return _alone(last.strip()) or _in_sentence(text)


def _rewritten(text: str) -> str:
    text = re.sub("[⁰¹²³⁴-⁹⁻]+", lambda found: "^" + found[0].translate(_SUPERSCRIPTS), text)
    text = re.sub(r"[^\x00-\x7f]", _vulgar, plain(text))
    for pattern, replaced in _REWRITTEN:
        text = re.sub(pattern, replaced, text)
    return text.removesuffix(".").strip()


def _vulgar(found: re.Match[str]) -> str:
    """½ as 1/2, another character as it is."""
    if not unicodedata.decomposition(found[0]).startswith("<fraction>"):
        return found[0]
    return f" {unicodedata.normalize('NFKC', found[0])}".replace("⁄", "/")


def _alone(text: str) -> Quantity | None:
    if len(text) > LONGEST:
        return None
    currency = text[:1] if text[:1] in "$€£¥" else ""
    if (sign := re.match(r"([-+])([$€£¥])", text)) is not None:
        currency, text = sign[2], sign[1] + text[2:]
    text = text.removeprefix(currency).strip()
    if text.startswith("(") and text.endswith(")"):
        text = text[1:-1].strip()
    head = _HEAD.match(text)
    assert head is not None  # it may be empty
    value, rest = _value(head[0].strip()), text[head.end() :].strip()
    if value is None:
        return None
    if rest in ("", "%"):
        return Quantity(value, rest == "%", currency)
    word, _, behind = rest.partition(" ")
    if word.lower() in _SCALES:
        value, rest = value * _SCALES[word.lower()], behind.strip()
    if not rest:
        return Quantity(value, unit=currency)
    if currency or not _UNIT.fullmatch(rest) or _NO_UNIT.search(rest):
        return None
    return Quantity(value, unit=_unit(rest))


def _unit(text: str) -> str:
    singular = text[:-1] if len(text) > 3 and text.endswith("s") else text
    return _UNITS.get(singular.lower(), singular.replace("{", "").replace("}", ""))


def _in_sentence(text: str) -> Quantity | None:
    """The number of a sentence that has one, and does not deny it."""
    numbers = list(_IN_SENTENCE.finditer(text))
    if len(numbers) != 1 or _DENIED.search(text):
        return None
    before, behind = text[: numbers[0].start()], text[numbers[0].end() :]
    scaled = behind.split(" ", 1)[0].lower() in _SCALES
    if scaled or any(one.isdecimal() for one in before + behind):
        return None
    value = _value(numbers[0][1].strip())
    return None if value is None else Quantity(value, bool(numbers[0][2]))


def _value(text: str) -> Fraction | None:
    """The value of a product, a mixed number or one fraction of products."""
    if fraction := _FRACTION.fullmatch(text):
        above, below, behind = _product(fraction[2]), _product(fraction[3]), fraction[4].strip(" *")
        factor = _product(behind) if behind else Fraction(1)
        if above is None or not below or factor is None:
            return None
        return (-1 if fraction[1] == "-" else 1) * above / below * factor
    if mixed := _MIXED.fullmatch(text):
        whole, part = _product(mixed[2]), _value(mixed[3])
        if whole is None or part is None:
            return None
        return (-1 if mixed[1] == "-" else 1) * (whole + part)
    above, stroke, below = text.partition("/")
    value, divisor = _product(above), _product(below) if stroke else Fraction(1)
    return value / divisor if value is not None and divisor else None


def _product(text: str) -> Fraction | None:
    value = Fraction(1)
    for part in re.sub(r"(?<=[\d.}\s])\s*(?=π)|(?<=π)\s*(?=\d)", "*", text.strip()).split("*"):
        factor = _FACTOR.fullmatch(part.strip())
        if factor is None:
            return None
        number = Fraction(factor[2].replace(",", "")) if factor[2] else Fraction(pi)
        exponent = int(factor[3] or 1)
        if number == 0 and exponent < 0:
            return None
        value *= (-1 if "-" in (factor[1], factor[4]) else 1) * number**exponent
    return value


def close(found: Quantity, truth: Quantity) -> bool:
    """Whether one is the other within the tolerance, by one of the readings of a percentage."""
    if found.unit and truth.unit and found.unit != truth.unit:
        return False

    def readings(one: Quantity, other: Quantity) -> tuple[Fraction, ...]:
        both = one.percent and not other.percent
        return (one.value, one.value / 100) if both else (one.value,)

    return any(
        abs(one - right) <= (min(TOLERANCE, abs(right) / 10) if right else TOLERANCE)
        for one in readings(found, truth)
        for right in readings(truth, found)
    )


async def _number(example: Example, answer: str) -> Verdict:
    final = final_answer(answer)
    found = quantity(final)
    return best(
        compared(
            found is not None and close(found, _true(truth)),
            "number",
            None if found is None else final,
            truth,
        )
        for truth in truths_of(example)
    )


def _true(truth: str) -> Quantity:
    found = quantity(truth)
    if found is None:
        raise GradingError(
            f"truth {truth!r} is not one finite number, as the grader 'number' needs"
        )
    return found


def _check_number(example: Example) -> None:
    for truth in truths_of(example):
        _true(truth)


number = BuiltIn(_number, _check_number)
"""1.0 where the answer is a truth's number."""
