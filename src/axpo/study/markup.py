"""Markdown tables of models: a row a model, a column a figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from axpo.wording import interval_text, number_text, signed_text

Json = Mapping[str, Any]
Pick = Callable[[Json], Any]
"""A model to one of its figures, a mapping with `value`; None where it has none."""


def picker(*keys: str) -> Pick:
    """The figure under these keys of the model."""

    def pick(model: Json) -> Any:
        found: Any = model
        for key in keys:
            found = (found or {}).get(key)
        return found

    return pick


def signed_picker(*keys: str) -> Pick:
    """The same, to be shown with its sign."""
    pick = picker(*keys)
    return lambda model: {**cell, "signed": True} if (cell := pick(model)) else None


def table(
    models: Json,
    heads: Mapping[str, Pick],
    signed: bool = False,
    seeds: bool = False,
    first: Mapping[str, str] | None = None,
) -> str:
    """A row a model, a column a head; columns that no model has are left out.

    `first` is a row of text above the models': its name under "", then by head.
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
    """A value with its interval and, where there is one, its p-value; and how many seeds it is of,
    where that is not all."""
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
    """Three decimals."""
    return "< 0.001" if value < 0.0005 else f"{value:.3f}"


def rows(lines: Sequence[Sequence[str]]) -> str:
    """A table whose first line is its head."""
    made = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    return "\n".join([made[0], "|" + "---|" * len(lines[0]), *made[1:]])
