"""Verdicts in a terminal: what grading stored answers again changed, and what graders say of some
answers."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from axpo import stopping
from axpo.build.regrading import graders_for, stored_answers
from axpo.config import Config
from axpo.errors import UserError
from axpo.evaluation.regrading import Standing, gradable, graded
from axpo.report.live import output_console
from axpo.report.tables import print_estimates
from axpo.rollout.paths import whole
from axpo.store import load_pictures
from axpo.tasks.base import Example
from axpo.tree import StopReason, Trajectory
from axpo.wording import NONE

SHOWN = 10
"""Answers and changes that are shown."""
LOOKED_AT = 1000
"""Examples of a split among which that of a typed answer's id is looked for."""
END = 160
"""Characters of an answer that are shown: its end, where the final answer stands."""


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Some of `total` answers: the question, the answer and what it is worth."""

    shown: Sequence[tuple[Example, str, Standing]]
    total: int


def print_regraded(found: Mapping[str, Any], name: str, file: Path) -> None:
    """Print what grading the answers of the run `name` again changed; `file` has all of it."""
    console = output_console()
    with_settings = f" with {' '.join(found['settings'])}" if found["settings"] else ""
    console.print(
        Text.assemble(
            (name, "bold"), f": {found['graded']:,} answers to {found['questions']:,} questions "
            f"({found['of']}) graded again{with_settings}\n",
        )
    )  # fmt: skip
    _print_rules(console, found["rules"])
    for kept in found["kept"]:
        told = f"left as they are: {kept['rollouts']:,} that ended with {kept['stop']}"
        rule = "" if kept["rule"] == kept["stop"] else f" ({kept['rule']})"
        console.print(Text(f"{told}{rule}", "bright_black"))
    changed = found["changed"]
    console.print(Text(f"\n{_count(len(changed), 'answer')} changed", "bold"), end="")
    of = len({one["question"] for one in changed})
    console.print(f", to {_count(of, 'question')}" if changed else "")
    for one in changed[:SHOWN]:
        was, now = _reward(one["was"]["reward"]), _reward(one["now"]["reward"])
        head = Text.assemble(
            (f"{was} → {now}", _style(one["now"]["reward"])), f"  {one['rollout']}"
        )
        _print_answer(console, head, one["now"]["rule"], one["now"]["detail"], one["answer"])
    if len(changed) > SHOWN:
        console.print(Text(f"  and {len(changed) - SHOWN:,} more in {file}", "bright_black"))
    console.print()
    columns = {name: values for name, values in found["metrics"].items() if values}
    print_estimates("", columns)


def graded_answers(config: Config, given: Path, say: Callable[[str], None]) -> Verdicts:
    """The verdicts of the recipe's graders on up to ten answers: those that are stored in a run's
    folder, or the lines of a file, each an answer to the first question, or JSON with `answer` and
    the `id` of its question; `say` hears what takes a while. Raises `UserError`."""
    asked, total = _stored(config, given) if given.is_dir() else _typed(config, given)
    names = {example.grading for example, _ in asked}
    graders = graders_for(config, names, Path(tempfile.gettempdir()), say)

    async def work() -> list[Standing]:
        try:
            return await asyncio.gather(*(graded(graders, *one) for one in asked))
        finally:
            await graders.close()

    standings = stopping.run(work())
    return Verdicts(
        [(e, t.answer or "", s) for (e, t), s in zip(asked, standings, strict=True)], total
    )


def print_verdicts(verdicts: Verdicts) -> None:
    """Print answers with their verdicts, below their questions."""
    console, last = output_console(), None
    for example, answer, standing in verdicts.shown:
        if example.id != last:
            last = example.id
            console.print()
            console.print(Text.assemble((example.id, "bold"), "  ", _line(example.question)))
            truths = ", ".join(map(repr, (example.answer, *example.alternatives)))
            console.print(Text(f"Right: {truths}, graded by {example.grading!r}", "bright_black"))
        head = Text(_reward(standing.reward), _style(standing.reward))
        _print_answer(console, head, standing.rule, standing.detail, answer)
    if verdicts.total > len(verdicts.shown):
        said = f"\n{len(verdicts.shown)} of {verdicts.total:,} answers"
        console.print(Text(said, "bright_black"))


def _stored(config: Config, out: Path) -> tuple[list[tuple[Example, Trajectory]], int]:
    """Answers from all over the run, and how many there are."""
    stored = stored_answers(out)
    found = [(g, t) for g in stored.groups() for t in g.trajectories() if gradable(t)]
    chosen = found[:: max(1, len(found) // SHOWN)][:SHOWN]
    grading = stored.grading(getattr(config.task, "grading", None))
    for group, _ in chosen:
        load_pictures(stored.folder.pictures, group)
    examples = [replace(Example.of(group), grading=grading(group)) for group, _ in chosen]
    return [(e, whole(g, t)) for e, (g, t) in zip(examples, chosen, strict=True)], len(found)


def _typed(config: Config, file: Path) -> tuple[list[tuple[Example, Trajectory]], int]:
    """The answers that a file holds, and how many there are."""
    try:
        lines = [line for line in file.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--answers {file}: {error}; expected a run's folder or a file with an answer per line"
        ) from error
    typed = [_parsed(line) for line in lines[:SHOWN]]
    wanted = {id for id, _ in typed if id is not None}
    config.task.check()
    first = config.task.example("train", 0)
    known = _examples(config, wanted)
    return [
        (
            first if id is None else known[id],
            Trajectory("typed", stop=StopReason.ANSWER, answer=text),
        )
        for id, text in typed
    ], len(lines)


def _parsed(line: str) -> tuple[str | None, str]:
    """The id of the question and the answer of a line."""
    with suppress(ValueError):
        row = json.loads(line)
        if isinstance(row, dict) and isinstance(answer := row.get("answer"), str):
            return (None if (id := row.get("id")) is None else str(id)), answer
    return None, line


def _examples(config: Config, ids: Set[str]) -> dict[str, Example]:
    """The examples of these ids among the first of the evaluation's split and of training's."""
    task, found = config.task, dict[str, Example]()
    for split in dict.fromkeys((config.eval.split, "train")) if ids else ():
        size = task.size(split)
        for index in range(LOOKED_AT if size is None else min(size, LOOKED_AT)):
            if ids <= found.keys():
                return found
            example = task.example(split, index)
            if example.id in ids:
                found[example.id] = example
    if missing := sorted(ids - found.keys()):
        raise UserError(
            f"--answers: no question {', '.join(missing)} among the first {LOOKED_AT:,} of the "
            f"splits {config.eval.split!r} and 'train'"
        )
    return found


def _print_rules(console: Console, rules: Sequence[Mapping[str, Any]]) -> None:
    """From which rule and reward to which, with counts."""
    table = Table("was", "", "now", "", Column("answers", justify="right"), box=SIMPLE_HEAD)
    for row in rules:
        was, now = row["was"], row["now"]
        changed = was["reward"] != now["reward"]
        style = _style(now["reward"]) if changed else ""
        cells = [_reward(was["reward"]), was["rule"], _reward(now["reward"]), now["rule"]]
        table.add_row(*(Text(cell, style) for cell in cells), f"{row['answers']:,}")
    console.print(table)


def _print_answer(console: Console, head: Text, rule: str, detail: str, answer: str) -> None:
    """An answer's end, under its verdict."""
    console.print(Text("  ").append_text(head).append(f"  {rule}"))
    if detail:
        console.print(Padding(Text(_line(detail)), (0, 0, 0, 6), expand=False))
    said = " ".join(answer.split())
    end = said if len(said) <= END else f"… {said[-END:]}"
    console.print(Padding(Text(end, "bright_black"), (0, 0, 0, 6), expand=False))


def _line(text: str) -> str:
    """The text on one line, cut."""
    flat = " ".join(text.split())
    return flat if len(flat) <= END else f"{flat[:END]} …"


def _reward(reward: float | None) -> str:
    return NONE if reward is None else f"{reward:.3g}"


def _style(reward: float | None) -> str:
    return (
        "yellow" if reward is None else "green" if reward >= 1 else "red" if reward == 0 else "cyan"
    )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
