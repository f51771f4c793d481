"""The answers of one measurement, read again: what is left of the trees without tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from axpo.evaluation.run import Measurement
from axpo.tasks.benchmarks.base import Benchmark
from axpo.tasks.benchmarks.official import official_verdicts
from axpo.tasks.grading.verdict import Verdict
from axpo.tree import Group


@dataclass(frozen=True, slots=True)
class Answers:
    """The questions in order, as groups without tokens and pictures; `official` are the source's
    verdicts on the rollouts of each."""

    groups: list[Group]
    official: list[list[Verdict | None]]


def read_answers(run: Measurement, benchmark: Benchmark) -> Answers:
    """The answers of a finished measurement."""
    groups = run.stored(run.shelf(run.folder.evaluated))
    if groups is None:
        raise ValueError(f"{run.out} lacks questions of {benchmark.name}; expected all of them")
    light = [_without_tokens(group) for group in groups]
    return Answers(light, [official_verdicts(benchmark, group) for group in light])


def sample_rows(benchmark: str, arm: str, answers: Answers) -> Iterator[dict[str, Any]]:
    """One row per rollout, of plain JSON values (docs/benchmarks.md)."""
    for group, verdicts in zip(answers.groups, answers.official, strict=True):
        for sample, (rollout, verdict) in enumerate(zip(group.rollouts, verdicts, strict=True)):
            calls = Counter(call.name or "malformed" for call in rollout.calls)
            yield {
                "benchmark": benchmark,
                "arm": arm,
                "question": group.example,
                "sample": sample,
                "answer": rollout.answer,
                "truths": list(group.truths),
                "grader": group.grading,
                "reward": rollout.reward,
                "right": rollout.solved,
                "rule": rollout.rule,
                "detail": rollout.detail,
                "official": None if verdict is None else verdict.reward,
                "official_rule": None if verdict is None else verdict.rule,
                "official_detail": None if verdict is None else verdict.detail,
                "calls": dict(calls),
                "stop": None if rollout.stop is None else str(rollout.stop),
                "fault": rollout.fault,
            }


def _without_tokens(group: Group) -> Group:
    prompt = replace(group.prompt, tokens=group.prompt.tokens[:1], images=())
    rollouts = [replace(rollout, segments=[], credit=[]) for rollout in group.rollouts]
    return replace(group, prompt=prompt, rollouts=rollouts, pictures={}, views={}, entropies={})
