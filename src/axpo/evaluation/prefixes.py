"""Figures of resampled prefixes: recovery, different calls, confidence, and Proposition 1.

Proposition 1 (arXiv 2605.28774) says that K continuations of a prefix t with success p(t) hold a
right one at least as often as K fresh rollouts hold a right tool-using one wherever
p(t) >= q p_tool: 1-(1-p(t))^K >= 1-(1-q p_tool)^K, with q the question's tool-attempt probability
and p_tool the accuracy of its tool-using rollouts.

A prefix is chosen because those rollouts failed, so they cannot estimate p_tool. Both sides of the
inequality use new samples: the left side is unbiased from the prefix's continuations, the right
side from fresh rollouts of its question, where q p_tool is the chance that a rollout tries a tool
and is right. The figures are of the questions that AXPO resamples, which are harder than the
others. Whether the premise holds is judged with estimates of p(t) and q p_tool. Where the two are
close, noise pulls the share towards a half; with few samples both are often 0, which counts as
holding but not as holding strictly.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from axpo.algorithms.resampling import Candidate
from axpo.algorithms.subgroups import scored
from axpo.evaluation.bootstrap import Estimate, by_unit, correlation, ratios
from axpo.evaluation.calls import count_kinds, same_call, same_place
from axpo.evaluation.passk import pass_at_k, tally
from axpo.evaluation.summary import resampling_unit
from axpo.tree import Branch, Group

QUARTILES = 4


@dataclass(frozen=True, slots=True)
class Fresh:
    """New rollouts of a prefix's question: how many are scored (`samples`), and how many of those
    used a tool and were right."""

    samples: int
    right: int


@dataclass(frozen=True, slots=True)
class Recovery:
    """What resampling a prefix showed: of `samples` scored continuations `right` were right.

    `distinct` counts different calls, and `merged` counts calls with overlapping boxes as one.
    `quartile` (1: least confident) is its rank among all failed prefixes, see `quartiles`. `unit`
    is what a resample draws it with (`summary.resampling_unit`).
    """

    unit: Hashable
    source: str
    confidence: float
    samples: int
    right: int
    distinct: int
    merged: int
    quartile: int | None = None
    fresh: Fresh | None = None


@dataclass(frozen=True, slots=True)
class PrefixFigures:
    """Figures of a set of prefixes; `dropped` prefixes had too few scored continuations."""

    prefixes: int
    dropped: int
    metrics: Mapping[str, Estimate] = field(default_factory=dict)


def quartiles(failed: Sequence[Candidate]) -> dict[str, int]:
    """Source -> the quarter of `failed` that it ranks in, 1 the least confident, ties by source.

    The quarters are those of every failed prefix, so their borders do not depend on which prefixes
    were resampled.
    """
    ranked = sorted(failed, key=lambda c: (c.confidence, c.source))
    return {c.source: QUARTILES * place // len(ranked) + 1 for place, c in enumerate(ranked)}


def recovery_of(
    group: Group, branch: Branch, quartile: int | None = None, fresh: Group | None = None
) -> Recovery:
    """What the branch's scored continuations show; their first call is the resampled one.

    `fresh` holds new rollouts of the question.
    """
    members = scored(branch.continuations)
    calls = [c.calls[0] if c.calls else None for c in members]
    samples, right = tally(members)
    return Recovery(
        resampling_unit(group),
        branch.source,
        branch.confidence,
        samples,
        right,
        count_kinds(calls, same_call),
        count_kinds(calls, same_place),
        quartile,
        None if fresh is None else _fresh(fresh),
    )


def prefix_figures(
    outcomes: Sequence[Recovery],
    prefixes: int,
    k: int,
    seed: int,
) -> PrefixFigures:
    """Means over the prefixes of `outcomes`; `prefixes` were to be resampled. See `Diagnosis`."""
    kept = [o for o in outcomes if o.samples >= k]
    if not kept:
        return PrefixFigures(0, prefixes)
    rows = [_row(o, k) for o in kept]
    names = list(dict.fromkeys(name for row in rows for name in row))
    values = np.array([[row.get(name, 0.0) for name in names] for row in rows])
    known = np.array([[float(name in row) for name in names] for row in rows])
    units = [o.unit for o in kept]
    estimates = ratios(by_unit(units, values), by_unit(units, known), seed)
    metrics = {name: e for name, e in zip(names, estimates, strict=True) if e is not None}
    confidence = np.array([o.confidence for o in kept])
    recovery = values[:, names.index("recovery_rate")]
    found = correlation(units, confidence, recovery, seed)
    if found is not None:
        metrics["confidence_correlation"] = found
    return PrefixFigures(len(kept), prefixes - len(kept), metrics)


def _fresh(group: Group) -> Fresh:
    samples, _ = tally(group.rollouts)
    _, right = tally(r for r in group.rollouts if r.uses_tool)
    return Fresh(samples, right)


def _row(found: Recovery, k: int) -> dict[str, float]:
    """The prefix's figures, but for those that it says nothing about."""
    recovery = pass_at_k(found.samples, found.right, k)
    row = {
        "recovery_rate": recovery,
        "recovery_any": float(found.right > 0),
        "never_recovered": float(found.right == 0),
        "distinct_calls": found.distinct,
        "distinct_calls_merged": found.merged,
        "single_call": float(found.distinct == 1),
        "single_call_merged": float(found.merged == 1),
    }
    if found.quartile is not None:
        row[f"recovery_quartile_{found.quartile}"] = recovery
    fresh = found.fresh
    if fresh is not None and fresh.samples >= k:
        again = pass_at_k(fresh.samples, fresh.right, k)
        # p(t) against q p_tool, without dividing: equal shares stay equal.
        surplus = found.right * fresh.samples - fresh.right * found.samples
        row |= {
            "fresh_recovery_rate": again,
            "recovery_gain": recovery - again,
            "premise_holds": float(surplus >= 0),
            "premise_holds_strictly": float(surplus > 0),
        }
    return row
