"""Advantages and the loss items that carry them (arXiv 2605.28774)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from axpo.tree import Credit, Stream, Trajectory


def advantage(reward: float, pool: Sequence[float]) -> float:
    """(reward - mean) / std over `pool`; 0 if std is 0 or the pool has fewer than two rewards.

    std is the sample deviation (n - 1), as in verl, with which the paper trains (choice).
    """
    if len(pool) < 2:
        return 0.0
    mean = math.fsum(pool) / len(pool)
    variance = math.fsum((r - mean) ** 2 for r in pool) / (len(pool) - 1)
    # Equal rewards that have no exact binary form must not divide noise by noise.
    if variance <= 1e-18:
        return 0.0
    return (reward - mean) / math.sqrt(variance)


def rollout_credit(rollout: Trajectory, value: float, weight: float) -> Credit:
    """One loss item over the whole rollout (its policy tokens)."""
    return Credit(0, rollout.tokens, value, Stream.ROLLOUT, weight)
