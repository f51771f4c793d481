"""What a report says in words and tables: what was run, what came out, and how sure that is.

A difference is only claimed where its interval excludes zero; everything missing is left out, not
guessed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from axpo import plugins
from axpo.algorithms.subgroups import FAMILY
from axpo.config import RunSettings
from axpo.report.names import TOOL_FIGURES, evaluation_order, label
from axpo.report.runs import RunView
from axpo.sandbox.levels import UNSAFE
from axpo.tools.python import NAME as PYTHON
from axpo.wording import interval_text, listed, number_text, share_text, signed_text

Estimate = Mapping[str, Any]
Comparisons = Mapping[tuple[str, str], Mapping[str, Any]]
MAIN_METRIC = "pass@1"
FAMILY_METRICS = (MAIN_METRIC, "tool_rate", "all_wrong_tool")
EDGE_STEPS = 10
NO_BREAK = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One sentence on a comparison; `state` is better, worse or none (no difference shown)."""

    state: str
    text: str


@dataclass(frozen=True, slots=True)
class EvaluationTable:
    """Rows of (metric label, one cell a column); a cell is (value, interval, state)."""

    columns: list[str]
    notes: list[str]
    rows: list[tuple[str, list[tuple[str, str, str]]]]


def verdict(names: tuple[str, str], comparison: Mapping[str, Any]) -> Verdict | None:
    """The comparison's main metric as a sentence; None where it was not measured."""
    model, baseline = names
    difference = comparison.get("difference", {}).get(MAIN_METRIC)
    if not difference:
        return None
    name, state = label(MAIN_METRIC), _state(difference)
    chance = comparison.get("share_better", {}).get(MAIN_METRIC)
    sure = "" if chance is None else f", better in {share_text(chance)} of the resamples"
    amount = (
        f"{signed_text(difference['value'], 2)} {name} {interval_text(difference, 2, signed=True)}"
    )
    if state == "none":
        return Verdict(
            state, f"No difference shown between {model} and {baseline}: {amount}{sure}."
        )
    side = "over" if state == "better" else "against"
    return Verdict(state, f"{model} {amount} {side} {baseline}{sure}.")


def what_was_run(runs: Sequence[RunView], names: Sequence[str], kind: str) -> str:
    """One sentence: methods, steps, batch, model and task, as far as the settings say."""
    if not runs:
        return "No runs."
    parts: list[str] = []
    for run, name in zip(runs, names, strict=True):
        steps = len({line["step"] for line in run.lines(kind)})
        parts.append(f"{name} ({steps} steps)" if steps else name)
    sentence = listed(parts)
    questions = _common(runs, "rl", "questions")
    rollouts = _common(runs, "algorithm", "rollouts")
    if kind == "rl" and questions and rollouts:
        sentence += f", each step {questions} questions × {rollouts} rollouts"
    if model := _common(runs, "model", "path"):
        both = "from the same start" if len(runs) > 1 else "from"
        sentence += f", {both} {PurePath(str(model)).name}"
    if task := _common(runs, "task", "name"):
        sentence += f", on {task}"
    return sentence + "."


def run_notes(runs: Sequence[RunView]) -> list[str]:
    """What the runs' settings note (`run.note`), each note once."""
    notes = dict.fromkeys(run.config.get("run", {}).get("note") for run in runs)
    return [note for note in notes if note]


def warnings(runs: Sequence[RunView], names: Sequence[str]) -> list[str]:
    """What a reader must know before anything else: runs whose Python tool had no sandbox, and runs
    that left out more trajectories than expected."""
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
    evaluations: Mapping[str, Estimate], comparisons: Comparisons
) -> EvaluationTable | None:
    """Evaluations side by side, then each comparison's differences; None without any."""
    metrics = {m for e in evaluations.values() for m in e.get("metrics", {})}
    metrics |= {m for c in comparisons.values() for m in c.get("difference", {})}
    if not metrics:
        return None
    columns = [*evaluations, *(f"{model} − {baseline}" for model, baseline in comparisons)]
    rows: list[tuple[str, list[tuple[str, str, str]]]] = []
    for metric in evaluation_order(list(metrics)):
        cells = [_cell(e.get("metrics", {}).get(metric)) for e in evaluations.values()]
        cells += [_difference_cell(c, metric) for c in comparisons.values()]
        rows.append((label(metric), cells))
    return EvaluationTable(columns, _notes(evaluations), rows)


