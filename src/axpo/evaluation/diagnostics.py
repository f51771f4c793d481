"""The Thinking-Acting Gap of any model: what its failed tool prefixes could still have led to.

Prefixes of triggered questions (every tool-using rollout wrong: `algorithms.axpo.candidates`) are
resampled `prefix_samples` times each. Two sets are reported: `selected`, those that AXPO would
resample first, least confident call of each question, if the evaluated questions were one batch
(`algorithms.axpo.plan`); and `all`, a uniform draw from every failed prefix. Half of the limit
goes to each; a prefix that is in both is resampled once.

Unscored continuations leave a prefix's statistics; a prefix with fewer than K scored ones is
dropped, and counted. Intervals resample questions, each with its prefixes (see `bootstrap`).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from axpo.algorithms import axpo
from axpo.algorithms.ranking import Candidate
from axpo.algorithms.subgroups import scored
from axpo.config import AlgorithmSettings
from axpo.evaluation.bootstrap import RESAMPLES, Estimate, Floats, interval, ratios, resampled_sums
from axpo.evaluation.calls import count_kinds, same_call, same_place
from axpo.evaluation.passk import pass_at_k, tally
from axpo.evaluation.summary import summarize
from axpo.tree import Branch, Group

GAP = ("tool_rate", "accuracy_tool", "accuracy_no_tool", "all_wrong_tool", "all_wrong_no_tool")


@dataclass(frozen=True, slots=True)
class Probe:
    """A prefix to resample: `selected` as AXPO would, `drawn` for the uniform draw, or both."""

    prefix: Candidate
    selected: bool
    drawn: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """What resampling a prefix showed: of `samples` scored continuations `right` were right.

    `distinct` counts different calls, `merged` takes overlapping boxes for one call.
    """

    group: str
    source: str
    confidence: float
    samples: int
    right: int
    distinct: int
    merged: int


@dataclass(frozen=True, slots=True)
class PrefixFigures:
    """Figures of a set of prefixes; `dropped` ones had too few scored continuations."""

    prefixes: int
    dropped: int
    metrics: Mapping[str, Estimate] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        metrics = {name: e.to_dict() for name, e in self.metrics.items()}
        return {"prefixes": self.prefixes, "dropped": self.dropped, "metrics": metrics}


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The gap's figures (`metrics`, as in `Summary`) and those of the resampled prefixes.

    Of a set of prefixes: `recovery_rate` is the expected chance that any of K continuations is
    right (unbiased from all samples), `recovery_any` the share with any right at all,
    `never_recovered` the rest; `distinct_calls` and `distinct_calls_merged` are means a prefix,
    `single_call` the share whose samples are all one call; `confidence_correlation` is Pearson's
    between the rank's confidence and recovery.
    """

    model: str
    step: int | None
    split: str
    questions: int
    samples: int
    triggered: int
    candidates: int
    k: int
    prefix_samples: int
    metrics: Mapping[str, Estimate]
    prefixes: Mapping[str, PrefixFigures]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        names = (
            "model", "step", "split", "questions", "samples", "triggered", "candidates", "k",
            "prefix_samples",
        )  # fmt: skip
        return {
            **{name: getattr(self, name) for name in names},
            "metrics": {name: e.to_dict() for name, e in self.metrics.items()},
            "prefixes": {name: part.to_dict() for name, part in self.prefixes.items()},
        }


