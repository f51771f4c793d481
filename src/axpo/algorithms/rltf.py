"""RLTF (arXiv 2602.02482): learn from critiques what a second attempt did better.

Each of a question's N rollouts y0 gets a critique c0, and a second attempt y1 is sampled after
(x, y0, c0). Three terms are trained: GRPO on the first attempts, which are what counts when nobody
criticises; self-distillation, the likelihood of y1 after the question alone,
-A log pi(y1 | x) with A = R(y1) - mean R(y0) (no ratio, no deviation; tokens below a logprob floor
are dropped by the loss); feedback modelling, the cross-entropy of c0 after (x, y0).

In the tree the critique follows its rollout's last turn, as tokens of the policy that nobody
sampled. The second attempt is a branch of its rollout at offset 0: where it is trained, not where
it was sampled (`axpo.rollout.critiques`).
"""

from __future__ import annotations

from collections.abc import Sequence

from axpo.algorithms.budget import Plan
from axpo.algorithms.credit import advantage, scored_pool
from axpo.config import AlgorithmSettings
from axpo.tree import Credit, Group, Origin, Stream, Trajectory


def critique_span(rollout: Trajectory) -> tuple[int, int, int]:
    """(end of the attempt, start of the critique's words, their end); all equal without one.

    The critique is the policy's only segment without logprobs; an observation opens its turn.
    """
    position = opening = 0
    for segment in rollout.segments:
        if segment.origin is Origin.POLICY and not segment.logprobs:
            return opening, position, position + len(segment)
        if segment.origin is Origin.OBSERVATION:
            opening = position
        position += len(segment)
    return position, position, position


def plan(
    groups: Sequence[Group], settings: AlgorithmSettings, seed: int, pending: int = 0
) -> list[Plan]:
    """Nothing: second attempts belong to sampling a question."""
    return []


def credit(group: Group, settings: AlgorithmSettings) -> dict[str, list[Credit]]:
    """GRPO on first attempts, the critiques behind them, and the distilled second attempts."""
    pool = scored_pool(group)
    if not pool:
        return {}
    weight, mean = 1 / len(pool), sum(pool) / len(pool)
    items: dict[str, list[Credit]] = {}
    for rollout in group.rollouts:
        if rollout.reward is None:
            continue
        end, start, stop = critique_span(rollout)
        value = advantage(rollout.reward, pool)
        items[rollout.id] = [Credit(0, end, value, Stream.ROLLOUT, weight)]
        if start < stop and settings.feedback_weight:
            share = settings.feedback_weight * weight
            items[rollout.id].append(Credit(start, stop, 1.0, Stream.DEMONSTRATION, share))
    for branch in group.branches:
        for second in branch.continuations:
            if second.reward is not None and settings.distill_weight:
                share = settings.distill_weight * weight
                value = second.reward - mean
                whole = Credit(0, second.tokens, value, Stream.DISTILLED, share)
                items[second.id] = [whole]
    return items
