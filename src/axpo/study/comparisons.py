"""The comparisons that a study was made for, with p-values that know how many they are.

A *family* holds the comparisons of one question, and Holm's correction is over its comparisons:

- every pair of the baseline's group, in Pass@1 and Pass@k (the adjusted p-values are multiplied by
  `looks`, because an earlier run that was seen could have shown the difference too); the same
  pairs, in tool rates by family of questions;
- every variant outside that group against the baseline, and against each of `references`, again
  once in Pass@1 and Pass@k and once in tool rates.

Each comparison is on the seeds that both variants have; their means are beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations

import numpy as np

from axpo.evaluation.seeds import Crossed, holm, ratios_by_seed, seed_differences
from axpo.study.estimates import bounded
from axpo.study.held_out import Column, HeldOut, paired
from axpo.study.markup import Json
from axpo.study.settings import Study, Variant

Pair = tuple[Variant, Variant]
"""The variant with which another is compared, and that other variant."""
MARGIN = 0.03
"""A difference of Pass@k that is shown to be smaller than this counts as none (choice: in the
ablations of arXiv 2605.28774 a part of AXPO is worth 0.018 to 0.029 of Pass@1)."""
PASSES, TOOL_RATES = "Pass@1 and Pass@k", "tool rates by family"


def comparisons(study: Study, models: Mapping[str, HeldOut]) -> list[Json]:
    """The families that have outcomes, each with its `name`, `outcomes`, `looks` and `rows`."""
    others = [v for v in study.variants.values() if v not in study.main]
    references = [study.variants[n] for n in (study.settings.baseline, *study.settings.references)]
    asked: list[tuple[str, list[Pair], int]] = [
        ("The main comparison", list(combinations(study.main, 2)), study.settings.looks),
        *((f"Beside {r.label}", [(r, other) for other in others], 1) for r in references),
    ]
    families: list[Json] = []
    for name, pairs, looks in asked:
        for outcomes in (PASSES, TOOL_RATES):
            rows = [row for pair in pairs for row in _rows(pair, models, outcomes)]
            _adjust(rows, looks)
            if rows:
                families.append({"name": name, "outcomes": outcomes, "looks": looks, "rows": rows})
    return families


def _is_in(column: Column, outcomes: str) -> bool:
    part, metric = column
    if outcomes == PASSES:
        return not part and metric.startswith("pass@")
    return part.startswith("family ") and metric == "tool_rate"


def _rows(pair: Pair, models: Mapping[str, HeldOut], outcomes: str) -> list[Json]:
    first, second = (models.get(v.name) for v in pair)
    if first is None or second is None or (both := paired(first, second)) is None:
        return []
    seeds, a, b = both
    if len(seeds) < 2:
        return []  # One seed says nothing about others.
    rows: list[Json] = []
    values_SM = [ratios_by_seed(a), ratios_by_seed(b)]
    for m, crossed in enumerate(seed_differences(a, b)):
        part, metric = column = first.columns[m]
        if crossed is None or not _is_in(column, outcomes):
            continue
        known = np.isfinite(values_SM[0][:, m]) & np.isfinite(values_SM[1][:, m])
        rows.append(
            {
                "first": pair[0].label,
                "second": pair[1].label,
                "part": part or "all",
                "metric": metric,
                "seeds": [seed for seed, is_known in zip(seeds, known, strict=True) if is_known],
                "means": [float(values[known, m].mean()) for values in values_SM],
                **_figures(crossed, metric),
            }
        )
    return rows


def _figures(crossed: Crossed, metric: str) -> Json:
    """The difference with its interval and, if anything varies, its p-value and what is
    detectable."""
    cell = bounded(metric, asdict(crossed.estimate), difference=True)
    p = crossed.p()
    if math.isnan(p):
        return cell
    cell |= {"p": p, "detectable": crossed.detectable()}
    if metric.startswith("pass@"):
        cell["equivalence"] = crossed.equivalence(MARGIN)
    return cell


def _adjust(rows: Sequence[Json], looks: int) -> None:
    """Add Holm's p-values, times the looks, to the rows that have a p-value."""
    known = [row for row in rows if "p" in row]
    for row, adjusted in zip(known, holm([row["p"] for row in known]), strict=True):
        row["adjusted"] = min(1.0, looks * adjusted)
