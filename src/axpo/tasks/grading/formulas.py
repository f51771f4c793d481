"""The outer form of a formula: what decides before any arithmetic.

Lists, tuples, sets, intervals, relations, ratios and units; order, brackets and the case of
letters count. Everything here takes time linear in the text; nothing is evaluated.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from axpo.tasks.grading.units import split_unit

MAX_CHARACTERS = 2000
MAX_DEPTH = 20
"""Brackets and braces within each other."""

_THOUSANDS = re.compile(r"[-+]?[1-9][0-9]{0,2}(?:,[0-9]{3})+(?:\.[0-9]+)?")


def beyond_limits(text: str) -> str | None:
    """Why a tidy formula is too large to be looked at, None where it is not."""
    if len(text) > MAX_CHARACTERS:
        return f"it has {len(text)} characters, more than {MAX_CHARACTERS}"
    depth = deepest = 0
    for character in text:
        depth += (character in "([{⟨") - (character in ")]}⟩")
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        return f"its brackets are nested {deepest} deep, more than {MAX_DEPTH}"
    return None


@dataclass(frozen=True, slots=True)
class Formula:
    """The outer form of a formula.

    `kind` is `leaf` (one expression, perhaps with a `unit`), `list` (bare, in order), `set` (in
    any order), an opening and a closing bracket such as `()` or `[)` (in order), `union`, `ratio`
    (three and more), `=` (a name in `name`, its value as the one part), `equation` (two sides) or
    `inequality` (its operators in `name`).
    """

    kind: str
    text: str
    parts: tuple[Formula, ...] = ()
    name: str = ""
    unit: str = ""


_OPEN, _CLOSE = "([{⟨", ")]}⟩"
_OR = re.compile(r"(?<![A-Za-z])or(?![A-Za-z])|\\(?:lor|vee)(?![A-Za-z])")
_COMMA = re.compile(r"[,;](?: ?and(?![A-Za-z]))?|(?<![A-Za-z])and(?![A-Za-z])")
_APPROX = re.compile(r"\\(?:approx|simeq)(?![A-Za-z])")
_EQUALS = re.compile(r"=|\\in(?![A-Za-z])")
_ORDER = re.compile(r"\\(?:le|ge|lt|gt|ne)(?![A-Za-z])")
_UNION = re.compile(r"\\cup(?![A-Za-z])")
_COLON = re.compile(":")
_PLUS_MINUS = re.compile(r"\\(pm|mp)(?![A-Za-z])")
_SYMBOL = re.compile(r"(?:[A-Za-z]|\\[A-Za-z]+ ?)'*(?:_(?:\{[^{}]*\}|[A-Za-z0-9]))?'*")
_CALL = re.compile(r"[A-Za-z]'*(?:_\{?[A-Za-z0-9]+\}?)?\([A-Za-z](?:, ?[A-Za-z])*\)")
_LABEL = re.compile(
    r"[A-Z]{2,}|\|[A-Z]{2,}\||(?:m ?)?\\(?:angle|triangle) [A-Z]+|\\text\{[^{}]*\}(?:_.*)?"
    r"|\\overline ?\{[A-Z]+\}|[A-Z]_\{?(?:\\text\{\w+\}|\\triangle)? ?[A-Za-z]*\}?"
)


def read(text: str) -> Formula:
    """The outer form of a tidy formula within its limits (`beyond_limits`)."""
    text = text.strip()
    if len(parts := _split(text, _OR)) > 1:
        return _several("set", text, parts)
    if _THOUSANDS.fullmatch(text):
        return Formula("leaf", text.replace(",", ""))
    number, unit = split_unit(text)
    if unit and _THOUSANDS.fullmatch(number):
        return Formula("leaf", number.replace(",", ""), unit=unit)
    if len(parts := _split(text, _COMMA)) > 1:
        return _several("list", text, parts)
    return _relation(text) or _bracketed(text) or _single(text)


def _several(kind: str, text: str, parts: list[str]) -> Formula:
    if not all(parts):
        return Formula("leaf", text)
    return Formula(kind, text, tuple(read(part) for part in parts))


def _relation(text: str) -> Formula | None:
    if len(sides := _split(text, _APPROX)) > 1:  # "10/3 \approx 3.33" says 10/3
        first = sides[0] or sides[1]
        return read(f"{first}={sides[1]}" if _is_name(first) else first)
    sides = _split(text, _EQUALS)
    if len(sides) == 1:
        sides, operators = _split(text, _ORDER), tuple(_ORDER.findall(text))
        if len(sides) == 1 or len(operators) != len(sides) - 1 or not all(sides):
            return None
        return Formula("inequality", text, tuple(map(_single, sides)), " ".join(operators))
    if not all(sides):
        return Formula("leaf", text)
    if _is_name(sides[0]) or not re.search("[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", sides[0])):
        name = sides[0].replace(" ", "") if _is_name(sides[0]) else ""
        return Formula("=", text, (read(sides[-1]),), name)
    return Formula("equation", text, (_single(sides[0]), _single(sides[-1])))


def is_symbol(name: str) -> bool:
    """Whether the name of a value is a variable: x, x_1, \\theta."""
    return _SYMBOL.fullmatch(name) is not None


def _is_name(text: str) -> bool:
    return any(pattern.fullmatch(text) for pattern in (_SYMBOL, _CALL, _LABEL))


def _bracketed(text: str) -> Formula | None:
    if len(parts := _split(text, _UNION)) > 1:
        return _several("union", text, parts)
    opening = text[1:2] if text.startswith("\\{") else text[:1]
    if not opening or opening not in _OPEN or _closing(text) != len(text) - 1:
        return None
    inner = text[2:-2] if text.startswith("\\{") else text[1:-1]
    if text.startswith("\\{") != text.endswith("\\}"):
        return None
    if text.startswith("\\{"):
        return _several("set", text, _split(inner, _COMMA))
    parts = _split(inner, _COMMA)
    if len(parts) > 1 and opening != "{":
        return _several(opening + text[-1], text, parts)
    return read(inner) if opening in "({" and text[-1] == _CLOSE[_OPEN.index(opening)] else None


def _single(text: str) -> Formula:
    if _PLUS_MINUS.search(text):
        signs = ({"pm": "+", "mp": "-"}, {"pm": "-", "mp": "+"})
        both = [_PLUS_MINUS.sub(lambda m, s=sign: s[m[1]], text) for sign in signs]
        return Formula("set", text, tuple(_single(one) for one in both))
    if len(parts := _split(text, _COLON)) > 1 and all(parts):
        rest = [f"\\frac{{{part}}}{{{parts[0]}}}" for part in parts[1:]]
        if len(parts) == 2:
            return Formula("leaf", f"\\frac{{{parts[0]}}}{{{parts[1]}}}", name=text)
        return Formula("ratio", text, tuple(Formula("leaf", one) for one in rest))
    expression, unit = split_unit(text)
    return Formula("leaf", expression, unit=unit)


def _closing(text: str) -> int:
    """Where the bracket that begins the text is closed, -1 where it is not."""
    for place, depth in _depths(text):
        if depth == 0 and text[place] in _CLOSE:
            return place
    return -1


def _depths(text: str) -> Iterator[tuple[int, int]]:
    depth = 0
    for place, character in enumerate(text):
        depth += (character in _OPEN) - (character in _CLOSE)
        yield place, depth


def _split(text: str, separator: re.Pattern[str]) -> list[str]:
    """The text between the separators that stand outside all brackets, stripped."""
    found = list(separator.finditer(text))
    if not found:
        return [text]
    depths = dict(_depths(text))
    ends = [match for match in found if depths[match.start()] == 0]
    starts = [0, *(match.end() for match in ends)]
    stops = [*(match.start() for match in ends), len(text)]
    return [text[start:stop].strip() for start, stop in zip(starts, stops, strict=True)]


def rational(text: str) -> Fraction | None:
    """The value of a plain number (`-1.50`, `3/4`, `\\frac{3}{4}`), None for any other text."""
    found = re.fullmatch(
        r"([-+]?) ?(?:([0-9]{1,400}(?:\.[0-9]{0,400})?|\.[0-9]{1,400})(?: ?/ ?([0-9]{1,400}))?"
        r"|\\frac ?\{([0-9]{1,400})\} ?\{([0-9]{1,400})\})",
        text,
    )
    if found is None:
        return None
    above, below = Fraction((found[2] or found[4]).rstrip(".")), int(found[3] or found[5] or 1)
    return (-above if found[1] == "-" else above) / below if below else None


def noisy(texts: Sequence[str], values: Sequence[Fraction]) -> bool:
    """Whether two plain numbers differ by what floating-point numbers lose: one of them is written
    with 15 significant digits or more, and they agree in 14."""
    long = any("." in text and len(re.sub(r"\D", "", text).lstrip("0")) >= 15 for text in texts)
    return long and abs(values[0] - values[1]) * 10**14 <= max(abs(value) for value in values)
