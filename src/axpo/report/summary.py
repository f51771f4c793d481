"""What a report says in words and tables: what was run, what came out, and how sure that is.

A difference is claimed only if its interval excludes zero; what is missing is left out, not
guessed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from statistics import fmean
from typing import Any

from axpo import plugins
from axpo.algorithms.subgroups import FAMILY
from axpo.config import RunSettings
from axpo.evaluation.identity import flattened
from axpo.report.names import TOOL_FIGURES, evaluation_order, label
from axpo.report.runs import RunView
from axpo.sandbox.levels import UNSAFE
from axpo.tools.python import NAME as PYTHON
from axpo.wording import (
    NONE,
    Bounded,
    direction,
    interval_text,
    listed,
    number_text,
    share_text,
    signed_text,
)

TableCell = tuple[str, str, str]
STATES = {1: "better", -1: "worse", 0: "none"}
"""The direction of a difference in a metric of which more is better."""
Comparisons = Mapping[tuple[str, str], Mapping[str, Any]]
MAIN_METRIC = "pass@1"
FAMILY_METRICS = (MAIN_METRIC, "tool_rate", "all_wrong_tool")
EDGE_STEPS = 10
NO_BREAK = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True, slots=True)
class EvaluationTable:
    """Rows of (metric label, one cell per column); a cell is (value, interval, state)."""

    columns: list[str]
    notes: list[str]
    rows: list[tuple[str, list[TableCell]]]


def verdict(names: tuple[str, str], comparison: Mapping[str, Any]) -> str | None:
    """One sentence on the comparison's main metric; None if it was not measured."""
    model, baseline = names
    difference = comparison.get("difference", {}).get(MAIN_METRIC)
    if not difference:
        return None
    chance = comparison.get("share_better", {}).get(MAIN_METRIC)
    sure = "" if chance is None else f", better in {share_text(chance)} of the resamples"
    interval = interval_text(difference, 2, signed=True)
    amount = f"{signed_text(difference['value'], 2)} {label(MAIN_METRIC)} {interval}"
    if side := {1: "over", -1: "against"}.get(direction(difference)):
        return f"{model} {amount} {side} {baseline}{sure}."
    return f"No difference shown between {model} and {baseline}: {amount}{sure}."


def what_was_run(runs: Sequence[RunView], names: Sequence[str], kind: str) -> str:
    """One sentence with the methods, steps, batch, model and task that the settings name."""
    if not runs:
        return "No runs."
    steps = [len({line["step"] for line in run.lines(kind)}) for run in runs]
    sentence = listed(
        [f"{name} ({n} steps)" if n else name for name, n in zip(names, steps, strict=True)]
    )
    questions = _common(runs, "rl", "questions")
    rollouts = _common(runs, "algorithm", "rollouts")
    if kind == "rl" and questions and rollouts:
        sentence += f", each step {questions} questions × {rollouts} rollouts"
    if model := _common(runs, "model", "path"):
        both = "from the same start" if len(runs) > 1 else "from"
        sentence += f", {both} {PurePath(str(model)).name}"
    if task := _common(runs, "task", "name"):
        sentence += f", on {task}"
    if ranks := _common(runs, "cluster", "trainers"):
        sentence += f", trained by {ranks} rank{'s' if ranks > 1 else ''}"
    return sentence + "."


def run_notes(runs: Sequence[RunView]) -> list[str]:
    """The notes in the runs' settings (`run.note`), each once."""
    notes = dict.fromkeys(run.config.get("run", {}).get("note") for run in runs)
    return [note for note in notes if note]


def warnings(runs: Sequence[RunView], names: Sequence[str]) -> list[str]:
    """What a reader must know first: which runs had a Python tool without a sandbox, and which left
    out more trajectories than expected."""
    unsafe = [name for run, name in zip(runs, names, strict=True) if runs_unsafe(run.config)]
    said = [f"{UNSAFE} ({', '.join(unsafe)})."] if unsafe else []
    for run, name in zip(runs, names, strict=True):
        limit = run.config.get("run", {}).get("unscored_warn", RunSettings().unscored_warn)
        shares = [(share, step) for step, share in run.series("unscored_share", "rl")]
        above = [found for found in shares if found[0] > limit]
        if above:
            share, step = max(above)
            said.append(
                f"{name}: in {len(above)} of {len(shares)} steps more than {limit:.0%} of the "
                f"trajectories could not be scored (at most {share:.0%}, step {step}); the figures "
                "are of the others."
            )
    return said


def runs_unsafe(settings: Mapping[str, Any]) -> bool:
    """Whether a run's settings give the model a Python tool without a sandbox."""
    offered = PYTHON in settings.get("rollout", {}).get("tools", ())
    level = settings.get("tools", {}).get("python", {}).get("level")
    return offered and level == "unsafe"


def evaluation_table(
    evaluations: Mapping[str, Bounded], comparisons: Comparisons
) -> EvaluationTable | None:
    """Evaluations side by side, then the differences of each comparison; None without any."""
    metrics = {m for e in evaluations.values() for m in e.get("metrics", {})}
    metrics |= {m for c in comparisons.values() for m in c.get("difference", {})}
    if not metrics:
        return None
    columns = [*evaluations, *(f"{model} − {baseline}" for model, baseline in comparisons)]
    rows: list[tuple[str, list[TableCell]]] = []
    for metric in evaluation_order(list(metrics)):
        cells = [_cell(e.get("metrics", {}).get(metric)) for e in evaluations.values()]
        cells += [_difference_cell(c, metric) for c in comparisons.values()]
        rows.append((label(metric), cells))
    return EvaluationTable(columns, _notes(evaluations), rows)


