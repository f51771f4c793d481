"""Whether an answer's formula is the truth's: outer forms first, then values.

What `expressions` does not read (integrals, sums, matrices) goes to math-verify. Runs in the math
worker alone: an expression may take any time and memory there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from axpo.tasks.grading import expressions
from axpo.tasks.grading.arithmetic import TooLarge, is_real
from axpo.tasks.grading.expressions import Unreadable
from axpo.tasks.grading.formulas import Formula, is_symbol, noisy, rational, read
from axpo.tasks.grading.words import is_words, same_text, same_words

_MATH_VERIFY = re.compile(r"\\(?:int|sum|prod|lim|begin|max|min|gcd|lcm|det|mathbb)(?![A-Za-z])")
_FLIPPED = {"\\lt": "\\gt", "\\le": "\\ge", "\\gt": "\\lt", "\\ge": "\\le", "\\ne": "\\ne"}


def check(truth: str) -> None:
    """Read and evaluate all of a truth; raises what that raises."""
    for leaf in _leaves(read(truth)):
        _check_leaf(leaf)


def _leaves(formula: Formula) -> list[Formula]:
    return [leaf for part in formula.parts for leaf in _leaves(part)] or [formula]


def _check_leaf(leaf: Formula) -> None:
    text = leaf.text
    if is_words(text):
        return
    if _MATH_VERIFY.search(text):
        _sympy_value(text)
        return
    node = expressions.parse(text)
    points = expressions.points(expressions.variables(node))
    if all(expressions.value_at(node, point) is None for point in points) and not leaf.name:
        raise Unreadable("it has no value")


def equal(answer: str, truth: str) -> bool:
    """Whether two tidy formulas are the same; raises what reading the answer raises."""
    return _equal(read(answer), read(truth))


def _equal(answer: Formula, truth: Formula) -> bool:
    if same_text(answer.text, truth.text) and answer.unit == truth.unit:
        return True
    for kind in ("set", "list"):  # one element is that element
        if answer.kind == kind and len(answer.parts) == 1:
            return _equal(answer.parts[0], truth)
        if truth.kind == kind and len(truth.parts) == 1:
            return _equal(answer, truth.parts[0])
    if {answer.kind, truth.kind} == {"=", "equation"}:
        answer, truth = _as_equation(answer), _as_equation(truth)
    if "=" in (answer.kind, truth.kind):
        return _named(answer, truth)
    if truth.kind == "set" or (truth.kind == "list" and _in_any_order(answer, truth)):
        return answer.kind in ("set", "list") and _matched(answer.parts, truth.parts)
    if "inequality" in (answer.kind, truth.kind):
        return _inequality(answer, truth)
    if answer.kind != truth.kind or len(answer.parts) != len(truth.parts):
        return False
    if truth.kind == "union":
        return _matched(answer.parts, truth.parts)
    if truth.kind == "equation":
        return _ratio(answer, truth) is not None
    if truth.kind == "leaf":
        return _same_value(answer, truth)
    return all(map(_equal, answer.parts, truth.parts))


def _named(answer: Formula, truth: Formula) -> bool:
    """A name on one side only is ignored; two variables must be the same one."""
    names = [side.name for side in (answer, truth) if side.kind == "="]
    if len(names) == 2 and all(map(is_symbol, names)) and names[0] != names[1]:
        return False
    inner = [side.parts[0] if side.kind == "=" else side for side in (answer, truth)]
    return _equal(inner[0], inner[1])


def _as_equation(side: Formula) -> Formula:
    """`y = 2x` as an equation of two sides."""
    if side.kind != "=" or not is_symbol(side.name):
        return side
    return Formula("equation", side.text, (Formula("leaf", side.name), side.parts[0]))


def _in_any_order(answer: Formula, truth: Formula) -> bool:
    """Whether a bare list is of assignments, which say themselves what is what."""
    named = [all(part.kind == "=" for part in side.parts) for side in (answer, truth)]
    return named[1] and (named[0] or len({part.name for part in truth.parts}) == 1)


def _matched(answers: Sequence[Formula], truths: Sequence[Formula]) -> bool:
    """Whether the elements are the same in some order; equality is transitive, so the first that
    fits is as good as any."""
    left = list(truths)
    if len(answers) != len(left):
        return False
    for one in answers:
        found = next((truth for truth in left if _equal(one, truth)), None)
        if found is None:
            return False
        left.remove(found)
    return True


def _ratio(answer: Formula, truth: Formula) -> Any:
    """What the answer's left side minus its right is of the truth's, where it is a constant."""
    parse = expressions.parse
    found, expected = (
        expressions.difference(parse(side.parts[0].text), parse(side.parts[1].text))
        for side in (answer, truth)
    )
    return expressions.ratio(found, expected)


def _inequality(answer: Formula, truth: Formula) -> bool:
    """Two inequalities that say the same, or an inequality of a variable and an interval."""
    if {answer.kind, truth.kind} != {"inequality"}:
        one, other = (_interval(side) for side in (answer, truth))
        return one is not None and other is not None and _equal(one, other)
    if len(answer.parts) != len(truth.parts):
        return False
    answer, truth = _rising(answer), _rising(truth)
    if len(truth.parts) > 2:
        return answer.name == truth.name and all(map(_equal, answer.parts, truth.parts))
    factor = _ratio(answer, truth)
    if factor is None or not is_real(factor):
        return False
    if "\\ne" in (answer.name, truth.name):
        return answer.name == truth.name
    return answer.name == (truth.name if factor > 0 else _FLIPPED[truth.name])


def _rising(chain: Formula) -> Formula:
    """A chain of more than two sides written with < and \\le."""
    operators = chain.name.split()
    if len(chain.parts) > 2 and all(operator in ("\\gt", "\\ge") for operator in operators):
        flipped = " ".join(_FLIPPED[operator] for operator in reversed(operators))
        return Formula(chain.kind, chain.text, chain.parts[::-1], flipped)
    return chain


def _interval(side: Formula) -> Formula | None:
    """`2 < x \\le 5` as (2, 5], `x \\ge 2` as [2, \\infty); an interval as it is."""
    if len(side.kind) == 2:
        return side
    chain = _rising(side)
    operators, parts = chain.name.split(), chain.parts
    if chain.kind != "inequality" or "\\ne" in operators:
        return None
    if len(parts) == 2:
        if is_symbol(parts[1].text):
            operators, parts = [_FLIPPED[operators[0]]], parts[::-1]
        if not is_symbol(parts[0].text):
            return None
        low, high = Formula("leaf", "-\\infty "), Formula("leaf", "\\infty ")
        if operators[0] in ("\\gt", "\\ge"):
            return Formula("[)" if operators[0] == "\\ge" else "()", "", (parts[1], high))
        return Formula("(]" if operators[0] == "\\le" else "()", "", (low, parts[1]))
    if len(parts) == 3 and is_symbol(parts[1].text) and not {"\\gt", "\\ge"} & set(operators):
        brackets = ("[" if operators[0] == "\\le" else "(", "]" if operators[1] == "\\le" else ")")
        return Formula("".join(brackets), "", (parts[0], parts[2]))
    return None


def _same_value(answer: Formula, truth: Formula) -> bool:
    units = {answer.unit, truth.unit} - {""}
    if len(units) > 1:
        return False
    if is_words(truth.text):
        return same_words(answer.text, truth.text)
    if is_words(answer.text):
        return False
    if not answer.unit or not truth.unit:
        # "5m" beside "5 m": a letter glued on is a unit where the other side states that unit.
        for one, other in ((answer, truth), (truth, answer)):
            if one.unit and re.search(rf"[0-9)}}] ?{re.escape(one.unit)}$", other.text):
                bare = Formula("leaf", other.text.removesuffix(one.unit).strip())
                return _same_leaf(bare, one) if other is answer else _same_leaf(one, bare)
    if _same_leaf(answer, truth):
        return True
    if units == {"%"} and answer.unit != truth.unit:  # 50% beside 50 and beside 0.5
        per_cent = [
            Formula("leaf", f"\\frac{{{side.text}}}{{100}}") if side.unit else side
            for side in (answer, truth)
        ]
        return _same_leaf(per_cent[0], per_cent[1])
    return False


def _same_leaf(answer: Formula, truth: Formula) -> bool:
    texts = (answer.text, truth.text)
    values = [rational(text) for text in texts]
    if values[0] is not None and values[1] is not None:
        return values[0] == values[1] or noisy(texts, [v for v in values if v is not None])
    if any(_MATH_VERIFY.search(text) for text in texts):
        return _by_math_verify(*texts)
    return expressions.equal(expressions.parse(answer.text), expressions.parse(truth.text))


@lru_cache(maxsize=256)
def _sympy(text: str) -> Any:
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy

    return latex2sympy(
        text,
        is_real=True,
        normalization_config=None,
        conversion_config=ConversionConfig(lowercase_symbols=False),
    )


@lru_cache(maxsize=256)
def _sympy_value(text: str) -> Any:
    """The value of an expression without variables, None for others."""
    import sympy

    found = _sympy(text)
    constant = isinstance(found, sympy.Expr) and not found.free_symbols
    return sympy.N(found.doit(), 50) if constant else None


def _by_math_verify(answer: str, truth: str) -> bool:
    """math-verify's verdict; values without variables are compared here, since math-verify takes
    very small ones for equal."""
    import sympy
    from math_verify import verify

    expected, found = _sympy_value(truth), _sympy_value(answer)
    if found is not None and expected is not None:
        small = sympy.Float("1e-30", 50)
        return bool(abs(found - expected) <= small * max(abs(found), abs(expected), small))
    return bool(verify(_sympy(truth), _sympy(answer), float_rounding=12, timeout_seconds=None))


def outcome(readings: Sequence[str], truth: str) -> str:
    """`equal` or `different`, or why no reading of the answer can be compared; without readings
    `readable`, or why the truth cannot be read."""
    found = "readable"
    for reading in readings or (None,):
        try:
            if reading is None:
                check(truth)
            elif equal(reading, truth):
                return "equal"
            else:
                found = "different"
        except TooLarge as error:
            found = f"it is too large: {error}"
        except Unreadable as error:
            found = f"it cannot be read: {error}"
        except Exception as error:  # sympy and its parser raise anything
            found = f"it cannot be read: {type(error).__name__}"
    return found
