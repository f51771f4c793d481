"""`axpo judge check`: asks the recipe's judge about labelled answers, and shows what it found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from axpo import stopping
from axpo.build.judge import start_judge
from axpo.config import Config
from axpo.errors import ConfigError, Stopped, UserError
from axpo.judge import make_judge
from axpo.judge.agreement import Agreement, Bounds
from axpo.judge.check import Judged, agreements, judge_all, read_labelled
from axpo.report.live import LiveView, output_console
from axpo.wording import NONE, interval_text, number_text

LONGEST = 300
"""Characters of a text of a row that are shown."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What a judge said of the answers in a file, and the figures of its work."""

    title: str
    judged: list[Judged]
    figures: Mapping[str, float]


def measure(config: Config, file: str, logs: Path, view: LiveView) -> Checked:
    """Ask the recipe's judge about each answer in `file`, those among them that a run would decide
    without it; the log of a server that is started for it goes to `logs`.

    Raises `UserError` where there is no judge, or none of its answers is a verdict.
    """
    if config.judge is None:
        raise ConfigError(
            "judge: there is none; name a recipe with [judge], or set judge.url, judge.model and "
            "judge.record"
        )
    rows = read_labelled(file)
    judge = make_judge(config.judge)
    start_judge(config, judge, logs, view.phase)
    view.begin(0, len(rows), "answer")
    view.phase("asking the judge")

    async def ask() -> list[Judged]:
        try:
            return await judge_all(
                judge.judged, rows, config.task.solved, lambda: view.update(view.step + 1, {})
            )
        finally:
            await judge.close()

    try:
        judged = stopping.run(ask())
    except Stopped as stop:
        stop.where = f"{view.place}; what was answered is recorded"
        raise
    if all(one.said is None for one in judged):
        raise UserError(f"no verdict on any of {len(rows)} answers; the first: {judged[0].words}")
    title = f"{file}: {len(rows)} answers, judged by {config.judge.model}"
    return Checked(title, judged, judge.figures)


def print_checked(found: Checked) -> None:
    """Print the figures, those of each kind, the rows on which judge and label differ, and those
    without a verdict."""
    console = output_console()
    (_, whole), *kinds = agreements(found.judged)
    lines = [found.title, ""]
    lines += [f"  agreement      {_estimate(whole.agreement)}"]
    lines += [f"  Cohen's kappa  {_estimate(whole.kappa)}"]
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
    console.print(_table([*kinds, ("all", whole)]))
    if any(table.scored and table.kappa is None for _, table in (*kinds, ("", whole))):
        print(f"{NONE} no kappa: the answers with a verdict are all right, or all wrong")
    print(_cost(found.figures))
    for line in _rows(found.judged):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def as_json(found: Checked) -> dict[str, Any]:
    """The same for a program."""
    return {
        "title": found.title,
        "figures": dict(found.figures),
        "kinds": {name: _values(table) for name, table in agreements(found.judged)},
        "rows": [
            {"row": one.number, **one.row.model_dump(), "said": one.said, "words": one.words}
            for one in found.judged
        ],
    }


def _cost(figures: Mapping[str, float]) -> str:
    """What the verdicts took."""
    text = (
        f"{figures['requests']:,.0f} requests, {figures['prompt_tokens']:,.0f} tokens sent and "
        f"{figures['reply_tokens']:,.0f} received"
    )
    if figures["cost"]:
        text += f", cost {figures['cost']:.4g} by the server's count"
    return f"{text}; {figures['recorded']:,.0f} replies were recorded before"


def _values(table: Agreement) -> dict[str, Any]:
    names = ("agreement", "kappa", "accepted_wrong", "refused_right")
    bounds: dict[str, Bounds | None] = {name: getattr(table, name) for name in names}
    found = {name: None if bound is None else asdict(bound) for name, bound in bounds.items()}
    return asdict(table) | found


def _table(found: Sequence[tuple[str, Agreement]]) -> Table:
    unscored = any(table.unscored for _, table in found)
    table = Table("kind", box=box.SIMPLE_HEAD)
    heads = ("agreement", "kappa", "wrong\naccepted", "right\nrefused")
    for head in (*heads, *(("no\nverdict",) if unscored else ())):
        table.add_column(head, no_wrap=True, justify="right")
    for name, counts in found:
        kappa = counts.kappa
        cells = [
            _estimate(counts.agreement),
            number_text(None if kappa is None else kappa.value, 2),
            _share(counts.wrong_as_right, counts.wrong),
            _share(counts.right_as_wrong, counts.right),
        ]
        if unscored:
            cells.append(str(counts.unscored or ""))
        table.add_row(Text(name), *cells)
    return table


def _estimate(bounds: Bounds | None) -> str:
    if bounds is None:
        return NONE
    return f"{number_text(bounds.value, 2)} {interval_text(asdict(bounds), 2)}"


def _share(count: int, total: int) -> str:
    return f"{count} of {total}" if total else NONE


def _rows(judged: Sequence[Judged]) -> Iterator[str]:
    parts = {
        "Wrong, and accepted by the judge": [j for j in judged if j.said and not j.row.right],
        "Right, and refused by the judge": [j for j in judged if j.said is False and j.row.right],
        "Without a verdict": [j for j in judged if j.said is None],
    }
    for heading, rows in parts.items():
        if rows:
            yield f"\n{heading}:"
        for one in rows:
            yield f"\n  row {one.number}, {one.row.kind}: {_short(one.row.question)}"
            yield f"    truth   {_short(' | '.join(one.row.truths))}"
            yield f"    answer  {_short(one.row.answer) or '(empty)'}"
            yield f"    judge   {_short(one.words)}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}..."
