"""The raw runs of a study as numbers: shares of every question, and the training's lines.

A model's evaluations become arrays [seeds, questions, columns]; a column is a metric of all
questions, of a family's, or of a tool. Everything is computed from the stored groups and
`metrics.jsonl`, never from another table.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from axpo.config import UserError
from axpo.evaluation.bootstrap import Floats
from axpo.evaluation.run import DIAGNOSIS, EVALUATION, evaluated_groups
from axpo.evaluation.seeds import Ratios
from axpo.evaluation.summary import by_example, measures, tool_measures
from axpo.report.metrics import read_metrics
from axpo.study.cells import Cell, cells
from axpo.study.credit import FAMILY, call_credit, recovered, saved_groups
from axpo.study.settings import START, START_LABEL, Study
from axpo.tree import Group

Column = tuple[str, str]
"""("", metric), ("family F", metric) or ("tool T", figure)."""
Outcome = Mapping[str, str | int]
"""A held-out question of a cell: how many of its rollouts used a tool or none, right or wrong
(`COUNTS`), and how many were not scored."""
COUNTS = {
    "tool_right": (True, True),
    "tool_wrong": (True, False),
    "plain_right": (False, True),
    "plain_wrong": (False, False),
}
RECENT = 10
"""Steps that a point of a training curve is the mean of."""


@dataclass(frozen=True, slots=True)
class Model:
    """The start or a variant: what its seeds gave. Rows of `parts` go with `seeds`."""

    name: str
    label: str
    group: str
    seeds: tuple[int, ...]
    missing: tuple[int, ...]
    columns: tuple[Column, ...]
    parts: Ratios | None
    questions: tuple[str, ...]
    training: Mapping[int, Training]
    diagnoses: Mapping[int, Mapping[str, Any]]
    call_credit: Mapping[int, Mapping[str, Mapping[str, float]]]
    """Seed -> part -> figures of `call_credit`."""
    recovered: Mapping[int, Mapping[str, Mapping[str, float]]]
    """Seed -> part -> figures of `recovered`, of AXPO's variants."""
    outcomes: Sequence[Outcome]
    """A row a seed and question."""

    @property
    def one_start(self) -> bool:
        """Whether it is a single start that all seeds share."""
        return self.name == START and len(self.seeds) + len(self.missing) == 1


@dataclass(frozen=True, slots=True)
class Training:
    """A finished training run: its metric lines as arrays over steps, NaN where there is none."""

    lines: Sequence[Mapping[str, Any]]

    def series(self, name: str) -> Floats:
        return np.array([line.get(name, math.nan) for line in self.lines], dtype=np.float64)

    def trajectories(self) -> Floats:
        """Sampled trajectories up to the end of each step, continuations among them."""
        return np.cumsum(self.series("rollouts") * (1.0 + self.series("extra_samples")))

    def tokens(self) -> Floats:
        """Sampled tokens up to the end of each step."""
        return np.cumsum(self.series("tokens_sampled"))

    def recent(self, name: str) -> Floats:
        """At each step, the mean of the last `RECENT` steps that have a value."""
        values = self.series(name)
        windows = [values[max(0, end - RECENT) : end] for end in range(1, len(values) + 1)]
        known = [window[np.isfinite(window)] for window in windows]
        return np.array([part.mean() if len(part) else math.nan for part in known])

    def at(self, name: str, spent: Floats, amount: float) -> float:
        """`recent(name)` where `spent` (growing) is `amount`, linear between two steps' ends.

        NaN outside of what was spent, from the end of the first step on.
        """
        if not len(spent) or not spent[0] <= amount <= spent[-1]:
            return math.nan
        return float(np.interp(amount, spent, self.recent(name)))


def read_study(study: Study, out: Path) -> dict[str, Model]:
    """The start, then every variant, with the cells that are there."""
    by_model: dict[str, list[Cell]] = {}
    for cell in cells(study):
        by_model.setdefault(cell.variant, []).append(cell)
    tools = study.shared.rollout.tools
    return {name: _model(study, name, found, out, tools) for name, found in by_model.items()}


def paired(first: Model, second: Model) -> tuple[tuple[int, ...], Ratios, Ratios] | None:
    """Seeds that both have, and both models' parts for them; None without any.

    One start for all seeds is repeated. A question that has no Pass@k in either has it in neither.
    """
    if first.parts is None or second.parts is None:
        return None
    _check_questions(first, second)
    seeds = tuple(
        seed
        for seed in dict.fromkeys((*first.seeds, *second.seeds))
        if all(m.one_start or seed in m.seeds for m in (first, second))
    )
    if not seeds:
        return None
    rows_a, rows_b = (
        [0 if m.one_start else m.seeds.index(seed) for seed in seeds] for m in (first, second)
    )
    a = (first.parts[0][rows_a], first.parts[1][rows_a])
    b = (second.parts[0][rows_b], second.parts[1][rows_b])
    passes = np.array([metric.startswith("pass@") for _, metric in first.columns])
    dropped = passes & ((a[1] == 0) | (b[1] == 0))
    for part in (*a, *b):
        part[dropped] = 0.0
    return seeds, a, b


