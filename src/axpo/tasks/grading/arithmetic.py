"""Numbers for expressions: exact fractions while they last, else `DIGITS` digits.

Every operation refuses what would be too large to compute before it computes it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
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

Number = Any
"""Fraction, mpf or mpc."""


class TooLarge(ValueError):
    """A number in it is too large to be computed."""


class Undefined(ValueError):
    """It has no value here."""


def near(one: Number, other: Number) -> bool:
    """Whether two values are the same number: exactly, or in all digits but the last 50."""
    if isinstance(one, Fraction) and isinstance(other, Fraction):
        return one == other
    one, other = floating(one), floating(other)
    if mpmath.isinf(one) or mpmath.isinf(other):
        return bool(one == other)
    tolerance = floating(TOLERANCE)
    return bool(abs(one - other) <= tolerance * max(abs(one), abs(other), tolerance))


def is_real(value: Number) -> bool:
    """Whether a value has no imaginary part."""
    return not isinstance(value, mpmath.mpc) or near(value, value.real)


def floating(value: Number) -> Number:
    mp.dps = DIGITS
    if isinstance(value, Fraction):
        return mpmath.mpf(value.numerator) / value.denominator
    return value


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _small(value: Number) -> Number:
    """An exact number that has become too long goes on as an inexact one."""
    return value if not isinstance(value, Fraction) or _bits(value) <= MAX_BITS else floating(value)


def add(a: Number, b: Number) -> Number:
    exact = isinstance(a, Fraction) and isinstance(b, Fraction)
    return _small(a + b) if exact else floating(a) + floating(b)


def multiply(a: Number, b: Number) -> Number:
    exact = isinstance(a, Fraction) and isinstance(b, Fraction)
    return _small(a * b) if exact else floating(a) * floating(b)


def negative(a: Number) -> Number:
    return -a


def divide(a: Number, b: Number) -> Number:
    if b == 0:
        raise Undefined
    exact = isinstance(a, Fraction) and isinstance(b, Fraction)
    return _small(a / b) if exact else floating(a) / floating(b)


def power(base: Number, exponent: Number) -> Number:
    if base == 0:
        if not is_real(exponent) or floating(exponent).real <= 0:
            raise Undefined
        return Fraction(0)
    if isinstance(exponent, Fraction) and isinstance(base, Fraction):
        whole = exponent.denominator == 1
        if whole and _bits(base) * abs(exponent) <= MAX_BITS:
            return base**exponent.numerator
        if base < 0 and _odd_root(exponent):
            return _sign(exponent) * power(-base, exponent)
    inexact, by = floating(base), floating(exponent)
    if mpmath.isinf(inexact) or mpmath.isinf(by):
        raise Undefined
    if _odd_root(exponent) and isinstance(inexact, mpmath.mpf) and inexact < 0:
        return _sign(exponent) * power(-inexact, exponent)
    if abs(by * mpmath.log(inexact)) > MAX_EXPONENT:
        raise TooLarge("a power")
    return mpmath.power(inexact, by)


def _odd_root(exponent: Number) -> bool:
    """Whether a power is a root of odd degree, which is real for negative numbers too."""
    return isinstance(exponent, Fraction) and exponent.denominator % 2 == 1


def _sign(exponent: Fraction) -> int:
    return -1 if exponent.numerator % 2 else 1


def factorial(value: Number) -> Number:
    if isinstance(value, Fraction) and value.denominator == 1:
        if value < 0:
            raise Undefined
        if value <= MAX_FACTORIAL:
            return Fraction(math.factorial(value.numerator))
    if abs(value) > MAX_FACTORIAL:
        raise TooLarge("a factorial")
    return mpmath.gamma(floating(value) + 1)


def binomial(n: Number, k: Number) -> Number:
    if max(abs(n), abs(k)) > MAX_FACTORIAL:
        raise TooLarge("a binomial")
    exact = isinstance(n, Fraction) and isinstance(k, Fraction)
    if exact and n.denominator == k.denominator == 1 and min(n, k) >= 0:
        return Fraction(math.comb(n.numerator, k.numerator))
    return mpmath.binomial(floating(n), floating(k))


def rounded(function: Callable[[Any], int]) -> Callable[[Number], Number]:
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


def function(name: str) -> Callable[[Number], Number]:
    compute = getattr(mpmath, name)

    def apply(value: Number) -> Number:
        inexact = floating(value)
        if abs(inexact) > MAX_EXPONENT and name not in ("log", "atan"):
            raise TooLarge(name)
        if name == "log" and inexact == 0:
            raise Undefined
        return compute(inexact)

    return apply


def logarithm(base: Number, value: Number) -> Number:
    return divide(_log(value), _log(base))


def degrees(value: Number) -> Number:
    return floating(value) * mpmath.pi / 180


def constant(name: str) -> Callable[[], Number]:
    def apply() -> Number:
        mp.dps = DIGITS
        return +getattr(mpmath, name)

    return apply


def unknown(name: str) -> Callable[..., Number]:
    """A function that is only a name (`f`): some function, the same for the same name."""
    draw = random.Random(name)
    factors = [Fraction(draw.randint(100, 999), 991) for _ in range(9)]

    def apply(*values: Number) -> Number:
        weighed = zip(factors, (Fraction(1), *values), strict=False)
        return mpmath.sin(sum((floating(f) * floating(v) for f, v in weighed), mpmath.mpf(0)))

    return apply


_log = function("log")
ARCS = {name: "a" + name for name in ("sin", "cos", "tan", "cot", "sec", "csc")}
ARCS |= {name: "a" + name for name in ("sinh", "cosh", "tanh")}
FUNCTIONS: dict[str, Callable[[Number], Number]] = {
    **{name: function(name) for name in ARCS},
    **{"arc" + name: function(arc) for name, arc in ARCS.items()},
    "ln": _log,
    "exp": function("exp"),
    "lg": lambda value: logarithm(Fraction(10), value),
}
