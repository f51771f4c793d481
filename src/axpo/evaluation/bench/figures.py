"""The figures of a benchmark: those of each arm, and what lies between the arms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from axpo.algorithms.subgroups import rewards, scored
from axpo.evaluation.bench.answers import Answers
from axpo.evaluation.bench.paper import paper_row
from axpo.evaluation.summary import QuestionShares, compare, estimates, resampling_unit
from axpo.tasks.benchmarks.averages import shares
from axpo.tasks.benchmarks.base import Benchmark
from axpo.tasks.benchmarks.official import has_rule, official_shares
from axpo.tasks.grading.verdict import Verdict
from axpo.tree import Group

KEPT = ("model", "step", "questions", "clusters", "samples", "k", "dropped", "unscored", "tools",
        "stops", "faults")  # fmt: skip
"""What an arm's figures take of its evaluation as it is, beside the metrics."""


def arm_figures(
    benchmark: Benchmark, answers: Answers, evaluation: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """An arm's part of `bench.json`: its `evaluation` (as `axpo eval` writes it) with the mean
    reward, the tool calls per rollout, the source's mean verdict and the benchmark's own averages.

    `official_scored` counts the rollouts that the source's rule gives a verdict.
    """
    groups, official = answers.groups, answers.official
    rows = [_measures(group, given) for group, given in zip(groups, official, strict=True)]
    more = estimates(rows, [resampling_unit(group) for group in groups], seed)
    averages = {"strict": benchmark.averages(shares(groups))}
    count = sum(verdict is not None for given in official for verdict in given)
    if count:
        averages["official"] = benchmark.averages(official_shares(groups, official))
    return {
        **{name: evaluation[name] for name in KEPT},
        "metrics": evaluation["metrics"] | {name: asdict(e) for name, e in more.items()},
        "averages": averages,
        "official_scored": count,
    }


def benchmark_figures(
    benchmark: Benchmark, arms: Mapping[str, Mapping[str, Any]], answers: Mapping[str, Answers],
    seed: int,
) -> dict[str, Any]:  # fmt: skip
    """A benchmark's part of `bench.json`: its arms, what the model gains over each of the others on
    the same questions, its scorer, and what the paper says of it."""
    scorer = benchmark.scorer
    first, *others = answers
    gains = {
        other: _gain(answers[other].groups, answers[first].groups, arms[first]["k"], seed)
        for other in others
    }
    return {
        "rows": sum(source.rows for source in benchmark.sources),
        "scorer": asdict(scorer),
        "comparable": comparable(benchmark),
        "paper": paper_row(benchmark.name),
        "arms": dict(arms),
        "gains": gains,
    }


def comparable(benchmark: Benchmark) -> str:
    """What a score here can be compared with, in words."""
    scorer = benchmark.scorer
    place = f"{scorer.file} of {scorer.repository}"
    if scorer.kind == "rule":
        return f"official is the rule of {place}, its faults included; strict is axpo's own grader."
    if scorer.kind == "judge":
        reads = "; official reads its reply as the source does" if has_rule(benchmark) else ""
        return (
            f"the source asks a judge ({place}): judge and prompt are others here{reads}, so that "
            "no score is the source's."
        )
    return (
        f"the source compares likelihoods of the options ({place}): nothing here is its score; "
        "strict reads the answer."
    )


def _measures(group: Group, official: list[Verdict | None]) -> QuestionShares:
    known = scored(group.rollouts)
    given = [verdict.reward for verdict in official if verdict is not None]
    return {
        "reward": (sum(rewards(known)), len(known)),
        "calls": (sum(len(rollout.calls) for rollout in known), len(known)),
        "official": (sum(given), len(given)),
    }


def _gain(before: list[Group], after: list[Group], k: int, seed: int) -> dict[str, Any]:
    found = compare(before, after, k, seed)
    found["difference"].pop("tokens", None)  # the answers alone do not give them
    return {name: found[name] for name in ("dropped", "difference", "share_better")}
