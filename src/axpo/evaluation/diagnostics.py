"""The Thinking-Acting Gap of any model: what its failed tool prefixes could still have led to.

Prefixes of triggered questions (every tool-using rollout is wrong: `algorithms.resampling`) are
resampled `prefix_samples` times each. Two sets are reported. `selected` holds the prefixes that
AXPO would resample first if the evaluated questions were one batch (its `plan`): the least
confident call of each question. `all` is a uniform draw from every failed prefix. Each set gets
half of the limit; a prefix that is in both is resampled once. `prefixes` computes their figures
and those of new rollouts of the same questions.

Unscored continuations are left out of a prefix's statistics; a prefix with fewer than K scored
continuations is dropped, and counted. Intervals resample questions, or clusters of them, each with
its prefixes (see `bootstrap`).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from axpo.algorithms.confidence import span_confidence
from axpo.algorithms.resampling import Candidate, Resampling
from axpo.algorithms.subgroups import subgroup
from axpo.evaluation.bootstrap import Estimate, correlation
from axpo.evaluation.prefixes import PrefixFigures, prefix_figures, quartiles, recovery_of
from axpo.evaluation.summary import resampling_unit, summarize
from axpo.tree import Group

GAP = ("tool_rate", "accuracy_tool", "accuracy_no_tool", "all_wrong_tool", "all_wrong_no_tool")


@dataclass(frozen=True, slots=True)
class Probe:
    """A prefix to resample: `selected` as AXPO would, `drawn` uniformly, or both."""

    prefix: Candidate
    selected: bool
    drawn: bool


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The gap's figures (`metrics`, as in `Summary`) and the figures of the resampled prefixes.

    `entropy_correlation`, in `metrics`, is Pearson's r over the first calls of the `calls` scored
    tool-using rollouts, between the call's confidence (mean probability of its sampled tokens) and
    the policy's mean exact entropy over the same tokens. It is negative where low confidence stands
    for high entropy.

    A set of prefixes has these figures. `recovery_rate` is the expected chance that any of K
    continuations is right (unbiased from all samples), `recovery_any` the share of prefixes with
    any right continuation, `never_recovered` the share with none. `recovery_quartile_1` to `_4` are
    the recovery rates of the prefixes in each quarter of all failed prefixes, the least confident
    first. `distinct_calls` and `distinct_calls_merged` are means per prefix, and `single_call` is
    the share of prefixes whose samples are all one call. `confidence_correlation` is Pearson's r
    between the rank's confidence and recovery. For Proposition 1 (`prefixes`),
    `fresh_recovery_rate` is the chance that any of K fresh rollouts of the prefix's question uses
    a tool and is right, `recovery_gain` is the prefix's recovery rate minus that, `premise_holds`
    the share of prefixes with p(t) >= q p_tool, and `premise_holds_strictly` the share with
    p(t) > q p_tool.
    """

    model: str
    step: int | None
    split: str
    questions: int
    samples: int
    calls: int
    triggered: int
    candidates: int
    k: int
    prefix_samples: int
    metrics: Mapping[str, Estimate]
    prefixes: Mapping[str, PrefixFigures]


def choose_prefixes(
    groups: Sequence[Group], resampling: Resampling, limit: int, seed: int
) -> list[Probe]:
    """At most `limit` failed prefixes: half drawn from all, the rest from AXPO's selection.

    If one half has too few prefixes, the other gets its places. The choice depends on rollouts
    only, so an interrupted diagnosis chooses the same again.
    """
    failed = [c for group in groups for c in resampling.candidates(group)]
    failed.sort(key=lambda c: c.source)
    random.Random(f"prefixes/{seed}").shuffle(failed)
    plan = {(p.group, p.source) for p in resampling.plan(groups, seed)}
    chosen = [c for c in failed if (c.group, c.source) in plan]
    drawn = failed[: (limit + 1) // 2]
    extra = [c for c in chosen if c not in drawn][: limit - len(drawn)]
    while len(drawn) + len(extra) < limit and len(drawn) < len(failed):
        following = failed[len(drawn)]
        drawn.append(following)
        if following in extra:
            extra.remove(following)
    return [Probe(c, c in chosen, c in drawn) for c in [*drawn, *extra]]


def diagnosis(
    groups: Sequence[Group],
    probes: Sequence[Probe],
    resampled: Sequence[Group],
    fresh: Mapping[str, Group],
    entropies: Mapping[str, float],
    resampling: Resampling,
    seed: int,
    *,
    model: str = "",
    step: int | None = None,
    split: str = "",
) -> Diagnosis:
    """The figures of the evaluated `groups`; `resampled` are the probed ones, with their branches.

    `fresh` holds new rollouts of the probed questions by the group's id, and `entropies` the exact
    entropy of first calls by rollout id (`entropy.call_entropies`).
    """
    summary = summarize(groups, 1, seed)
    failed = [found for g in groups if (found := resampling.candidates(g))]
    quartile = quartiles([c for found in failed for c in found])
    outcomes = {
        (group.id, branch.source): recovery_of(
            group, branch, quartile[branch.source], fresh.get(group.id)
        )
        for group in resampled
        for branch in group.branches
    }
    k = resampling.continuations
    sets: dict[str, PrefixFigures] = {}
    for name in ("selected", "all"):
        members = [p.prefix for p in probes if (p.selected if name == "selected" else p.drawn)]
        grown = [o for c in members if (o := outcomes.get((c.group, c.source))) is not None]
        sets[name] = prefix_figures(grown, len(members), k, seed)
    metrics = {name: summary.metrics[name] for name in GAP if name in summary.metrics}
    calls, found = entropy_correlation(groups, entropies, seed)
    if found is not None:
        metrics["entropy_correlation"] = found
    return Diagnosis(
        model,
        step,
        split,
        summary.questions,
        summary.samples,
        calls,
        len(failed),
        sum(map(len, failed)),
        k,
        max((len(b.continuations) for g in resampled for b in g.branches), default=0),
        metrics,
        sets,
    )


def entropy_correlation(
    groups: Sequence[Group], entropies: Mapping[str, float], seed: int
) -> tuple[int, Estimate | None]:
    """The number of first calls, and Pearson's r of their confidence with their entropy."""
    rows = [
        (unit, span_confidence(r.segments, r.calls[0].start, r.calls[0].end), entropies[r.id])
        for group in groups
        for unit in [resampling_unit(group)]
        for r in subgroup(group, tool=True)
    ]
    if not rows:
        return 0, None
    units, confidence, entropy = zip(*rows, strict=True)
    found = correlation(units, np.array(confidence), np.array(entropy), seed)
    return len(rows), found
