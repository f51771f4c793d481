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
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import mpmath
from mpmath import mp

DIGITS = 300
TOLERANCE = Fraction(1, 10 ** (DIGITS - 50))
MAX_BITS = 1 << 18
"""Size of an exact number; what is larger is inexact, and over `MAX_EXPONENT` refused."""
MAX_EXPONENT = 200_000
MAX_FACTORIAL = 3000
POINTS = 6

Number = Any
"""Fraction, mpf or mpc."""
Node = Any
"""Fraction, the name of a variable, or (function, nodes)."""


class Unreadable(ValueError):
    """This is no expression that is read here."""


class TooLarge(ValueError):
    """A number in it is too large to be computed."""


class Undefined(ValueError):
    """It has no value here."""


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


def near(one: Number, other: Number) -> bool:
    """Whether two values are the same number: exactly, or in all digits but the last 50."""
    if isinstance(one, Fraction) and isinstance(other, Fraction):
        return one == other
    one, other = _inexact(one), _inexact(other)
    if mpmath.isinf(one) or mpmath.isinf(other):
        return bool(one == other)
    tolerance = _inexact(TOLERANCE)
    return bool(abs(one - other) <= tolerance * max(abs(one), abs(other), tolerance))


def is_real(value: Number) -> bool:
    """Whether a value has no imaginary part."""
    return not isinstance(value, mpmath.mpc) or near(value, value.real)


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
    return (_add, left, (_negative, right))


def ratio(one: Node, other: Node) -> Number | None:
    """The constant other than 0 that `one` is of `other` at all points, None where it is none."""
    found = [
        a / b if isinstance(a, Fraction) and isinstance(b, Fraction) else _inexact(a) / _inexact(b)
        for point in points(variables(one) | variables(other))
        if (a := value_at(one, point)) is not None
        and (b := value_at(other, point)) is not None
        and not near(b, Fraction(0))
    ]
    same = len(found) > 1 and all(near(one, found[0]) for one in found)
    return found[0] if same and not near(found[0], Fraction(0)) else None


def _inexact(value: Number) -> Number:
    mp.dps = DIGITS
    if isinstance(value, Fraction):
        return mpmath.mpf(value.numerator) / value.denominator
    return value


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _small(value: Number) -> Number:
    """An exact number that has become too long goes on as an inexact one."""
    return value if not isinstance(value, Fraction) or _bits(value) <= MAX_BITS else _inexact(value)


def _add(a: Number, b: Number) -> Number:
    exact = isinstance(a, Fraction) and isinstance(b, Fraction)
    return _small(a + b) if exact else _inexact(a) + _inexact(b)


def _multiply(a: Number, b: Number) -> Number:
    exact = isinstance(a, Fraction) and isinstance(b, Fraction)
    return _small(a * b) if exact else _inexact(a) * _inexact(b)


def _negative(a: Number) -> Number:
    return -a


def _divide(a: Number, b: Number) -> Number:
    if b == 0:
        raise Undefined
    exact = isinstance(a, Fraction) and isinstance(b, Fraction)
    return _small(a / b) if exact else _inexact(a) / _inexact(b)


def _power(base: Number, exponent: Number) -> Number:
    if base == 0:
        if not is_real(exponent) or _inexact(exponent).real <= 0:
            raise Undefined
        return Fraction(0)
    if isinstance(exponent, Fraction) and isinstance(base, Fraction):
        whole = exponent.denominator == 1
        if whole and _bits(base) * abs(exponent) <= MAX_BITS:
            return base**exponent.numerator
        if base < 0 and _odd_root(exponent):
            return _sign(exponent) * _power(-base, exponent)
    inexact, by = _inexact(base), _inexact(exponent)
    if mpmath.isinf(inexact) or mpmath.isinf(by):
        raise Undefined
    if _odd_root(exponent) and isinstance(inexact, mpmath.mpf) and inexact < 0:
        return _sign(exponent) * _power(-inexact, exponent)
    if abs(by * mpmath.log(inexact)) > MAX_EXPONENT:
        raise TooLarge("a power")
    return mpmath.power(inexact, by)


def _odd_root(exponent: Number) -> bool:
    """Whether a power is a root of odd degree, which is real for negative numbers too."""
    return isinstance(exponent, Fraction) and exponent.denominator % 2 == 1


def _sign(exponent: Fraction) -> int:
    return -1 if exponent.numerator % 2 else 1


def _factorial(value: Number) -> Number:
    if isinstance(value, Fraction) and value.denominator == 1:
        if value < 0:
            raise Undefined
        if value <= MAX_FACTORIAL:
            return Fraction(math.factorial(value.numerator))
    if abs(value) > MAX_FACTORIAL:
        raise TooLarge("a factorial")
    return mpmath.gamma(_inexact(value) + 1)


def _binomial(n: Number, k: Number) -> Number:
    if max(abs(n), abs(k)) > MAX_FACTORIAL:
        raise TooLarge("a binomial")
    exact = isinstance(n, Fraction) and isinstance(k, Fraction)
    if exact and n.denominator == k.denominator == 1 and min(n, k) >= 0:
        return Fraction(math.comb(n.numerator, k.numerator))
    return mpmath.binomial(_inexact(n), _inexact(k))


