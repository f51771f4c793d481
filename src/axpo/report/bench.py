"""What `axpo bench` found, as a table in a terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from axpo.report.live import output_console
from axpo.report.names import capital
from axpo.report.summary import STATES
from axpo.wording import NONE, Bounded, direction, interval_text, number_text, signed_text

PAPER = "paper"
PROTOCOL = (
    "The paper does not say how many samples a question got, what judged, how long an answer might "
    "be, how it was decoded and what computed its scores: a difference to its rows of a few points "
    "may be one of protocol."
)
SHOWN = 6
"""Averages of a benchmark that the terminal shows."""


@dataclass(frozen=True, slots=True)
class Line:
    """A row of a benchmark's table, in words: an arm, or a model of the paper."""

    name: str
    paper: bool
    pass_1: str
    pass_1_interval: str
    pass_k: str
    pass_k_interval: str
    official: str
    tool_rate: str
    calls: str
    gain: str
    state: str
    """"better", "worse" or "none" of the gain; empty where there is none."""


def heads(k: int) -> list[str]:
    """The heads of the table's columns."""
    of_k = f"Pass@{k}" if k > 1 else ""
    return ["", "Pass@1", of_k, "official", "tool rate", "calls", "gain over it"]


def table_lines(found: Mapping[str, Any], benchmark: str) -> list[Line]:
    """The arms of a benchmark, then the paper's models."""
    one = found["benchmarks"][benchmark]
    lines = [_arm_line(name, arm, one["gains"], found["k"]) for name, arm in one["arms"].items()]
    return lines + [
        Line(f"{PAPER}: {model}", True, _share(row.get("pass@1")), "", "", "", "",
             _share(row.get("tool_rate")), "", "", "")
        for model, row in one["paper"].items()
    ]  # fmt: skip


def mean_lines(found: Mapping[str, Any]) -> list[Line]:
    """The means over the paper's nine benchmarks; none where one of them was not measured."""
    rows = {**found["means"], **{f"{PAPER}: {m}": r for m, r in found["paper"]["means"].items()}}
    return [
        Line(name, name.startswith(PAPER), _share(row.get("pass@1")), "",
             _share(row.get("pass@4")), "", "", "", "", "", "")
        for name, row in rows.items()
        if found["means"]
    ]  # fmt: skip


def heading(found: Mapping[str, Any], benchmark: str) -> str:
    """The benchmark and how much of it was asked."""
    one = found["benchmarks"][benchmark]
    arm = next(iter(one["arms"].values()))
    asked, rows, clusters = arm["questions"], one["rows"], arm["clusters"]
    part = f"{rows:,} questions" if asked == rows else f"the first {asked:,} of {rows:,} questions"
    several = "" if clusters == asked else f" in {clusters:,} clusters"
    return f"{benchmark}: {part}{several}, {found['samples']} samples each"


def counts(found: Mapping[str, Any], benchmark: str) -> list[str]:
    """What the figures of a benchmark leave out, a sentence for each arm that leaves out any."""
    said: list[str] = []
    for name, arm in found["benchmarks"][benchmark]["arms"].items():
        total = arm["questions"] * arm["samples"]
        parts: list[str] = []
        if arm["unscored"]:
            parts.append(f"{arm['unscored']:,} of {total:,} samples were not scored (our faults)")
        if arm["dropped"]:
            parts.append(
                f"{arm['dropped']:,} questions have fewer than {arm['k']} scored samples and no "
                f"Pass@{arm['k']}"
            )
        scored = total - arm["unscored"]
        if arm["official_scored"] not in (0, scored):
            parts.append(f"official is of {arm['official_scored']:,} of {scored:,} scored samples")
        if parts:
            said.append(f"{name}: {'; '.join(parts)}.")
    return said