def tools_table(evaluations: Mapping[str, Bounded]) -> EvaluationTable | None:
    """The figures of each tool, evaluations side by side; None if no tool was used."""
    tools = sorted({tool for e in evaluations.values() for tool in e.get("tools", {})})
    rows = [
        (
            f"{tool}: {name}",
            [_cell(e.get("tools", {}).get(tool, {}).get(key)) for e in evaluations.values()],
        )
        for tool in tools
        for key, name in TOOL_FIGURES.items()
    ]
    return EvaluationTable([*evaluations], [], rows) if rows else None


def families_table(
    evaluations: Mapping[str, Bounded], comparisons: Comparisons
) -> EvaluationTable | None:
    """The main figures of each family of questions and the differences of the first comparison.

    None if the examples name no families.
    """
    parts = {name: e.get("by", {}).get(FAMILY, {}) for name, e in evaluations.items()}
    families = list(dict.fromkeys(family for part in parts.values() for family in part))
    main = list(comparisons.items())[:1]
    rows: list[tuple[str, list[TableCell]]] = []
    for family in families:
        for metric in FAMILY_METRICS:
            found = [part.get(family, {}).get("metrics", {}) for part in parts.values()]
            cells = [_cell(metrics.get(metric)) for metrics in found]
            cells += [_difference_cell(c["by"][FAMILY].get(family, {}), metric) for _, c in main]
            rows.append((f"{family.replace('_', ' ')}: {label(metric)}", cells))
    columns = [*evaluations, *(f"{model} − {baseline}" for (model, baseline), _ in main)]
    return EvaluationTable(columns, [], rows) if rows else None


def edge_table(
    runs: Sequence[RunView], keys: Sequence[str], kind: str
) -> list[tuple[str, list[str]]]:
    """Training metrics, one cell per run: the means of the first and of the last steps."""

    def cell(run: RunView, key: str) -> str:
        values = [value for _, value in run.series(key, kind)]
        edge = min(EDGE_STEPS, max(1, len(values) // 2))
        return f"{fmean(values[:edge]):.3f} → {fmean(values[-edge:]):.3f}" if values else NONE

    rows = [(label(key), [cell(run, key) for run in runs]) for key in keys]
    return [row for row in rows if set(row[1]) != {NONE}]


def share_table(
    runs: Sequence[RunView], prefix: str, kind: str
) -> list[tuple[str, list[float | None]]]:
    """`<prefix>_<name>` metrics as shares of their sum, one value per run; largest first."""
    totals = [_totals(run, prefix, kind) for run in runs]
    wholes = [sum(total.values()) for total in totals]
    rows = [
        (
            name.replace("_", " "),
            [
                t.get(name, 0.0) / whole if whole else None
                for t, whole in zip(totals, wholes, strict=True)
            ],
        )
        for name in {name for total in totals for name in total}
    ]
    return sorted(rows, key=lambda row: (-max(c or 0.0 for c in row[1]), row[0]))


def settings_table(runs: Sequence[RunView]) -> tuple[list[tuple[str, list[str]]], ...]:
    """Settings that differ between the runs, and settings that they share.

    If runs chose different parts (algorithms), the names say so; a setting that only one of the
    parts has does not differ.
    """
    flat = [{k: str(v) for k, v in flattened(run.config).items() if v != {}} for run in runs]
    keys = list(dict.fromkeys(key for values in flat for key in values))
    rows = [
        (key, [values.get(key, NONE) for values in flat])
        for key in keys
        if key.partition(".")[0] not in plugins.BUILT_IN or all(key in values for values in flat)
    ]
    differing = [row for row in rows if len(set(row[1])) > 1]
    return differing, [row for row in rows if len(set(row[1])) == 1]


def _totals(run: RunView, prefix: str, kind: str) -> dict[str, float]:
    start = prefix + "_"
    names = {k for line in run.lines(kind) for k in line if k.startswith(start)}
    sums = {n.removeprefix(start): math.fsum(v for _, v in run.series(n, kind)) for n in names}
    return {name: total for name, total in sums.items() if total > 0}


def _common(runs: Sequence[RunView], section: str, key: str) -> Any:
    """The setting's value if all runs share it, else None."""
    values = [(run.config.get(section) or {}).get(key) for run in runs]
    return values[0] if all(v == values[0] for v in values) else None


def _notes(evaluations: Mapping[str, Bounded]) -> list[str]:
    """What was evaluated on; said once if all evaluations agree."""
    notes: dict[str, list[str]] = {}
    for name, e in evaluations.items():
        words = {"questions": "questions", "samples": "samples each"}
        parts = [f"{e[key]} {word}" for key, word in words.items() if key in e]
        if "split" in e:
            parts.append(f"split {e['split']}")
        if parts:
            notes.setdefault(", ".join(parts), []).append(name)
    if len(notes) == 1:
        return list(notes)
    return [f"{', '.join(names)}: {note}" for note, names in notes.items()]


def _cell(estimate: Bounded | None) -> TableCell:
    if not estimate or estimate.get("value") is None:
        return (NONE, "", "")
    return (number_text(estimate["value"]), interval_text(estimate), "")


def _difference_cell(comparison: Mapping[str, Any], metric: str) -> TableCell:
    difference = comparison.get("difference", {}).get(metric)
    if not difference or difference.get("value") is None:
        return (NONE, "", "")
    chance = comparison.get("share_better", {}).get(metric)
    known = "" if chance is None else share_text(chance).replace(" ", NO_BREAK)
    sure = known and f" · better{NO_BREAK}{known}"
    # Other metrics are of rollouts that each model chose itself: a lower one may be selection.
    state = STATES[direction(difference) if metric.startswith("pass@") else 0]
    interval = interval_text(difference, 3, signed=True)
    return (signed_text(difference["value"], 3), interval + sure, state)
