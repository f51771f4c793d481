"""How a metric adds up, said where it is made: a sum, a mean or a maximum of its parts.

Each class is a float, so that a metric is written and read as any number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class Sum(float):
    """The whole is the sum of the parts, such as tokens, seconds or passes."""


class Mean(float):
    """The whole is a mean: the parts' sum divided by the number that the mean is taken over."""


class Max(float):
    """The whole is the largest of the parts."""


def combined(parts: Sequence[Mapping[str, float]], over: float) -> dict[str, float]:
    """The metrics of `parts` together, with means taken `over` so many tokens or updates.

    A part that lacks a mean counts as 0 in it. Raises `TypeError` for a metric that is a plain
    number, for nobody said how it adds up.
    """
    found: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            if isinstance(value, Sum):
                found[name] = Sum(found.get(name, 0.0) + value)
            elif isinstance(value, Mean):
                found[name] = Mean(found.get(name, 0.0) + value / over)
            elif isinstance(value, Max):
                found[name] = max(found.get(name, value), value)
            else:
                raise TypeError(
                    f"metric {name!r} is {value!r}; make it a Sum, a Mean or a Max of axpo.metrics"
                )
    return found
