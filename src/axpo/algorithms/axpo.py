"""AXPO (arXiv 2605.28774): resample the tool calls of questions whose tool use always failed.

The thinking prefixes of the least confident calls are frozen, each through its opening call tag,
and K continuations are sampled from each (`axpo.algorithms.resampling`). Continuations compete with
each other. The prefix competes with the group, as right or wrong depending on whether it could be
recovered. The source's own failed ending is masked: each token is credited by one stream only.
Ablations are settings.
"""

from __future__ import annotations

from axpo.algorithms.credit import advantage, rollout_credit
from axpo.algorithms.resampling import Resampling
from axpo.algorithms.subgroups import rewards
from axpo.tree import Branch, Credit, Group, Stream


class Axpo(Resampling):
    """Agent explorative policy optimisation."""

    prefix_credit: bool = True
    """False: a selected source keeps its plain GRPO advantage (ablation)."""
    separate_group: bool = True
    """False: continuations join the rollouts' advantage group (ablation)."""

    def credit(self, group: Group) -> dict[str, list[Credit]]:
        """Every trajectory's items. A branch without a scored continuation counts as not grown."""
        original = rewards(group.rollouts)
        branches = {b.source: b for b in group.branches if b.recovered is not None}
        if not original:
            return {}
        weight = 1 / len(original)
        resampled = [r for b in branches.values() for r in rewards(b.continuations)]
        shared = None if self.separate_group else [*original, *resampled]

        items: dict[str, list[Credit]] = {}
        for rollout in group.rollouts:
            if rollout.reward is None:
                continue
            branch = branches.get(rollout.id)
            if branch is None or branch.cut == 0 or not self.prefix_credit:
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
    """The advantage of r^prefix in the original rewards, where it replaces the source's own."""
    recovered = 1.0 if branch.recovered else 0.0
    if shared is not None:
        return advantage(recovered, shared)
    replaced = list(original)
    replaced[replaced.index(own)] = recovered
    return advantage(recovered, replaced)


def _continuation_items(
    branch: Branch, shared: list[float] | None, weight: float
) -> dict[str, list[Credit]]:
    """Each continuation's item, by its siblings (or the shared group), without the prefix."""
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
