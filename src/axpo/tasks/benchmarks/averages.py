"""Means over the questions of a benchmark, from how often each was answered rightly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from axpo.tree import Group


@dataclass(frozen=True, slots=True)
class Share:
    """A question's share of right rollouts among the scored ones, None where none is scored; with
    the question's `cluster`, its `meta`, and how many pictures it shows."""

    value: float | None
    cluster: str
    meta: Mapping[str, Any]
    pictures: int = 0


def shares(groups: Iterable[Group]) -> list[Share]:
    """One share per group."""
    found: list[Share] = []
    for group in groups:
        solved = [t.solved for t in group.rollouts if t.solved is not None]
        value = sum(solved) / len(solved) if solved else None
        shown = len(group.prompt.images)
        found.append(Share(value, group.cluster or group.example, group.meta, shown))
    return found


def mean_by(shares: Iterable[Share], form: str) -> dict[str, float]:
    """The mean of the scored shares of each name that `form` makes of their meta, such as
    "rotation {rotation}"; sorted by name."""
    values: dict[str, list[float]] = {}
    for share in shares:
        if share.value is not None:
            values.setdefault(form.format_map(share.meta), []).append(share.value)
    return {name: mean(values[name]) for name in sorted(values)}


def mean(values: Sequence[float]) -> float:
    """Of at least one value."""
    return sum(values) / len(values)
