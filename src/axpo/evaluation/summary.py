"""What a model scores on a set of questions, and how two models differ on the same questions.

`summarize` gives each metric with an interval, split by tool use and by what the examples say of
themselves; `compare` pairs two models question by question. The all-wrong rates depend on the
number of samples per question: compare them only at equal `samples` (the paper's are at N = 8).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from axpo.algorithms.subgroups import (
    FAMILY,
    all_wrong,
    callers,
    families,
    family_of,
    scored,
    subgroup,
    tools_used,
)
from axpo.algorithms.unscored import unscored_figures
from axpo.errors import AlignmentError
from axpo.evaluation.bootstrap import (
    LEVEL,
    Estimate,
    Floats,
    by_unit,
    paired_differences,
    ratios,
    simultaneous,
)
from axpo.evaluation.passk import floor_pass_at_k, question_pass_at_k, tally
from axpo.tree import Group

HIGHER_IS_BETTER: Mapping[str, bool] = {
    "accuracy_tool": True,
    "accuracy_no_tool": True,
    "all_wrong_tool": False,
    "all_wrong_no_tool": False,
}
"""Metrics of which more, or less, is better, besides Pass@k. Tool use and tokens are neither."""


QuestionShares = Mapping[str, tuple[float, float]]
"""A question's numerator and denominator in each metric."""


PART = ("questions", "clusters", "dropped", "unscored", "metrics", "tools")
"""What `evaluation.json` says of a part of the questions."""


@dataclass(frozen=True, slots=True)
class Summary:
    """A model's metrics on a split.

    `clusters` is how many units the intervals resample: the clusters of the `questions`, and the
    questions that are in none. `dropped` questions have fewer than k scored rollouts (no Pass@k).
    `unscored` rollouts and `stops` count over all rollouts. If some are unscored, `pass@k_floor`
    counts them as wrong and `faults` says what failed (`axpo.algorithms.unscored`). `tools` maps a
    tool that was used to its `rate` (share of rollouts that called it), `accuracy` (of those
    rollouts) and `all_wrong` (share of the questions with such rollouts in which all of them are
    wrong). `by` maps a key of the examples' meta and its value to the summary of those questions. A
    metric that no question has a share in is left out.
    """

    model: str
    step: int | None
    split: str
    questions: int
    clusters: int
    samples: int
    k: int
    dropped: int
    unscored: int
    metrics: Mapping[str, Estimate]
    tools: Mapping[str, Mapping[str, Estimate]]
    stops: Mapping[str, int]
    faults: Mapping[str, float]
    by: Mapping[str, Mapping[str, Summary]]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; of `by` the names in `PART` alone."""
        whole = asdict(self)
        for parts in whole["by"].values():
            for value, part in parts.items():
                parts[value] = {name: part[name] for name in PART}
        return whole


def summarize(
    groups: Sequence[Group],
    k: int,
    seed: int,
    *,
    model: str = "",
    step: int | None = None,
    split: str = "",
    by: Sequence[str] = (),
) -> Summary:
    """Every metric with its interval, of all questions and for each value of the meta keys `by`."""
    if not groups:
        raise ValueError("no questions to summarize")
    rollouts = [r for group in groups for r in group.rollouts]
    unscored = sum(not r.scored for r in rollouts)
    rows = [measures(group, k, floor=unscored > 0) for group in groups]
    units = [resampling_unit(group) for group in groups]
    metrics = estimates(rows, units, seed)
    tools = {
        tool: estimates([tool_measures(group, tool) for group in groups], units, seed)
        for tool in tools_used(groups)
    }
    parts: dict[str, dict[str, Summary]] = {}
    for key in by:
        for value in sorted({str(g.meta[key]) for g in groups if key in g.meta}):
            chosen = [g for g in groups if str(g.meta.get(key)) == value and key in g.meta]
            part = summarize(chosen, k, seed, model=model, step=step, split=split)
            parts.setdefault(key, {})[value] = part
    return Summary(
        model=model,
        step=step,
        split=split,
        questions=len(groups),
        clusters=len(set(units)),
        samples=max(len(group.rollouts) for group in groups),
        k=k,
        dropped=sum(tally(group.rollouts)[0] < k for group in groups),
        unscored=unscored,
        metrics=metrics,
        tools=tools,
        stops=dict(Counter(str(r.stop) for r in rollouts).most_common()),
        faults=unscored_figures(groups) if unscored else {},
        by=parts,
    )


def compare(
    first: Sequence[Group],
    second: Sequence[Group],
    k: int,
    seed: int,
) -> dict[str, Any]:
    """Second minus first on the same questions, with paired intervals; plain JSON values.

    Questions are matched by `Group.example`; raises `AlignmentError` if the questions or their
    clusters differ. `share_better` is the share of the resamples in which the second is better
    (lower, for an all-wrong rate), where a tie counts half. It is no p-value and says nothing of
    other training seeds; only the metrics of which more or less is better have it. A question with
    fewer than k scored rollouts in either evaluation is left out of both sides' Pass@k.

    `by` has the same figures for each family of questions, with intervals that hold for all
    families together (`level` is the level of each): of several, one may differ by chance.
    """
    pairs = _align(first, second)
    floor = not all(r.scored for pair in pairs for group in pair for r in group.rollouts)
    names = families(group for group, _ in pairs)
    level = simultaneous(max(1, len(names)))
    of_families: dict[str, Any] = {}
    for name in names:
        part = [pair for pair in pairs if family_of(pair[0]) == name]
        of_families[name] = _paired(part, k, floor, seed, level)
    return _paired(pairs, k, floor, seed, LEVEL) | {"by": {FAMILY: of_families}}


def _paired(
    pairs: Sequence[tuple[Group, Group]],
    k: int,
    floor: bool,
    seed: int,
    level: float,
) -> dict[str, Any]:
    """Second minus first of the pairs, with intervals of `level` over their clusters."""
    names, *a = _table([measures(pair[0], k, floor) for pair in pairs])
    _, *b = _table([measures(pair[1], k, floor) for pair in pairs])
    dropped = 0
    for m, name in enumerate(names):
        if name.startswith("pass@"):
            both = (a[1][:, m] > 0) & (b[1][:, m] > 0)
            dropped = max(dropped, int((~both).sum()))
            for table in (*a, *b):
                table[~both, m] = 0.0
    units = [resampling_unit(group) for group, _ in pairs]
    a, b = ([by_unit(units, table) for table in tables] for tables in (a, b))
    found = paired_differences((a[0], a[1]), (b[0], b[1]), seed, level)
    known = {name: d for name, d in zip(names, found, strict=True) if d is not None}
    better = {name: d.share_above for name, d in known.items()}
    return {
        "questions": len(pairs),
        "clusters": len(set(units)),
        "dropped": dropped,
        "level": level,
        "difference": {name: asdict(d.estimate) for name, d in known.items()},
        "share_better": {
            name: above if HIGHER_IS_BETTER.get(name, True) else 1.0 - above
            for name, above in better.items()
            if name in HIGHER_IS_BETTER or name.startswith("pass@")
        },
    }


def resampling_unit(group: Group) -> tuple[str, str]:
    """The unit that a resample draws: the question's cluster or, without one, the question."""
    return ("question", group.id) if group.cluster is None else ("cluster", group.cluster)


