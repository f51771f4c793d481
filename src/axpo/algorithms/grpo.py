"""GRPO (arXiv 2402.03300) compares each rollout with its group.

A_i = (r_i - mean(r)) / std(r), on all policy tokens of rollout i; each of the group's N slots
weighs 1/N. Nothing is resampled.

Tool bonus and tool penalty (arXiv 2605.28774, ablation table) shape the reward: a constant is
added if a rollout used a tool. Only the advantage sees it; a rollout's reward, and with it every
accuracy, stays the task's.
"""

from __future__ import annotations

from axpo.algorithms.base import Algorithm
from axpo.algorithms.credit import advantage, rollout_credit
from axpo.tree import Credit, Group


class Grpo(Algorithm):
    """The baseline without resampling."""

    tool_bonus: float = 0.0
    """A constant added to a tool-using rollout's reward for its advantage only; below 0 it is the
    tool penalty (paper: a constant)."""

    def credit(self, group: Group) -> dict[str, list[Credit]]:
        """One item per scored rollout; an unscored one does not count in the group's statistics."""
        shaped = {
            rollout.id: rollout.reward + self.tool_bonus * rollout.uses_tool
            for rollout in group.rollouts
            if rollout.reward is not None
        }
        pool = list(shaped.values())
        return {
            rollout.id: [
                rollout_credit(rollout, advantage(shaped[rollout.id], pool), 1 / len(pool))
            ]
            for rollout in group.rollouts
            if rollout.id in shaped
        }
