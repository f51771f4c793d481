"""GRPO (arXiv 2402.03300): each rollout against its group.

A_i = (r_i - mean(r)) / std(r), on all policy tokens of rollout i; each of the group's N slots
weighs 1/N. Nothing is resampled.
"""

from __future__ import annotations

from collections.abc import Sequence

from axpo.algorithms.budget import Plan
from axpo.algorithms.credit import advantage, rollout_credit, scored_pool
from axpo.config import AlgorithmSettings
from axpo.tree import Credit, Group


def plan(
    groups: Sequence[Group], settings: AlgorithmSettings, seed: int, pending: int = 0
) -> list[Plan]:
    """GRPO grows no branches."""
    return []


def credit(group: Group, settings: AlgorithmSettings) -> dict[str, list[Credit]]:
    """One item a scored rollout; an unscored one leaves the group's statistics."""
    pool = scored_pool(group)
    return {
        rollout.id: [rollout_credit(rollout, advantage(rollout.reward, pool), 1 / len(pool))]
        for rollout in group.rollouts
        if rollout.reward is not None
    }
