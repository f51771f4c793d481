"""The results of a study's models on held-out questions, as arrays [seeds, questions, columns].

A column is a metric of all questions, of a family of questions, or of a tool. Two models are
compared on the seeds that both have. The arrays are made from the stored groups (`read.py`) or from
`outcomes.csv` (`outcomes.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from axpo.errors import UserError
from axpo.evaluation.seeds import Ratios, of_units
from axpo.study.settings import START

Column = tuple[str, str]
"""("", metric), ("family F", metric) or ("tool T", figure)."""
Shares = Mapping[Column, tuple[float, float]]
"""The numerator and denominator of a question in each column that concerns it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """The held-out questions of the start or of a variant.

    The rows of `parts` belong to `seeds`; `clusters` has the cluster of each question in one.
    """

    name: str
    seeds: tuple[int, ...]
    missing: tuple[int, ...]
    columns: tuple[Column, ...]
    parts: Ratios | None
    questions: tuple[str, ...]
    clusters: Mapping[str, str] = field(default_factory=dict)

    @property
    def units(self) -> list[tuple[str, str]]:
        """The unit of each question: its cluster, or the question itself."""
        return [
            ("cluster", self.clusters[q]) if q in self.clusters else ("question", q)
            for q in self.questions
        ]

    @property
    def one_start(self) -> bool:
        """Whether this is a single start that all seeds share."""
        return self.name == START and len(self.seeds) + len(self.missing) == 1


def paired(first: HeldOut, second: HeldOut) -> tuple[tuple[int, ...], Ratios, Ratios] | None:
    """The seeds that both models have, and the parts of both for these seeds, by `units`.

    None if there are no such seeds. One start for all seeds is repeated. A question without Pass@k
    in one model is dropped from Pass@k in both.
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
    return seeds, of_units(a, first.units), of_units(b, first.units)


def stack(
    name: str, seeds: Sequence[int], tables: Sequence[Mapping[str, Shares]]
) -> tuple[tuple[str, ...], tuple[Column, ...], Ratios | None]:
    """Questions, columns, and numerators and denominators [S, Q, M] of one table per seed.

    A table maps a question to its shares; a column that does not concern the question has none.
    """
    if not tables:
        return (), (), None
    questions = sorted(tables[0])
    for seed, table in zip(seeds, tables, strict=True):
        if sorted(table) != questions:
            raise UserError(
                f"{name}, seed {seed}: evaluated on {len(table)} questions that are not the "
                f"{len(questions)} of seed {seeds[0]}; remove its evaluation and run the study "
                "again"
            )
    columns = sorted({column for row in tables[0].values() for column in row})
    none = (0.0, 0.0)
    values: Any = np.array(
        [[[table[q].get(c, none) for c in columns] for q in questions] for table in tables],
        dtype=np.float64,
    )
    return tuple(questions), tuple(columns), (values[..., 0].copy(), values[..., 1].copy())


def _check_questions(first: HeldOut, second: HeldOut) -> None:
    if (first.questions, first.columns) != (second.questions, second.columns):
        raise UserError(
            f"{first.name} and {second.name} were evaluated on different questions "
            f"({len(first.questions)} and {len(second.questions)}, "
            f"{len(set(first.questions) ^ set(second.questions))} of them in one only); "
            f"remove the evaluations of one and run the study again"
        )
    if first.clusters != second.clusters:
        raise UserError(
            f"the questions of {first.name} and {second.name} are in different clusters; remove "
            "the evaluations of one and run the study again"
        )