def choose_prefixes(
    groups: Sequence[Group], settings: AlgorithmSettings, limit: int, seed: int
) -> list[Probe]:
    """At most `limit` failed prefixes: half drawn from all, the rest from AXPO's selection.

    Either side that has too few leaves its room to the other. Depends on rollouts only, so that
    an interrupted diagnosis chooses the same again.
    """
    failed = [c for group in groups for c in axpo.candidates(group, settings)]
    failed.sort(key=lambda c: c.source)
    random.Random(f"prefixes/{seed}").shuffle(failed)
    plan = {(p.group, p.source) for p in axpo.plan(groups, settings, seed)}
    chosen = [c for c in failed if (c.group, c.source) in plan]
    drawn = failed[: (limit + 1) // 2]
    extra = [c for c in chosen if c not in drawn][: limit - len(drawn)]
    while len(drawn) + len(extra) < limit and len(drawn) < len(failed):
        following = failed[len(drawn)]
        drawn.append(following)
        if following in extra:
            extra.remove(following)
    return [Probe(c, c in chosen, c in drawn) for c in [*drawn, *extra]]


def diagnose(
    groups: Sequence[Group],
    probes: Sequence[Probe],
    resampled: Sequence[Group],
    settings: AlgorithmSettings,
    seed: int,
    *,
    model: str = "",
    step: int | None = None,
    split: str = "",
    resamples: int = RESAMPLES,
) -> Diagnosis:
    """The figures: `groups` as evaluated, `resampled` the probed ones with their branches."""
    summary = summarize(groups, 1, seed, by=(), resamples=resamples)
    branches = {(g.id, b.source): (g, b) for g in resampled for b in g.branches}
    k = settings.continuations
    sets: dict[str, PrefixFigures] = {}
    for name in ("selected", "all"):
        members = [p.prefix for p in probes if (p.selected if name == "selected" else p.drawn)]
        grown = [branches[c.group, c.source] for c in members if (c.group, c.source) in branches]
        outcomes = [outcome(group, branch) for group, branch in grown]
        sets[name] = prefix_figures(outcomes, len(members), k, seed, resamples)
    triggered = [found for g in groups if (found := axpo.candidates(g, settings))]
    return Diagnosis(
        model,
        step,
        split,
        summary.questions,
        summary.samples,
        len(triggered),
        sum(map(len, triggered)),
        k,
        max((len(b.continuations) for _, b in branches.values()), default=0),
        {name: summary.metrics[name] for name in GAP if name in summary.metrics},
        sets,
    )


def outcome(group: Group, branch: Branch) -> Outcome:
    """What the branch's scored continuations show; their first call is the one resampled."""
    members = scored(branch.continuations)
    calls = [c.calls[0] if c.calls else None for c in members]
    samples, right = tally(members)
    return Outcome(
        group.id,
        branch.source,
        branch.confidence,
        samples,
        right,
        count_kinds(calls, same_call),
        count_kinds(calls, same_place),
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
    names = list(rows[0])
    values = np.array([list(row.values()) for row in rows], dtype=np.float64)
    groups = [o.group for o in kept]
    sizes = np.repeat(_by_question(groups, np.ones((len(kept), 1))), len(names), axis=1)
    estimates = ratios(_by_question(groups, values), sizes, seed, resamples)
    metrics = {name: e for name, e in zip(names, estimates, strict=True) if e is not None}
    confidence = np.array([o.confidence for o in kept])
    recovery = values[:, names.index("recovery_rate")]
    correlation = _correlation(groups, confidence, recovery, seed, resamples)
    if correlation is not None:
        metrics["confidence_correlation"] = correlation
    return PrefixFigures(len(kept), prefixes - len(kept), metrics)


def _row(outcome: Outcome, k: int) -> dict[str, float]:
    return {
        "recovery_rate": pass_at_k(outcome.samples, outcome.right, k),
        "recovery_any": float(outcome.right > 0),
        "never_recovered": float(outcome.right == 0),
        "distinct_calls": outcome.distinct,
        "distinct_calls_merged": outcome.merged,
        "single_call": float(outcome.distinct == 1),
        "single_call_merged": float(outcome.merged == 1),
    }


def _by_question(groups: Sequence[str], values: Floats) -> Floats:
    """Rows of the same question added up: [prefixes, columns] to [questions, columns]."""
    order = {id: i for i, id in enumerate(dict.fromkeys(groups))}
    out = np.zeros((len(order), values.shape[1]))
    np.add.at(out, [order[id] for id in groups], values)
    return out


def _correlation(
    groups: Sequence[str], x: Floats, y: Floats, seed: int, resamples: int
) -> Estimate | None:
    """Pearson's r over prefixes with an interval over questions; None where either is constant."""
    x, y = x - x.mean(), y - y.mean()
    moments = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1)
    columns = _by_question(groups, moments)
    drawn = _pearson(resampled_sums(columns, seed, resamples))
    return interval(float(_pearson(columns.sum(axis=0, keepdims=True))[0]), drawn)


def _pearson(sums: Floats) -> Floats:
    """r from the sums [R, 6] of 1, x, y, xx, yy, xy; NaN without spread."""
    n, x, y, xx, yy, xy = sums.T
    spread_x, spread_y = n * xx - x * x, n * yy - y * y
    scale = n * n * 1e-12
    defined = (spread_x > scale) & (spread_y > scale)
    product = np.where(defined, spread_x * spread_y, 1.0)
    return np.where(defined, (n * xy - x * y) / np.sqrt(product), np.nan)