def measures(group: Group, k: int, floor: bool = False) -> QuestionShares:
    """The question's numerator and denominator in each metric.

    With `floor` there is also the Pass@k that counts unscored rollouts as wrong.
    """
    rollouts = scored(group.rollouts)
    found: dict[str, tuple[float, float]] = {}
    kinds = {"": question_pass_at_k} | ({"_floor": floor_pass_at_k} if floor else {})
    for size in dict.fromkeys((1, k)):
        for suffix, estimate in kinds.items():
            value = estimate(group, size)
            found[f"pass@{size}{suffix}"] = (0.0, 0.0) if value is None else (value, 1.0)
    found["tool_rate"] = (sum(r.uses_tool for r in rollouts), len(rollouts))
    for name, tool in (("tool", True), ("no_tool", False)):
        members = subgroup(group, tool=tool)
        n, right = tally(members)
        found[f"accuracy_{name}"] = (right, n)
        found[f"all_wrong_{name}"] = (float(all_wrong(members)), float(n > 0))
    found["tokens"] = (sum(r.tokens for r in rollouts), len(rollouts))
    return found


def tool_measures(group: Group, tool: str) -> QuestionShares:
    """The question's numerator and denominator in each metric of a tool."""
    members = callers(group, tool)
    n, right = tally(members)
    return {
        "rate": (n, len(scored(group.rollouts))),
        "accuracy": (right, n),
        "all_wrong": (float(all_wrong(members)), float(n > 0)),
    }


def estimates(
    rows: Sequence[QuestionShares], units: Sequence[Hashable], seed: int
) -> dict[str, Estimate]:
    """Each metric of the rows, one per question, with its interval over the questions' units."""
    names, *parts = _table(rows)
    numerators, denominators = (by_unit(units, part) for part in parts)
    found = ratios(numerators, denominators, seed)
    return {name: e for name, e in zip(names, found, strict=True) if e is not None}


def _table(rows: Sequence[QuestionShares]) -> tuple[list[str], Floats, Floats]:
    """Metric names, numerators [Q, M] and denominators [Q, M] of the questions' rows."""
    values = np.array([list(row.values()) for row in rows], dtype=np.float64)
    return list(rows[0]), values[:, :, 0].copy(), values[:, :, 1].copy()


def _align(first: Sequence[Group], second: Sequence[Group]) -> list[tuple[Group, Group]]:
    by_id = [by_example(groups) for groups in (first, second)]
    expected, got = (set(groups) for groups in by_id)
    if expected != got or not expected:
        raise AlignmentError(
            f"the two evaluations are of different questions: expected {len(expected)}, "
            f"got {len(got)}; only in the first {_some(expected - got)}, "
            f"only in the second {_some(got - expected)}"
        )
    for id, group in by_id[0].items():
        if (cluster := by_id[1][id].cluster) != group.cluster:
            raise AlignmentError(
                f"example {id} is in cluster {group.cluster!r} in the first evaluation, in "
                f"{cluster!r} in the second: evaluate both with the same task.columns.cluster"
            )
    return [(group, by_id[1][id]) for id, group in by_id[0].items()]


def by_example(groups: Sequence[Group]) -> dict[str, Group]:
    """Example id -> its group; raises `AlignmentError` if an id is missing or there twice."""
    found: dict[str, Group] = {}
    for group in groups:
        if not group.example:
            raise AlignmentError(f"group {group.id}: no example; expected its question's id")
        if (other := found.get(group.example)) is not None:
            raise AlignmentError(f"example {group.example}: got groups {other.id} and {group.id}")
        found[group.example] = group
    return found


def _some(ids: set[str]) -> str:
    shown = sorted(ids)[:3]
    return ", ".join([*shown, "..."] if len(ids) > 3 else shown) or "none"
