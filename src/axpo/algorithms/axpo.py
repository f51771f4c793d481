"""AXPO (arXiv 2605.28774): resample the tool calls of questions whose tool use always failed.

A question is triggered where its tool-using rollouts are all wrong. The thinking prefixes of
the least confident calls are frozen, each through its opening call tag, and K continuations are
sampled from each. Continuations compete with each other, the prefix competes with the group by
whether it could be recovered, and the source's failed continuation is masked: each token is
credited by one stream only. The ablations are settings (`AlgorithmSettings`).

Beyond the paper, and never part of it: `branch_at = "least_confident"` may freeze a longer prefix,
through the tag of a later call of a multi-turn rollout.
"""

from __future__ import annotations

from collections.abc import Sequence

from axpo.algorithms.budget import Plan, breadth_first, prefix_budget
from axpo.algorithms.credit import advantage, rollout_credit, scored_pool
from axpo.algorithms.ranking import Candidate, answer_candidate, tool_candidate
from axpo.algorithms.subgroups import all_wrong, rewards, subgroup
from axpo.config import AlgorithmSettings
from axpo.tree import Branch, Credit, Group, Stream


def candidates(group: Group, settings: AlgorithmSettings) -> list[Candidate]:
    """The group's prefixes that may be resampled; empty where it is not triggered."""
    members = subgroup(group, tool=settings.resample == "tool")
    if not all_wrong(members):
        return []
    make = tool_candidate if settings.resample == "tool" else answer_candidate
    made = (make(group, rollout, settings) for rollout in members)
    return [candidate for candidate in made if candidate is not None]


def plan(
    groups: Sequence[Group], settings: AlgorithmSettings, seed: int, pending: int = 0
) -> list[Plan]:
    """The batch's branches: triggered questions, breadth-first, floor(r B N / K) at most.

    While `pending` more groups of the batch are being sampled: the branches that are certain.
    """
    questions = len(groups) + pending
    if prefix_budget(questions, settings) <= pending:
        return []
    found = [candidates(group, settings) for group in groups]
    return breadth_first(found, questions, settings, seed, pending)


def credit(group: Group, settings: AlgorithmSettings) -> dict[str, list[Credit]]:
    """Every trajectory's items. A branch without a scored continuation is as if never grown."""
    original = scored_pool(group)
    branches = {b.source: b for b in group.branches if b.recovered is not None}
    if not original:
        return {}
    weight = 1 / len(original)
    resampled = [r for b in branches.values() for r in rewards(b.continuations)]
    shared = None if settings.separate_group else [*original, *resampled]

    items: dict[str, list[Credit]] = {}
    for rollout in group.rollouts:
        if rollout.reward is None:
            continue
        branch = branches.get(rollout.id)
        if branch is None or branch.cut == 0 or not settings.prefix_credit:
            value = advantage(rollout.reward, shared or original)
            items[rollout.id] = [rollout_credit(rollout, value, weight)]
        else:
            value = _prefix_advantage(branch, rollout.reward, original, shared)
            items[rollout.id] = [Credit(0, branch.cut, value, Stream.PREFIX, weight)]
        if branch is not None:
            items.update(_continuation_items(branch, shared, weight))
    return items


def _prefix_advantage(
    branch: Branch, own: float, original: list[float], shared: list[float] | None
) -> float:
    """r^prefix against the original rewards with the source's own replaced by r^prefix."""
    recovered = 1.0 if branch.recovered else 0.0
    if shared is not None:
        return advantage(recovered, shared)
    replaced = list(original)
    replaced[replaced.index(own)] = recovered
    return advantage(recovered, replaced)


def _continuation_items(
    branch: Branch, shared: list[float] | None, weight: float
) -> dict[str, list[Credit]]:
    """Each continuation against its siblings (or the shared group); the prefix is masked."""
    pool = shared or rewards(branch.continuations)
    return {
        c.id: [
            Credit(
                branch.cut,
                branch.cut + c.tokens,
                advantage(c.reward, pool),
                Stream.CONTINUATION,
                weight,
            )
        ]
        for c in branch.continuations
        if c.reward is not None
    }