def _model(study: Study, name: str, found: list[Cell], out: Path, tools: Sequence[str]) -> Model:
    evaluated = [c for c in found if (c.folder(out) / f"{EVALUATION}.json").is_file()]
    tables: list[dict[str, dict[Column, Any]]] = []
    outcomes: list[Outcome] = []
    for cell in evaluated:
        groups = by_example(evaluated_groups(cell.folder(out)))
        tables.append({q: _shares(g, study.shared.eval.k, tools) for q, g in groups.items()})
        outcomes += [_outcome(cell, q, groups[q]) for q in sorted(groups)]
    questions, columns, parts = _stack(evaluated, tables)
    variant = study.variants.get(name)
    training = {} if variant is None else _training(study, found, out)
    trees = {c.seed: saved_groups(c.folder(out)) for c in found if c.seed in training}
    files = {c.seed: c.folder(out) / f"{DIAGNOSIS}.json" for c in found}
    return Model(
        name,
        START_LABEL if variant is None else variant.label,
        START if variant is None else variant.group,
        tuple(cell.seed for cell in evaluated),
        tuple(cell.seed for cell in found if cell not in evaluated),
        columns,
        parts,
        questions,
        training,
        {seed: json.loads(f.read_text()) for seed, f in files.items() if f.is_file()},
        {seed: call_credit(groups) for seed, groups in trees.items()},
        {seed: recovered(groups) for seed, groups in trees.items() if _resamples(study, found[0])},
        outcomes,
    )


def _training(study: Study, found: list[Cell], out: Path) -> dict[int, Training]:
    """Seed -> finished run."""
    steps = study.config(found[0].variant, found[0].seed).rl.steps
    other = set[str]() if _resamples(study, found[0]) else {"recovery_rate"}
    runs: dict[int, Training] = {}
    for cell in found:
        lines = read_metrics(cell.folder(out), "rl")
        if len(lines) == steps:
            kept = [{k: v for k, v in line.items() if k not in other} for line in lines]
            runs[cell.seed] = Training(kept)
    return runs


def _resamples(study: Study, cell: Cell) -> bool:
    """Whether its branches are resampled failed prefixes: ARPO and RLTF branch from right rollouts
    too, once each, so that their recovery is another figure."""
    return study.config(cell.variant, cell.seed).algorithm.name == "axpo"


def _outcome(cell: Cell, question: str, group: Group) -> Outcome:
    return {
        "variant": cell.variant,
        "seed": cell.seed,
        "question": question,
        "family": str(group.meta.get(FAMILY, "")),
        **counts(group),
    }


def counts(group: Group) -> dict[str, int]:
    """The question's rollouts, counted: each of `COUNTS`, and `unscored`."""
    found = Counter((r.uses_tool, r.solved) if r.scored else None for r in group.rollouts)
    return {name: found[kind] for name, kind in COUNTS.items()} | {"unscored": found[None]}


def _shares(group: Group, k: int, tools: Sequence[str]) -> dict[Column, Any]:
    own = measures(group, k)
    found: dict[Column, Any] = {("", metric): share for metric, share in own.items()}
    if FAMILY in group.meta:
        found |= {(f"family {group.meta[FAMILY]}", m): share for m, share in own.items()}
    for tool in tools:
        found |= {(f"tool {tool}", m): share for m, share in tool_measures(group, tool).items()}
    return found


def _stack(
    evaluated: Sequence[Cell], tables: Sequence[Mapping[str, Mapping[Column, Any]]]
) -> tuple[tuple[str, ...], tuple[Column, ...], Ratios | None]:
    """Questions, columns and [S, Q, M] numerators and denominators; a column that does not
    concern a question has no share in it."""
    if not tables:
        return (), (), None
    questions = sorted(tables[0])
    for cell, table in zip(evaluated, tables, strict=True):
        if sorted(table) != questions:
            raise UserError(
                f"{cell.variant}, seed {cell.seed}: evaluated on {len(table)} questions that are "
                f"not the {len(questions)} of seed {evaluated[0].seed}; remove its evaluation and "
                "run the study again"
            )
    columns = sorted({column for row in tables[0].values() for column in row})
    none = (0.0, 0.0)
    values = np.array(
        [[[table[q].get(c, none) for c in columns] for q in questions] for table in tables],
        dtype=np.float64,
    )
    return tuple(questions), tuple(columns), (values[..., 0].copy(), values[..., 1].copy())


def _check_questions(first: Model, second: Model) -> None:
    if first.questions != second.questions or first.columns != second.columns:
        raise UserError(
            f"{first.name} and {second.name} were evaluated on different questions "
            f"({len(first.questions)} and {len(second.questions)}, "
            f"{len(set(first.questions) ^ set(second.questions))} of them in one only); "
            f"remove the evaluations of one and run the study again"
        )