def _rounded(function: Callable[[Any], int]) -> Callable[[Number], Number]:
    def apply(value: Number) -> Number:
        if isinstance(value, Fraction):
            return Fraction(function(value))
        if not is_real(value):
            raise Undefined
        # A value that is an integer up to the last digits is that integer.
        nearest = mpmath.nint(value.real)
        whole = nearest if near(nearest, value) else getattr(mpmath, function.__name__)(value.real)
        return Fraction(int(whole))

    return apply


def _function(name: str) -> Callable[[Number], Number]:
    compute = getattr(mpmath, name)

    def apply(value: Number) -> Number:
        inexact = _inexact(value)
        if abs(inexact) > MAX_EXPONENT and name not in ("log", "atan"):
            raise TooLarge(name)
        if name == "log" and inexact == 0:
            raise Undefined
        return compute(inexact)

    return apply


def _logarithm(base: Number, value: Number) -> Number:
    return _divide(_log(value), _log(base))


def _degrees(value: Number) -> Number:
    return _inexact(value) * mpmath.pi / 180


def _constant(name: str) -> Callable[[], Number]:
    def apply() -> Number:
        mp.dps = DIGITS
        return +getattr(mpmath, name)

    return apply


def _unknown(name: str) -> Callable[..., Number]:
    """A function that is only a name (`f`): some function, the same for the same name."""
    draw = random.Random(name)
    factors = [Fraction(draw.randint(100, 999), 991) for _ in range(9)]

    def apply(*values: Number) -> Number:
        weighed = zip(factors, (Fraction(1), *values), strict=False)
        return mpmath.sin(sum((_inexact(f) * _inexact(v) for f, v in weighed), mpmath.mpf(0)))

    return apply


_log = _function("log")
_ARCS = {name: "a" + name for name in ("sin", "cos", "tan", "cot", "sec", "csc")}
_ARCS |= {name: "a" + name for name in ("sinh", "cosh", "tanh")}
_FUNCTIONS: dict[str, Callable[[Number], Number]] = {
    **{name: _function(name) for name in _ARCS},
    **{"arc" + name: _function(arc) for name, arc in _ARCS.items()},
    "ln": _log,
    "exp": _function("exp"),
    "lg": lambda value: _logarithm(Fraction(10), value),
}
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
            node = (_add, node, right if sign == "+" else (_negative, right))
        return node

    def product(self) -> Node:
        if sign := self.take("+", "-"):
            return (_negative, self.product()) if sign == "-" else self.product()
        node = self.factors()
        while sign := self.take("*", "/", "\\cdot", "\\times", "\\div", "\\ast"):
            plain = isinstance(node, Fraction)
            minus = self.take("-")
            if sign in ("/", "\\div"):
                right = self.powered() if plain and _NUMBER.match(self.peek()) else self.factors()
                node = (_divide, node, right)
                if plain and self._begins_factor():
                    node = (_multiply, node, self.factors())
            else:
                node = (_multiply, node, self.factors())
            node = (_negative, node) if minus else node
        return node

    def factors(self, in_function: bool = False) -> Node:
        """Factors side by side; a number may only come first."""
        node = self.powered()
        while self._begins_factor():
            if in_function and self.peek()[1:] in (*_FUNCTIONS, "log"):
                break
            node = (_multiply, node, self.powered())
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
                node = (_factorial, node)
            elif sign == "%":
                node = (_divide, node, Fraction(100))
            elif sign == "\\degree":
                node = (_degrees, node)
            else:
                node = (_power, node, self.exponent())
        return node

    def exponent(self) -> Node:
        if self.take("-"):
            return (_negative, self.exponent())
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
        if name in _FUNCTIONS or name == "log":
            return self.applied(name)
        if name == "frac":
            return (_divide, self.argument(), self.argument())
        if name == "sqrt":
            degree = self.group("[") if self.take("[") else Fraction(2)
            return (_power, self.argument(), (_divide, Fraction(1), degree))
        if name == "binom":
            return (_binomial, self.argument(), self.argument())
        if name == "text" or name in _ACCENTS:
            return self.symbol(token + self.raw())
        if token in _CONSTANTS and self.peek() not in ("_", "'"):
            return (_constant(_CONSTANTS[token]),)
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
        return (_rounded(rounding), node) if rounding else node

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
        if power == (_negative, Fraction(1)) and name in _ARCS:
            name, power = "arc" + name, None
        if self.peek() in ("(", "{", "["):
            inner = self.group(self.take())
        else:
            minus = self.take("-")
            inner = self.factors(in_function=True)
            inner = (_negative, inner) if minus else inner
        node = (_logarithm, base, inner) if name == "log" else (_FUNCTIONS[name], inner)
        return node if power is None else (_power, node, power)

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
            return (_unknown(name), *arguments)
        return name
