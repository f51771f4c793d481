"""Expressions read and evaluated: the arithmetic of school and college, at points.

A tidy expression becomes a tree, and a tree a number once its variables have values. Rational
arithmetic is exact; everything else has `DIGITS` digits, so that equal means equal, not rounded.
Nothing is simplified, so the time is about linear in the text, and numbers that would be too large
are refused before they are computed.

Readings where writing leaves a choice: `2\\frac{1}{2}` and `1 1/2` are mixed numbers; behind a
fraction of two plain numbers a factor multiplies it (`4/3\\pi`), else it belongs to the divisor
(`a/bc`); `\\sin 2x` takes the whole product; `\\sin^{-1}` is the arc sine; `\\log` has base 10; odd
roots of negative numbers are real; `e` and `i` are the constants.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import mpmath

from axpo.tasks.grading import arithmetic
from axpo.tasks.grading.arithmetic import Number, TooLarge, Undefined, floating, is_real, near

POINTS = 6

Node = Any
"""Fraction, the name of a variable, or (function, nodes)."""


class Unreadable(ValueError):
    """This is no expression that is read here."""


def evaluate(node: Node, point: Mapping[str, Fraction]) -> Number:
    """The value of an expression; raises `Undefined` and `TooLarge`."""
    if isinstance(node, Fraction):
        return node
    if isinstance(node, str):
        return point[node]
    function, *arguments = node
    return function(*[evaluate(argument, point) for argument in arguments])


def variables(node: Node) -> set[str]:
    """The names of the variables in an expression."""
    if isinstance(node, tuple):
        return {name for argument in node[1:] for name in variables(argument)}
    return {node} if isinstance(node, str) else set()


def points(names: set[str]) -> list[dict[str, Fraction]]:
    """Values to try, the same in every process: half of the points are positive."""
    found: list[dict[str, Fraction]] = []
    for number in range(POINTS if names else 1):
        point: dict[str, Fraction] = {}
        for name in sorted(names):
            draw = random.Random(f"{number} {name}")
            value = Fraction(draw.randint(200, 3000), 997)
            point[name] = -value if number % 2 and draw.random() < 0.7 else value
        found.append(point)
    return found


def value_at(node: Node, point: Mapping[str, Fraction]) -> Number | None:
    """The value, None where it is undefined; raises `TooLarge`."""
    try:
        value = evaluate(node, point)
    except (Undefined, ZeroDivisionError):
        return None
    except (OverflowError, MemoryError) as error:
        raise TooLarge(str(error)) from error
    return None if not isinstance(value, Fraction) and mpmath.isnan(value) else value


def equal(one: Node, other: Node) -> bool:
    """Whether two expressions are the same function: equal wherever both are real.

    Where they are never both real, equal as complex numbers. Raises `TooLarge`.
    """
    names = variables(one) | variables(other)
    pairs = [(value_at(one, point), value_at(other, point)) for point in points(names)]
    both = [(a, b) for a, b in pairs if a is not None and b is not None]
    real = [(a, b) for a, b in both if is_real(a) and is_real(b)]
    tried = real or both
    return len(tried) > bool(names) and all(near(a, b) for a, b in tried)


def difference(left: Node, right: Node) -> Node:
    """`left - right`."""
    return (arithmetic.add, left, (arithmetic.negative, right))


def ratio(one: Node, other: Node) -> Number | None:
    """The constant other than 0 that `one` is of `other` at all points, None where it is none."""
    found = [
        a / b if isinstance(a, Fraction) and isinstance(b, Fraction) else floating(a) / floating(b)
        for point in points(variables(one) | variables(other))
        if (a := value_at(one, point)) is not None
        and (b := value_at(other, point)) is not None
        and not near(b, Fraction(0))
    ]
    same = len(found) > 1 and all(near(one, found[0]) for one in found)
    return found[0] if same and not near(found[0], Fraction(0)) else None


_CONSTANTS = {"\\pi": "pi", "e": "e", "i": "j", "\\infty": "inf"}
_LETTERS = re.compile(
    r"alpha|beta|gamma|delta|(?:var)?epsilon|zeta|eta|(?:var)?theta|kappa|lambda|mu|nu|xi|rho|sigma"
    r"|tau|(?:var)?phi|chi|psi|omega|Gamma|Delta|Theta|Lambda|Xi|Pi|Sigma|Phi|Psi|Omega|ell"
)
_ACCENTS = ("vec", "bar", "hat", "overline", "tilde", "dot", "overrightarrow", "widehat")
_PAIRS = {"(": ")", "[": "]", "{": "}", "|": "|", "\\lfloor": "\\rfloor", "\\lceil": "\\rceil"}
_NUMBER = re.compile(r"[0-9]+(?:\.(?![0-9]*\.)[0-9]*)?|\.[0-9]+")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_WORD = re.compile(r"[A-Za-z]{5,}|[A-Za-z]{2,} [A-Za-z]{2,}")
_BELOW = re.compile(r" ?(?:_ ?(?:\{([^{}]*)\}|([A-Za-z0-9]))|')")
_ENDS = (")", "]", "}", "\\rfloor", "\\rceil")


def parse(text: str) -> Node:
    """The tree of a tidy expression; raises `Unreadable`."""
    if _WORD.search(re.sub(r"\\[A-Za-z]+|_\{[^{}]*\}", "\\\\", text)):
        raise Unreadable("it has words")
    reader = _Reader(text)
    node = reader.sum()
    if reader.peek():
        raise Unreadable(f"{reader.peek()!r} was not expected")
    return node


class _Reader:
    """Recursive descent over the text."""

    def __init__(self, text: str) -> None:
        self.text, self.place = text, 0
        self.bars = 0  # open |

    def peek(self) -> str:
        """The next token, "" at the end; numbers and commands are one."""
        while self.place < len(self.text) and self.text[self.place] == " ":
            self.place += 1
        for pattern in (_NUMBER, _COMMAND):
            if found := pattern.match(self.text, self.place):
                return found[0]
        return self.text[self.place : self.place + 1]

    def take(self, *wanted: str) -> str:
        """The next token where it is one of those wanted (or any), "" without moving where not."""
        token = self.peek()
        if wanted and token not in wanted:
            return ""
        self.place += len(token)
        return token

    def need(self, token: str) -> None:
        if not self.take(token):
            raise Unreadable(f"expected {token!r}, got {self.peek()!r}")

    def sum(self) -> Node:
        node = self.product()
        while sign := self.take("+", "-"):
            right = self.product()
            node = (arithmetic.add, node, right if sign == "+" else (arithmetic.negative, right))
        return node

    def product(self) -> Node:
        if sign := self.take("+", "-"):
            return (arithmetic.negative, self.product()) if sign == "-" else self.product()
        node = self.factors()
        while sign := self.take("*", "/", "\\cdot", "\\times", "\\div", "\\ast"):
            plain = isinstance(node, Fraction)
            minus = self.take("-")
            if sign in ("/", "\\div"):
                right = self.powered() if plain and _NUMBER.match(self.peek()) else self.factors()
                node = (arithmetic.divide, node, right)
                if plain and self._begins_factor():
                    node = (arithmetic.multiply, node, self.factors())
            else:
                node = (arithmetic.multiply, node, self.factors())
            node = (arithmetic.negative, node) if minus else node
        return node

    def factors(self, in_function: bool = False) -> Node:
        """Factors side by side; a number may only come first."""
        node = self.powered()
        while self._begins_factor():
            if in_function and self.peek()[1:] in (*arithmetic.FUNCTIONS, "log"):
                break
            node = (arithmetic.multiply, node, self.powered())
        return node

    def _begins_factor(self) -> bool:
        token = self.peek()
        if not token or _NUMBER.match(token):
            return False
        if token == "|":
            return not self.bars
        begins = token[1:] not in ("cdot", "times", "div", "ast") and token not in _ENDS
        return begins and (token[0] in "\\([{" or (token.isascii() and token.isalpha()))

    def powered(self) -> Node:
        node = self.atom()
        while sign := self.take("!", "^", "%", "\\degree"):
            if sign == "!":
                if self.peek() == "!":
                    raise Unreadable("a double factorial")
                node = (arithmetic.factorial, node)
            elif sign == "%":
                node = (arithmetic.divide, node, Fraction(100))
            elif sign == "\\degree":
                node = (arithmetic.degrees, node)
            else:
                node = (arithmetic.power, node, self.exponent())
        return node

    def exponent(self) -> Node:
        if self.take("-"):
            return (arithmetic.negative, self.exponent())
        return self.atom()

    def atom(self) -> Node:
        token = self.take()
        if _NUMBER.fullmatch(token):
            if self.peek() == "_":
                raise Unreadable("a number to a base")
            return Fraction(token if token[-1] != "." else token[:-1])
        if token in _PAIRS:
            return self.group(token)
        name = token[1:] if token.startswith("\\") else ""
        if name in arithmetic.FUNCTIONS or name == "log":
            return self.applied(name)
        if name == "frac":
            return (arithmetic.divide, self.argument(), self.argument())
        if name == "sqrt":
            degree = self.group("[") if self.take("[") else Fraction(2)
            return (arithmetic.power, self.argument(), (arithmetic.divide, Fraction(1), degree))
        if name == "binom":
            return (arithmetic.binomial, self.argument(), self.argument())
        if name == "text" or name in _ACCENTS:
            return self.symbol(token + self.raw())
        if token in _CONSTANTS and self.peek() not in ("_", "'"):
            return (arithmetic.constant(_CONSTANTS[token]),)
        if _LETTERS.fullmatch(name) or (token.isascii() and token.isalpha()):
            return self.symbol(token)
        raise Unreadable(f"{token!r} was not expected" if token else "it ends too early")

    def group(self, opening: str) -> Node:
        self.bars += opening == "|"
        outer, self.bars = self.bars, self.bars if opening == "|" else 0
        node = self.sum()
        self.need(_PAIRS[opening])
        self.bars = outer - (opening == "|")
        if opening == "|":
            return (abs, node)
        rounding = {"\\lfloor": math.floor, "\\lceil": math.ceil}.get(opening)
        return (arithmetic.rounded(rounding), node) if rounding else node

    def argument(self) -> Node:
        """What a command takes: a group, or the next character."""
        token = self.peek()
        if token in ("{", "("):
            return self.group(self.take())
        if _NUMBER.fullmatch(token):
            if len(token) > 2:
                raise Unreadable(f"where {token} ends is not told")
            self.place += 1
            return Fraction(token[0])
        return self.atom()

    def applied(self, name: str) -> Node:
        """A function's name was read: its base, its power and its argument."""
        base: Node = Fraction(10)
        if name == "log" and self.take("_"):
            base = self.argument()
        power = self.exponent() if self.take("^") else None
        if power == (arithmetic.negative, Fraction(1)) and name in arithmetic.ARCS:
            name, power = "arc" + name, None
        if self.peek() in ("(", "{", "["):
            inner = self.group(self.take())
        else:
            minus = self.take("-")
            inner = self.factors(in_function=True)
            inner = (arithmetic.negative, inner) if minus else inner
        node = (
            (arithmetic.logarithm, base, inner)
            if name == "log"
            else (arithmetic.FUNCTIONS[name], inner)
        )
        return node if power is None else (arithmetic.power, node, power)

    def raw(self) -> str:
        """The text of a command's argument."""
        token = self.take()
        if token != "{":
            return token
        found = re.compile(r"[^{}]*").match(self.text, self.place)
        assert found
        self.place = found.end()
        self.need("}")
        return "{" + found[0].replace(" ", "") + "}"

    def symbol(self, name: str) -> Node:
        while found := _BELOW.match(self.text, self.place):
            self.place = found.end()
            below = (found[1] or found[2] or "").replace(" ", "")
            name += "'" if found[0].endswith("'") else f"_{below}"
        if name[0] in "fgh" and self.text.startswith("(", self.place):
            self.take()
            arguments: list[Node] = [self.sum()]
            while self.take(","):
                arguments.append(self.sum())
            self.need(")")
            return (arithmetic.unknown(name), *arguments)
        return name
