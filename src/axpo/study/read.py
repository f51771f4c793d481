"""The raw runs of a study as numbers: the shares of every question, and the lines of training.

Everything is computed from the stored groups and `metrics.jsonl`, never from another table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from axpo.algorithms.subgroups import family_of
from axpo.evaluation.bootstrap import Floats
from axpo.evaluation.results import evaluated_groups
from axpo.evaluation.summary import by_example, measures, tool_measures
from axpo.folder import RunFolder, read_json
from axpo.report.metrics import read_metrics
from axpo.study.cells import Cell, cells
from axpo.study.held_out import Column, HeldOut, Shares, stack
from axpo.study.outcomes import OutcomeRow, outcome
from axpo.study.settings import START, START_LABEL, Study
from axpo.tree import Group

RECENT = 10
"""The number of steps whose mean is a point of a training curve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyModel(HeldOut):
    """The start or a variant: the results of its seeds."""

    label: str
    group: str
    training: Mapping[int, Training]
    diagnoses: Mapping[int, Mapping[str, Any]]
    outcomes: Sequence[OutcomeRow]
    """One row per seed and question."""


@dataclass(frozen=True, slots=True)
class Training:
    """A finished training run: its metrics as arrays over steps, NaN for steps without a value."""

    lines: Sequence[Mapping[str, Any]]

    def series(self, name: str) -> Floats:
        """A metric over the steps."""
        return np.array([line.get(name, math.nan) for line in self.lines], dtype=np.float64)

    def trajectories(self) -> Floats:
        """The number of trajectories, with continuations, sampled by the end of each step."""
        return np.cumsum(self.series("rollouts") * (1.0 + self.series("extra_samples")))

    def tokens(self) -> Floats:
        """The number of tokens sampled by the end of each step."""
        return np.cumsum(self.series("tokens_sampled"))

    def recent(self, name: str) -> Floats:
        """At each step, the mean over those of the last `RECENT` steps that have a value."""
        values = self.series(name)
        windows = [values[max(0, end - RECENT) : end] for end in range(1, len(values) + 1)]
        known = [window[np.isfinite(window)] for window in windows]
        return np.array([part.mean() if len(part) else math.nan for part in known])

    def at(self, name: str, spent: Floats, amount: float) -> float:
        """`recent(name)` at the point where `spent` reaches `amount`, linear between ends of steps.

        NaN for an amount before the end of the first step or after that of the last.
        """
        if not len(spent) or not spent[0] <= amount <= spent[-1]:
            return math.nan
        return float(np.interp(amount, spent, self.recent(name)))


def read_study(study: Study, out: Path) -> dict[str, StudyModel]:
    """The start, then the variants, with the cells that exist."""
    by_model: dict[str, list[Cell]] = {}
    for cell in cells(study):
        by_model.setdefault(cell.variant, []).append(cell)
    tools = study.shared.rollout.tools
    return {name: _model(study, name, found, out, tools) for name, found in by_model.items()}


def _model(
    study: Study, name: str, found: list[Cell], out: Path, tools: Sequence[str]
) -> StudyModel:
    evaluated = [c for c in found if RunFolder(c.folder(out)).evaluation.is_file()]
    tables: list[Mapping[str, Shares]] = []
    outcomes: list[OutcomeRow] = []
    clusters: dict[str, str] = {}
    for cell in evaluated:
        groups = by_example(evaluated_groups(cell.folder(out)))
        tables.append({q: _shares(g, study.shared.eval.k, tools) for q, g in groups.items()})
        outcomes += [outcome(name, cell.seed, q, groups[q]) for q in sorted(groups)]
        clusters |= {q: g.cluster for q, g in groups.items() if g.cluster is not None}
    seeds = tuple(cell.seed for cell in evaluated)
    questions, columns, parts = stack(name, seeds, tables)
    variant = study.variants.get(name)
    training = {} if variant is None else _training(study, found, out)
    files = {c.seed: RunFolder(c.folder(out)).diagnosis for c in found}
    return StudyModel(
        name=name,
        label=START_LABEL if variant is None else variant.label,
        group=START if variant is None else variant.group,
        seeds=seeds,
        missing=tuple(cell.seed for cell in found if cell not in evaluated),
        columns=columns,
        parts=parts,
        questions=questions,
        clusters=clusters,
        training=training,
        diagnoses={seed: read_json(f) for seed, f in files.items() if f.is_file()},
        outcomes=outcomes,
    )


def _training(study: Study, found: list[Cell], out: Path) -> dict[int, Training]:
    """The finished run of each seed."""
    steps = study.config(found[0].variant, found[0].seed).rl.steps
    other = set[str]() if resamples(study, found[0]) else {"recovery_rate"}
    runs: dict[int, Training] = {}
    for cell in found:
        lines = read_metrics(cell.folder(out), "rl")
        if len(lines) == steps:
            kept = [{k: v for k, v in line.items() if k not in other} for line in lines]
            runs[cell.seed] = Training(kept)
    return runs


def resamples(study: Study, cell: Cell) -> bool:
    """Whether the cell's branches are resampled failed prefixes. Other algorithms also branch from
    right rollouts, so that their recovery is another figure."""
    return study.config(cell.variant, cell.seed).algorithm.resamples_failures


def _shares(group: Group, k: int, tools: Sequence[str]) -> Shares:
    own = measures(group, k)
    found: dict[Column, tuple[float, float]] = {
        ("", metric): share for metric, share in own.items()
    }
    if (family := family_of(group)) is not None:
        found |= {(f"family {family}", m): share for m, share in own.items()}
    for tool in tools:
        found |= {(f"tool {tool}", m): share for m, share in tool_measures(group, tool).items()}
    return found
