"""`study.md`'s diagnostics: what training did, and what failed prefixes could have become."""

from __future__ import annotations

from collections.abc import Mapping

from axpo.report.names import evaluation_order, label
from axpo.study.markup import Json, cell_text, picker, rows, table

TRAINING_LABELS = {
    "accuracy": "accuracy",
    "tool_rate": "tool rate",
    "all_wrong_tool": "all-wrong tool",
    "all_wrong_no_tool": "all-wrong no-tool",
    "recovery": "recovery",
}


def diagnostics(found: Json) -> list[str]:
    """The section; empty if nothing was trained or diagnosed."""
    sections = [*in_training(found["models"]), *_diagnosis(found)]
    return ["## Diagnostics", *sections] if sections else []


def in_training(models: Json, note: str = "", first: Mapping[str, str] | None = None) -> list[str]:
    """The last steps of the trained models; empty if nothing was trained.

    `note` follows the explanation, and `first` is a row of text above the models.
    """
    trained = {n: m for n, m in models.items() if m["training"]}
    if not trained:
        return []
    heads = {name: picker("training", key) for key, name in TRAINING_LABELS.items()}
    text = f"### In training\n\nThe last 10 steps; recovery over all steps.{note}"
    return [f"{text}\n\n{table(trained, heads, first=first)}"]


def _diagnosis(found: Json) -> list[str]:
    """One row per figure of the diagnoses, and one column per diagnosed model."""
    models = [m for m in found["models"].values() if m["diagnosis"]]
    if not models:
        return []
    lines = [["", *(m["label"] for m in models)]]
    for name in evaluation_order([name for m in models for name in m["diagnosis"]]):
        lines.append([label(name), *(cell_text(m["diagnosis"].get(name)) for m in models)])
    samples = found["eval"]["prefix_samples"]
    return [
        "### Failed prefixes\n\nOf held-out rollouts, drawn at random and resampled "
        f"{samples} times each (`axpo diagnose`).\n\n{rows(lines)}"
    ]
