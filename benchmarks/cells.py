"""How figures and tables are written, in the terminal and on the performance page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.harness import Row
from benchmarks.targets import targets_of

COLUMNS: Mapping[str, str] = {
    "image_tokens": "image tokens",
    "response": "response tokens",
    "tool_turns": "tool turns",
    "turns": "tool turns",
    "max_tokens": "max tokens",
    "thinking": "thinking tokens",
    "calls_at_once": "calls at once",
    "words": "prompt words",
    "frozen": "of a source frozen",
}


def case_text(case: Mapping[str, Any]) -> str:
    """A case in a line: `256 image tokens, 64 response tokens`."""
    return ", ".join(
        f"{value} {COLUMNS.get(key, key)}" if not isinstance(value, str) else str(value)
        for key, value in case.items()
    )


def spread(figure: Mapping[str, float]) -> str:
    """`3.27 [3.25, 3.28]`."""
    return f"{figure['median']:.2f} [{figure['low']:.2f}, {figure['high']:.2f}]"


def number(figure: Any) -> str:
    """A figure or a spread; nothing for None."""
    if figure is None:
        return ""
    if isinstance(figure, Mapping):
        return spread(figure)
    return f"{figure:.3g}" if abs(figure) < 1 else f"{figure:.2f}"


def verdicts(row: Row) -> str:
    """The row's targets, each with whether it is met."""
    return "; ".join(f"{t} {'✓' if t.met(row) else '✗'}" for t in targets_of(row))


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return lines + [f"| {' | '.join(cells)} |" for cells in body]