def averages(arm: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The benchmark's own averages by name: strict, and official where there is one."""
    strict, official = arm["averages"]["strict"], arm["averages"].get("official", {})
    for name, value in strict.items():
        theirs = f" / {_share(official[name])}" if name in official else ""
        yield name, f"{_share(value)}{theirs}"


def averages_rows(arms: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """The benchmark's own averages as a table: its heads, and each average's value by arm."""
    first = next(iter(arms.values()))
    known = {name: dict(averages(arm)) for name, arm in arms.items()}
    names = dict.fromkeys(name for values in known.values() for name in values)
    rows = [(name, [values.get(name, NONE) for values in known.values()]) for name in names]
    return [f"average{_of_both(first)}", *known], rows


def print_bench(found: Mapping[str, Any]) -> None:
    """Print the table of each benchmark and what it can be compared with."""
    console = output_console()
    for place, name in enumerate(found["benchmarks"]):
        console.print(Text(heading(found, name), "bold"))
        console.print(_table(found["k"], table_lines(found, name), first=place == 0))
        for text in counts(found, name):
            _say(console, text, "yellow")
        first = next(iter(found["benchmarks"][name]["arms"].values()))
        shown = list(averages(first))
        if len(shown) > 1:
            more = f"; {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
            words = "; ".join(f"{one} {value}" for one, value in shown[:SHOWN])
            _say(console, f"Averages{_of_both(first)}: {words}{more}.")
        _say(console, f"{capital(found['benchmarks'][name]['comparable'])}\n")
    if lines := mean_lines(found):
        console.print(Text("Mean of the nine benchmarks", "bold"))
        console.print(_table(found["k"], lines, first=False))
    if any(one["paper"] for one in found["benchmarks"].values()):
        _say(console, f"{PROTOCOL} Paper: {found['paper']['source']}.")


def markdown(found: Mapping[str, Any]) -> str:
    """`bench.md`."""
    base = f", base `{found['base']}`" if found["base"] else ""
    k = found["k"]
    parts = [
        f"# Benchmarks\n\nModel `{found['model']}`{base}. {found['samples']} samples for each "
        f"question. In per cent, with 95 % intervals over clusters of questions; *calls* are tool "
        "calls for each sample, and *gain over it* is how much the first row's Pass@1 is above "
        "that of the row, paired on the same questions, in points."
    ]
    for name, one in found["benchmarks"].items():
        parts.append(f"## {heading(found, name)}\n\n{_rows(heads(k), table_lines(found, name))}")
        parts += counts(found, name)
        parts.append(capital(one["comparable"]))
        columns, rows = averages_rows(one["arms"])
        parts.append(_markdown(columns, [[row, *cells] for row, cells in rows]))
    if lines := mean_lines(found):
        parts.append(f"## Mean of the nine benchmarks\n\n{_rows(heads(k), lines)}")
    if any(one["paper"] for one in found["benchmarks"].values()):
        parts.append(f"{PROTOCOL} Paper: {found['paper']['source']}.")
    return "\n\n".join(part for part in parts if part) + "\n"


def _arm_line(name: str, arm: Mapping[str, Any], gains: Mapping[str, Any], k: int) -> Line:
    metrics = arm["metrics"]
    first, of_k = metrics.get("pass@1"), metrics.get(f"pass@{k}")
    gain = gains.get(name, {}).get("difference", {}).get("pass@1")
    calls = metrics.get("calls")
    return Line(
        name, False,
        _value(first), _interval(first), _value(of_k) if k > 1 else "",
        _interval(of_k) if k > 1 else "",
        _value(metrics.get("official")), _value(metrics.get("tool_rate")),
        NONE if calls is None else number_text(calls["value"], 2),
        "" if gain is None else f"{signed_text(100 * gain['value'], 1)} {_interval(gain, True)}",
        "" if gain is None else STATES[direction(gain)],
    )  # fmt: skip


def _table(k: int, lines: list[Line], first: bool) -> Table:
    """The lines; columns have the same widths in every table."""
    table = Table(box=None, show_header=first, pad_edge=False)
    widths = (16, 17, 6, 8, 9, 5, 20)
    for head, width in zip(heads(k), widths, strict=True):
        table.add_column(head, justify="right" if head else "left", min_width=width, no_wrap=True)
    for line in lines:
        cells = [line.name, f"{line.pass_1} {line.pass_1_interval}".strip(), line.pass_k,
                 line.official, line.tool_rate, line.calls, line.gain]  # fmt: skip
        table.add_row(*(Text(cell) for cell in cells), style="bright_black" if line.paper else "")
    return table


def _rows(columns: list[str], lines: list[Line]) -> str:
    """The lines as a Markdown table."""
    body = [
        [line.name, f"{line.pass_1} {line.pass_1_interval}",
         f"{line.pass_k} {line.pass_k_interval}", line.official, line.tool_rate, line.calls,
         line.gain]
        for line in lines
    ]  # fmt: skip
    return _markdown(columns, body)


def _markdown(columns: list[str], body: list[list[str]]) -> str:
    rule = ["---", *["---:"] * (len(columns) - 1)]
    lines = [columns, rule, *body]
    return "\n".join("| " + " | ".join(" ".join(c.split()) for c in line) + " |" for line in lines)


def _of_both(arm: Mapping[str, Any]) -> str:
    return " (strict / official)" if "official" in arm["averages"] else ""


def _say(console: Console, text: str, style: str = "bright_black") -> None:
    console.print(Text(text, style), highlight=False)


def _share(value: float | None) -> str:
    return "" if value is None else number_text(100 * value, 1)


def _value(estimate: Bounded | None) -> str:
    return NONE if estimate is None else number_text(100 * estimate["value"], 1)


def _interval(estimate: Bounded | None, signed: bool = False) -> str:
    if estimate is None:
        return ""
    scaled = {name: 100 * estimate[name] for name in ("low", "high")}
    return interval_text(scaled, 1, signed)
