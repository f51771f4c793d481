"""Markdown tables with one row per model and one column per figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from axpo.wording import interval_text, number_text, signed_text

Json = dict[str, Any]
Pick = Callable[[Json], Any]
"""A function from a model to one of its figures, a mapping with `value`; None if it has none."""


def picker(*keys: str) -> Pick:
    """A function that gives the figure under these keys of a model."""

    def pick(model: Json) -> Any:
        found: Any = model
        for key in keys:
            found = (found or {}).get(key)
        return found

    return pick


def signed_picker(*keys: str) -> Pick:
    """A function like `picker`'s, for a figure that is shown with its sign."""
    pick = picker(*keys)
    return lambda model: {**cell, "signed": True} if (cell := pick(model)) else None


def table(
    models: Json,
    heads: Mapping[str, Pick],
    signed: bool = False,
    seeds: bool = False,
    first: Mapping[str, str] | None = None,
) -> str:
    """One row per model and one column per head; columns that no model has are left out.

    `first` is a row of text above the models: its name under "", and the other texts by head.
    """
    used = {head: pick for head, pick in heads.items() if any(pick(m) for m in models.values())}
    lines = [["", *(["seeds"] if seeds else []), *used]]
    if first is not None:
        lines.append([first.get(head, "–") for head in lines[0]])
    for model in models.values():
        compared = model["difference"].get("all", {}).get("pass@1", {})
        shown = compared.get("values", ()) if signed else model["seeds"]
        count = [str(len(shown))] if seeds else []
        lines.append(
            [model["label"], *count, *(cell_text(pick(model), signed) for pick in used.values())]
        )
    return rows(lines)


def cell_text(cell: Json | None, signed: bool = False) -> str:
    """A value with its interval, its p-value if there is one, and the number of its seeds if some
    have no value."""
    if not cell:
        return "–"
    signed = signed or cell.get("signed", False)
    digits = 1 if abs(cell["value"]) >= 10 else 3
    value = signed_text(cell["value"], digits) if signed else number_text(cell["value"], digits)
    text = f"{value} {interval_text(cell, digits, signed=signed)}".strip()
    if "p" in cell:
        text += f", p {p_text(cell['p'])}"
    values = cell.get("values", {}).values()
    if missing := sum(value is None for value in values):
        text += f" ({len(values) - missing} of {len(values)} seeds)"
    return text


def p_text(value: float) -> str:
    """The p-value with three decimals."""
    return "< 0.001" if value < 0.0005 else f"{value:.3f}"


def rows(lines: Sequence[Sequence[str]]) -> str:
    """A table whose first line is the head."""
    made = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    return "\n".join([made[0], "|" + "---|" * len(lines[0]), *made[1:]])
