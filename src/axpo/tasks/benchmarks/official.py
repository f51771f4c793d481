"""The verdicts of a benchmark's source on answers that are stored: nothing is sampled or asked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from axpo.tasks.base import Example
from axpo.tasks.benchmarks.averages import Share, mean, shares
from axpo.tasks.benchmarks.base import Benchmark
from axpo.tasks.grading.verdict import Verdict
from axpo.tree import Group, Trajectory


def official_verdicts(benchmark: Benchmark, group: Group) -> list[Verdict | None]:
    """The source's verdict on each rollout: 0 where it gave no answer, None where it is not scored
    and where the source has no rule."""
    example = Example.of(group, pictures=False)

    def verdict(rollout: Trajectory) -> Verdict | None:
        if rollout.reward is None or not has_rule(benchmark):
            return None
        if rollout.answer is None:
            return Verdict(0.0, str(rollout.stop))
        strict = Verdict(rollout.reward, rollout.rule, rollout.detail)
        return benchmark.official(example, rollout.answer, strict)

    return [verdict(rollout) for rollout in group.rollouts]


def has_rule(benchmark: Benchmark) -> bool:
    """Whether the source's verdict can be computed."""
    return type(benchmark).official is not Benchmark.official


def official_shares(
    groups: Sequence[Group], verdicts: Iterable[Sequence[Verdict | None]]
) -> list[Share]:
    """One share per group, of the rewards that the source gives: None where it gives none."""
    found: list[Share] = []
    for share, given in zip(shares(groups), verdicts, strict=True):
        rewards = [verdict.reward for verdict in given if verdict is not None]
        found.append(replace(share, value=mean(rewards) if rewards else None))
    return found
