"""Evaluations, diagnoses and comparisons as tables in a terminal.

A table that is wider than the terminal is printed as several tables, each with as many columns as
fit: an interval is never broken over lines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from axpo.errors import UserError
from axpo.evaluation.results import compare_runs
from axpo.report.live import UNBROKEN, output_console
from axpo.report.names import evaluation_order, label
from axpo.report.summary import verdict

Estimates = Mapping[str, Mapping[str, float]]


def print_evaluation(result: Mapping[str, Any]) -> None:
    """Print `evaluation.json` with its parts side by side."""
    columns: dict[str, Estimates] = {"all": result["metrics"]}
    for key, parts in result["by"].items():
        columns |= {f"{key} {value}": part["metrics"] for value, part in parts.items()}
    title = f"{result['questions']} {result['split']} questions x {result['samples']} samples"
    print_estimates(title, columns)
    if result["unscored"]:
        output_console().print(_unscored(result), highlight=False, markup=False)
    if "judge_requests" in result:
        output_console().print(_judged(result), highlight=False, markup=False)
    if "chat_requests" in result:
        output_console().print(_asked(result), highlight=False, markup=False)


def _judged(result: Mapping[str, Any]) -> str:
    """What the judge did for the command that wrote `evaluation.json` last."""
    cost = f", cost {result['judge_cost']:.4g}" if result["judge_cost"] else ""
    return (
        f"Judge: {result['judge_requests']:.0f} requests, {result['judge_recorded']:.0f} replies "
        f"recorded before, {result['judge_failures']:.0f} questions without a reply, "
        f"{result['judge_unreadable']:.0f} replies without a verdict, "
        f"{result['judge_prompt_tokens']:,.0f} + {result['judge_reply_tokens']:,.0f} tokens, "
        f"{result['judge_seconds']:.1f} s{cost}"
    )


def _asked(result: Mapping[str, Any]) -> str:
    """What a chat endpoint did for the command that wrote `evaluation.json` last."""
    cost = f", cost {result['chat_cost']:.4g}" if result["chat_cost"] else ""
    return (
        f"Endpoint: {result['chat_requests']:.0f} requests, {result['chat_recorded']:.0f} replies "
        f"recorded before, {result['chat_failures']:.0f} turns without a reply, "
        f"{result['chat_refused']:.0f} withheld by a filter, "
        f"{result['chat_prompt_tokens']:,.0f} + {result['chat_reply_tokens']:,.0f} tokens, "
        f"{result['chat_seconds']:.1f} s{cost}"
    )


def _unscored(result: Mapping[str, Any]) -> str:
    faults = result["faults"]
    causes = [
        f"{name.removeprefix('fault_').replace('_', ' ', 1)} {count:.0f}"
        for name, count in faults.items()
        if name.startswith("fault_")
    ]
    return (
        f"{result['unscored']} rollouts were not scored ({', '.join(causes)}), "
        f"{100 * faults['unscored_tool_rate']:.0f} % of them had called a tool; the figures leave "
        "them out, but for those in which they count as wrong"
    )


def print_diagnostics(result: Mapping[str, Any]) -> None:
    """Print `diagnosis.json`: the gap's rates, then what failed prefixes could have led to."""
    print_estimates("The Thinking-Acting Gap", {"all questions": result["metrics"]})
    columns = {
        f"{name} ({part['prefixes']})": part["metrics"]
        for name, part in result["prefixes"].items()
        if part["metrics"]
    }
    if columns:
        title = f"Failed prefixes, {result['prefix_samples']} continuations each, K = {result['k']}"
        print_estimates(title, columns)
    else:
        print("No question was triggered: there is no failed prefix to resample.")


def compare_all(
    runs: Sequence[Path], say: Callable[[str], None]
) -> dict[tuple[Path, Path], dict[str, Any]]:
    """Each pair of evaluated runs, the earlier one as baseline, with its paired comparison.

    Raises `UserError` for fewer than two runs, and for a folder without an evaluation.
    """
    if len(runs) < 2:
        raise UserError(
            f"compare: got {', '.join(map(str, runs))} alone; expected two or more evaluated runs, "
            "the baseline first"
        )
    found: dict[tuple[Path, Path], dict[str, Any]] = {}
    for first, second in combinations(runs, 2):
        say(f"comparing {second.name} with {first.name}")
        found[first, second] = compare_runs(first, second)
    return found


def print_comparison(pair: tuple[Path, Path], comparison: Mapping[str, Any]) -> None:
    """Print the comparison of a pair of runs, baseline first."""
    first, second = pair
    said = verdict((second.name, first.name), comparison)
    if said is not None:
        output_console().print(said, markup=False)
    print_estimates(f"{second.name} - {first.name}", {"difference": comparison["difference"]})


def print_estimates(title: str, columns: Mapping[str, Estimates]) -> None:
    """Print estimates with their metrics as rows; in several tables where one is too wide."""
    console = output_console()
    left = list(columns)
    while left:
        count = len(left)
        while count > 1 and _width(console, _table("", columns, left[:count])) > console.width:
            count -= 1
        console.print(_table(title, columns, left[:count]))
        left, title = left[count:], ""


def _width(console: Console, table: Table) -> int:
    """The columns that the table takes if no cell is broken."""
    return console.measure(table, options=console.options.update(max_width=UNBROKEN)).maximum


def _table(title: str, columns: Mapping[str, Estimates], names: Sequence[str]) -> Table:
    """The columns `names`, with the rows that have something in them."""
    shown = [columns[name] for name in names]
    table = Table("metric", title=Text(title) if title else None, title_justify="left")
    for name in names:
        table.add_column(escape(name), no_wrap=True)
    for metric in evaluation_order(list(dict.fromkeys(m for column in shown for m in column))):
        table.add_row(Text(label(metric)), *(_cell(column.get(metric)) for column in shown))
    return table


def _cell(estimate: Mapping[str, float] | None) -> str:
    if estimate is None:
        return ""
    digits = 1 if abs(estimate["value"]) >= 10 else 3
    value, low, high = (f"{estimate[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"