def tools_table(evaluations: Mapping[str, Estimate]) -> EvaluationTable | None:
    """Each tool's figures, evaluations side by side; None where no tool was used."""
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
    evaluations: Mapping[str, Estimate], comparisons: Comparisons
) -> EvaluationTable | None:
    """The main figures of each family of questions and the differences of the first comparison;
    None where the examples name none."""
    parts = {name: e.get("by", {}).get(FAMILY, {}) for name, e in evaluations.items()}
    families = list(dict.fromkeys(family for part in parts.values() for family in part))
    main = list(comparisons.items())[:1]
    rows: list[tuple[str, list[tuple[str, str, str]]]] = []
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
    """Training metrics: mean of the first and of the last steps, a cell a run."""
    rows: list[tuple[str, list[str]]] = []
    for key in keys:
        cells: list[str] = []
        for run in runs:
            values = [v for _, v in run.series(key, kind)]
            edge = min(EDGE_STEPS, max(1, len(values) // 2))
            first, last = values[:edge], values[-edge:]
            cells.append(f"{_mean(first):.3f} → {_mean(last):.3f}" if values else "–")
        if any(cell != "–" for cell in cells):
            rows.append((label(key), cells))
    return rows


def share_table(
    runs: Sequence[RunView], prefix: str, kind: str
) -> list[tuple[str, list[float | None]]]:
    """`<prefix>_<name>` metrics as shares of their sum, a value a run; largest first."""
    totals = [_totals(run, prefix, kind) for run in runs]
    names = {name for total in totals for name in total}
    rows: list[tuple[str, list[float | None]]] = []
    for name in names:
        cells: list[float | None] = []
        for total in totals:
            whole = sum(total.values())
            cells.append(total.get(name, 0.0) / whole if whole > 0 else None)
        rows.append((name.replace("_", " "), cells))
    return sorted(rows, key=lambda row: (-max(c or 0.0 for c in row[1]), row[0]))


def settings_table(runs: Sequence[RunView]) -> tuple[list[tuple[str, list[str]]], ...]:
    """Settings that differ between the runs, and those that they share.

    Where runs chose different parts (algorithms), the names say so; what only one of them has does
    not differ.
    """
    flat = [_flatten(run.config) for run in runs]
    keys = list(dict.fromkeys(key for values in flat for key in values))
    rows = [
        (key, [values.get(key, "–") for values in flat])
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


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat


def _common(runs: Sequence[RunView], section: str, key: str) -> Any:
    """The setting's value where all runs share it, else None."""
    values = [run.config.get(section, {}).get(key) for run in runs]
    return values[0] if all(v == values[0] for v in values) else None


def _notes(evaluations: Mapping[str, Estimate]) -> list[str]:
    """What was evaluated on, once where all agree."""
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


def _cell(estimate: Estimate | None) -> tuple[str, str, str]:
    if not estimate or estimate.get("value") is None:
        return ("–", "", "")
    return (number_text(estimate["value"]), interval_text(estimate), "")


def _difference_cell(comparison: Mapping[str, Any], metric: str) -> tuple[str, str, str]:
    difference = comparison.get("difference", {}).get(metric)
    if not difference or difference.get("value") is None:
        return ("–", "", "")
    chance = comparison.get("share_better", {}).get(metric)
    known = "" if chance is None else share_text(chance).replace(" ", NO_BREAK)
    sure = known and f" · better{NO_BREAK}{known}"
    # The others are of rollouts that each model chose itself: that of two models one is lower may
    # be selection. Pass@k is of all rollouts.
    state = _state(difference) if metric.startswith("pass@") else "none"
    return (
        signed_text(difference["value"], 3),
        interval_text(difference, 3, signed=True) + sure,
        state,
    )


def _state(difference: Estimate) -> str:
    """better, worse or none of a metric where more is better."""
    low, high = difference.get("low"), difference.get("high")
    if low is None or high is None or low <= 0 <= high:
        return "none"
    return "better" if low > 0 else "worse"


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
