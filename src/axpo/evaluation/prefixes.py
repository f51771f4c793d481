"""Figures of resampled prefixes: recovery, different calls, confidence, and Proposition 1.

Proposition 1 (arXiv 2605.28774) says that K continuations of a prefix t with success p(t) hold a
right one at least as often as K fresh rollouts hold a right tool-using one wherever
p(t) >= q p_tool: 1-(1-p(t))^K >= 1-(1-q p_tool)^K, with q the question's tool-attempt probability
and p_tool the accuracy of its tool-using rollouts. The rollouts that a prefix was chosen by are
all wrong by that choice, so they say nothing of p_tool; both sides come from samples drawn after
it. The left one is unbiased from the prefix's continuations, the right one from fresh rollouts of
its question, q p_tool being the chance that a rollout tries a tool and is right. They are figures
of the questions that AXPO resamples, which are harder than the others. Whether the premise holds
is judged with estimates in place of p(t) and q p_tool: where the two are close, their noise
pulls the share towards a half, and with few samples both are often 0, which counts as holding
but not as strictly so.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from axpo.algorithms.resampling import Candidate
from axpo.algorithms.subgroups import scored
from axpo.evaluation.bootstrap import RESAMPLES, Estimate, by_unit, correlation, ratios
from axpo.evaluation.calls import count_kinds, same_call, same_place
from axpo.evaluation.passk import pass_at_k, tally
from axpo.evaluation.summary import resampling_unit
from axpo.tree import Branch, Group

QUARTILES = 4


@dataclass(frozen=True, slots=True)
class Fresh:
    """New rollouts of a prefix's question: of `samples` scored ones `right` used a tool and were
    right."""

    samples: int
    right: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What resampling a prefix showed: of `samples` scored continuations `right` were right.

    `distinct` counts different calls, `merged` takes overlapping boxes for one call. `quartile`
    (1: least confident) is its rank among all failed prefixes, see `quartiles`. `unit` is what is
    resampled with it as a whole (`summary.resampling_unit`).
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
    """Figures of a set of prefixes; `dropped` ones had too few scored continuations."""

    prefixes: int
    dropped: int
    metrics: Mapping[str, Estimate] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        metrics = {name: e.to_dict() for name, e in self.metrics.items()}
        return {"prefixes": self.prefixes, "dropped": self.dropped, "metrics": metrics}


def quartiles(failed: Sequence[Candidate]) -> dict[str, int]:
    """Source -> quarter of `failed` that it ranks in, 1 the least confident, ties by source.

    The quarters are those of every failed prefix, so that which of them were resampled does not
    move their borders.
    """
    ranked = sorted(failed, key=lambda c: (c.confidence, c.source))
    return {c.source: QUARTILES * place // len(ranked) + 1 for place, c in enumerate(ranked)}


def outcome(
    group: Group, branch: Branch, quartile: int | None = None, fresh: Group | None = None
) -> Outcome:
    """What the branch's scored continuations show; their first call is the one resampled.

    `fresh` holds new rollouts of the question.
    """
    members = scored(branch.continuations)
    calls = [c.calls[0] if c.calls else None for c in members]
    samples, right = tally(members)
    return Outcome(
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
    outcomes: Sequence[Outcome],
    prefixes: int,
    k: int,
    seed: int,
    resamples: int = RESAMPLES,
) -> PrefixFigures:
    """Means over the prefixes, `prefixes` of which were to be resampled; see `Diagnosis`."""
    kept = [o for o in outcomes if o.samples >= k]
    if not kept:
        return PrefixFigures(0, prefixes)
    rows = [_row(o, k) for o in kept]
    names = list(dict.fromkeys(name for row in rows for name in row))
    values = np.array([[row.get(name, 0.0) for name in names] for row in rows])
    known = np.array([[float(name in row) for name in names] for row in rows])
    units = [o.unit for o in kept]
    estimates = ratios(by_unit(units, values), by_unit(units, known), seed, resamples)
    metrics = {name: e for name, e in zip(names, estimates, strict=True) if e is not None}
    confidence = np.array([o.confidence for o in kept])
    recovery = values[:, names.index("recovery_rate")]
    found = correlation(units, confidence, recovery, seed, resamples)
    if found is not None:
        metrics["confidence_correlation"] = found
    return PrefixFigures(len(kept), prefixes - len(kept), metrics)


def _fresh(group: Group) -> Fresh:
    samples, _ = tally(group.rollouts)
    _, right = tally(r for r in group.rollouts if r.uses_tool)
    return Fresh(samples, right)


def _row(outcome: Outcome, k: int) -> dict[str, float]:
    """The prefix's figures; a figure that it says nothing about is left out."""
    recovery = pass_at_k(outcome.samples, outcome.right, k)
    row = {
        "recovery_rate": recovery,
        "recovery_any": float(outcome.right > 0),
        "never_recovered": float(outcome.right == 0),
        "distinct_calls": outcome.distinct,
        "distinct_calls_merged": outcome.merged,
        "single_call": float(outcome.distinct == 1),
        "single_call_merged": float(outcome.merged == 1),
    }
    if outcome.quartile is not None:
        row[f"recovery_quartile_{outcome.quartile}"] = recovery
    fresh = outcome.fresh
    if fresh is not None and fresh.samples >= k:
        again = pass_at_k(fresh.samples, fresh.right, k)
        # p(t) against q p_tool, without dividing: equal shares stay equal.
        surplus = outcome.right * fresh.samples - fresh.right * outcome.samples
        row |= {
            "fresh_recovery_rate": again,
            "recovery_gain": recovery - again,
            "premise_holds": float(surplus >= 0),
            "premise_holds_strictly": float(surplus > 0),
        }
    return row
