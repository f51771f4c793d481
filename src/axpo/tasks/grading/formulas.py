"""Formulas as text: one way of writing (`tidy`), and their outer form (`read`).

The outer form is what decides before any arithmetic: lists, tuples, sets, intervals, relations,
ratios and units. Order, brackets and the case of letters count. Everything here takes time linear
in the text; nothing is evaluated.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from axpo.tasks.grading.units import known_unit, split_unit

MAX_CHARACTERS = 2000
MAX_DEPTH = 20
"""Brackets and braces within each other."""

# An escape that ate a command's first letter: "\f" of "\frac", "\b" of "\binom".
_ESCAPES = str.maketrans({"\a": "\\a", "\b": "\\b", "\v": "\\v", "\f": "\\f"})
_SYMBOLS = str.maketrans({
    **dict.fromkeys("−–—‐‑", "-"), "×": "\\times ", "·": "\\cdot ", "⋅": "\\cdot ", "∙": "\\cdot ",
    "÷": "\\div ", "∕": "/", "⁄": "/", "∶": ":", "≤": "\\le ", "≥": "\\ge ", "⩽": "\\le ",
    "⩾": "\\ge ", "≠": "\\ne ", "≈": "\\approx ", "∪": "\\cup ", "∩": "\\cap ", "∈": "\\in ",
    "∅": "\\emptyset ", "∞": "\\infty ", "±": "\\pm ", "∓": "\\mp ", "°": "\\degree ",
    "º": "\\degree ",
    "′": "'", "’": "'", "″": "''", "∠": "\\angle ", "△": "\\triangle ", "∆": "\\Delta ",
    "ℝ": "\\mathbb{R}", "∫": "\\int ", "∑": "\\sum ", "∏": "\\prod ",
    "€": "\\euro ", "£": "\\pound ", "¥": "\\yen ",
})  # fmt: skip
_SUPERSCRIPTS = re.compile("[⁰¹²³⁴-⁹⁺⁻⁼⁽⁾ⁿ]+")
_SUBSCRIPTS = re.compile("[₀-₉₊₋]+")
_VULGAR = re.compile("[¼-¾⅐-⅞↉]")
_ROOT = re.compile(r"([√∛])\s*(?:([0-9]+(?:\.[0-9]+)?|[A-Za-z](?![A-Za-z]))|(?=[({]))")
_GREEK = re.compile("[Α-Ωα-ω]")
_WORDS = r"arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|sqrt|ln|log|lg|exp"
_NAMES = rf"{_WORDS}|pi|alpha|beta|gamma|delta|theta|lambda|mu|sigma|omega|phi|infty"
_STYLE = (
    r"\\(?:text(?:bf|it|rm|sf|tt|normal|up)?|math(?:rm|bf|it|sf|tt|normal)|boldsymbol|bm"
    r"|operatorname\*?|mbox|hbox)\s*\{([^{}]*)\}"
)
_UNIT_LETTERS = tuple("mgshltLNVAWJKCF")
_THOUSANDS = re.compile(r"[-+]?[1-9][0-9]{0,2}(?:,[0-9]{3})+(?:\.[0-9]+)?")

_REWRITES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        # Digits in groups of three: 7{,}685, 7\,685, 7,\!685, 7 685.
        (r"(?<=[0-9])(?:\{,\}|,?\\[,!]|\\ )(?=[0-9]{3}(?![0-9]))", ""),
        (r"(?<![0-9.,])([1-9][0-9]{0,2})((?: [0-9]{3})+)(?![0-9])", r"\1\2"),
        (r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits)(?![A-Za-z])\.?", ""),
        (r"\\[,;:!> ]|\\q?quad(?![A-Za-z])|~|\s+", " "),
        (r"\\[()\[\]](?![0-9A-Za-z]*pt)", " "),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\frac ?([0-9])([0-9])(?![0-9])", r"\\frac{\1}{\2}"),
        (r"\\sqrt ?([0-9])(?![0-9.])", r"\\sqrt{\1}"),
        (r"\\(?:leq|leqslant|leqq)(?![A-Za-z])|<=|⩽", r"\\le "),
        (r"\\(?:geq|geqslant|geqq)(?![A-Za-z])|>=", r"\\ge "),
        (r"\\neq(?![A-Za-z])|!=|\\not\s*=", r"\\ne "),
        (r"<(?!=)|\\lt(?![A-Za-z])", r"\\lt "),
        (r">(?!=)|\\gt(?![A-Za-z])", r"\\gt "),
        (r"\\lbrace(?![A-Za-z])", r"\\{"),
        (r"\\rbrace(?![A-Za-z])", r"\\}"),
        (r"\\langle(?![A-Za-z])", "⟨"),
        (r"\\rangle(?![A-Za-z])", "⟩"),
        (r"\\(?:[lr]?vert|mid)(?![A-Za-z])", "|"),
        (r"\\(?:varnothing|empty)(?![A-Za-z])", r"\\emptyset "),
        (r"\\%", "%"),
        (r"(?:\{ ?\})?\^ ?(?:\{ ?\\circ ?\}|\\circ(?![A-Za-z]))|\\deg(?![A-Za-z])", r"\\degree "),
        (r"\^\s*(?:\{\s*\\degree\s*\}|\\degree)", r"\\degree "),
        (r"\^\s*(?:\{\s*\\prime\s*\}|\\prime(?![A-Za-z]))", "'"),
        (r"\\text\s*\{\s*(or|and)\s*\}", r" \1 "),
        (r"\\text\{([^{}]*)\} ?/ ?\\text\{([^{}]*)\}", r"\\text{\1/\2}"),
        (r"\\frac ?\{ ?\\text\{([^{}]*)\} ?\} ?\{ ?\\text\{([^{}]*)\} ?\}", r"\\text{\1/\2}"),
        (r"\*\*", "^"),
        # 1e3, but not the name of a constant behind a digit: 2e.
        (r"(?<![A-Za-z0-9.\\])([0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE]([-+]?[0-9]{1,6})(?![0-9A-Za-z.])",
         r"\1\\cdot 10^{\2}"),
        # Mixed numbers: 1 1/2 and 1\frac{1}{2}, for proper fractions of plain digits.
        (r"(?<![0-9.^_,/])([0-9]+) +([0-9]+) ?/ ?([0-9]+)(?![0-9.])", r"(\1+\\frac{\2}{\3})"),
        (r"(?<![0-9.^_])([0-9]+) ?(\\frac ?\{ ?[0-9]+ ?\} ?\{ ?[0-9]+ ?\})", r"(\1+\2)"),
        (rf"(?<![A-Za-z\\])({_NAMES})(?![A-Za-z])", r"\\\1 "),
        (r"\\([A-Za-z]+)\s+", r"\\\1 "),
        (r"\s+", " "),
    )
)  # fmt: skip


def restored(text: str) -> str:
    """`text` with the commands whose first letter a control character ate: a lost `\\f`."""
    return text.translate(_ESCAPES)


def tidy(text: str) -> str:
    """A formula in one way of writing: LaTeX with few commands, ASCII, without fences and styles.

    Superscripts become exponents (`10²` is `10^{2}`), full-width and other digits ASCII, `½`,
    `√2`, `90°`, `1e3`, `1 1/2` and `7{,}685` LaTeX.
    """
    text = _SUPERSCRIPTS.sub(lambda m: "^{" + _normal(m[0]) + "}", text)
    text = _SUBSCRIPTS.sub(lambda m: "_{" + _normal(m[0]) + "}", text)
    text = _VULGAR.sub(lambda m: _vulgar(m[0]), text)
    text = _ROOT.sub(lambda m: ("\\sqrt" if m[1] == "√" else "\\sqrt[3]") + _braced(m[2]), text)
    text = unicodedata.normalize("NFKC", text.translate(_SYMBOLS))
    text = "".join(map(_plain, text))
    text = _GREEK.sub(lambda m: _greek(m[0]), text)
    text = _without_dollars(text).strip('*`"“” ')
    for _ in range(3):  # styles within styles
        text = re.sub(_STYLE, lambda m: _styled(m[1]), text)
    for pattern, new in _REWRITES:
        text = pattern.sub(new, text)
    text = _unboxed(text.strip(' *`"')).rstrip(" .,;")
    return _glued_unit(text.strip())


def _normal(small: str) -> str:
    return unicodedata.normalize("NFKC", small).replace("−", "-")


def _vulgar(sign: str) -> str:
    above, below = unicodedata.normalize("NFKC", sign).split("⁄")
    return f"\\frac{{{above}}}{{{below}}}"


def _braced(text: str | None) -> str:
    return f"{{{text}}}" if text else ""


def _plain(character: str) -> str:
    """Digits of any script as ASCII; nothing for characters that show nothing."""
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    return "" if unicodedata.category(character) == "Cf" else character


def _greek(letter: str) -> str:
    name = unicodedata.name(letter, "").split()
    if name[-2:-1] != ["LETTER"] or name[-1] == "OMICRON":
        return letter
    word = {"LAMDA": "lambda"}.get(name[-1], name[-1].lower())
    return f"\\{word if name[1] == 'SMALL' else word.capitalize()} "


def _without_dollars(text: str) -> str:
    """`$` that fence a formula are dropped; a lone one, or `\\$`, is the currency."""
    text = text.replace("\\$", "\\dollar ")
    return text.replace("$", "\\dollar " if text.count("$") == 1 else "")


def _styled(content: str) -> str:
    word = content.strip()
    if re.fullmatch(_WORDS, word):
        return f"\\{word} "
    # A single letter in roman type is that letter, unless it may be a unit.
    if re.search("[A-Za-z]{2}", word) or word in _UNIT_LETTERS:
        return f"\\text{{{word}}}"
    return content


def _unboxed(text: str) -> str:
    while found := re.fullmatch(r"\\(?:boxed|fbox) ?\{(.*)\}", text):
        text = found[1].strip()
    return text


def _glued_unit(text: str) -> str:
    """69{degrees} and 8\\sqrt{3}{squareinches}: a brace with nothing but a unit's word."""
    found = re.search(r"(?<=[0-9}A-Za-z]) ?\{ ?([A-Za-z]{4,}) ?\}$", text)
    return (
        text[: found.start()] + f"\\text{{{found[1]}}}" if found and known_unit(found[1]) else text
    )


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
        first = sides[0]
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
