"""One way of writing a formula: LaTeX with few commands, ASCII, without fences and styles."""

from __future__ import annotations

import re
import unicodedata

from axpo.tasks.grading.units import known_unit

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
        (r"\\text\{((?:[^{} ]+ )??(?:or|and)(?: [^{} ]+)?)\}", r" \1 "),
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
    found = re.search(r"(?<=[0-9}A-Za-z])(?<!\\text) ?\{ ?([A-Za-z]{4,}) ?\}$", text)
    return (
        text[: found.start()] + f"\\text{{{found[1]}}}" if found and known_unit(found[1]) else text
    )
