"""ARPO (arXiv 2507.19849): branch after a tool's answer where the policy has become less certain.

A question has a budget of N rollouts. A share of them starts from the prompt. Then, turn by turn,
a trajectory whose turn after an observation opens with P = alpha + beta (H - H_init) > tau gets
one more rollout from right after that observation (beam 2), as long as the budget lasts; what is
left of it is filled with rollouts from the prompt. H is the entropy of a turn's opening, H_init
that of the path's first turn. The paper's open code draws instead: it branches with probability P
(`entropy_rule = "draw"`). All N are then one GRPO group (arXiv 2402.03300): a branched member
counts as a rollout of its own, its tokens before the cut included, which the tree stores once.

The decision of a turn depends on that turn and the first alone, so it is the same whether it is
taken while trajectories run or once they have ended: `axpo.rollout.branching` does the latter.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from axpo.algorithms.budget import Plan
from axpo.algorithms.credit import advantage, rollout_credit
from axpo.algorithms.subgroups import rewards
from axpo.config import AlgorithmSettings
from axpo.tree import Credit, Group, Origin, Stream, Trajectory, TreeError

TOP_LOGPROBS = 10
"""Logprobs of a token that its entropy sums over (the paper's open code)."""
OPENING = 20
"""First tokens of a turn whose entropies are summed (the paper's open code)."""


@dataclass(frozen=True, slots=True)
class Fork:
    """One more rollout from `source`'s path up to offset `cut`."""

    source: str
    cut: int


def opening_entropy(top_logprobs: Sequence[Sequence[float]], vocabulary: int) -> float:
    """-sum p log p over the highest logprobs of each of a turn's first tokens, over log |V|."""
    terms = [math.exp(p) * p for token in top_logprobs[:OPENING] for p in token[:TOP_LOGPROBS]]
    return -math.fsum(terms) / math.log(vocabulary)


def initial_rollouts(settings: AlgorithmSettings) -> int:
    """Rollouts from the prompt before any branch: the share of N, at least one."""
    # The decimal that the recipe says, not its binary neighbour.
    return max(1, math.floor(Fraction(repr(settings.initial_share)) * settings.rollouts))


def missing_rollouts(group: Group, settings: AlgorithmSettings) -> int:
    """What the group's budget still allows."""
    return settings.rollouts - sum(1 for _ in group.trajectories())


def forks(group: Group, settings: AlgorithmSettings, turn: int, seed: int) -> list[Fork]:
    """Where the group's trajectories branch at their `turn`th turn (from 2), within the budget.

    Each at most once; where the budget ends, the earlier in the group's order go first. `seed`
    fixes the draws of `entropy_rule = "draw"`, a turn's whatever else is there.
    """
    found: list[Fork] = []
    for trajectory in group.trajectories():
        turns = _turns(group, trajectory)
        if len(turns) < turn:
            continue
        (_, first), (cut, now) = turns[0], turns[turn - 1]
        change = _entropy(group, now) - _entropy(group, first)
        threshold = settings.entropy_threshold
        if settings.entropy_rule == "draw":
            threshold = random.Random(f"arpo/{seed}/{now}").random()
        if settings.entropy_base + settings.entropy_gain * change > threshold:
            found.append(Fork(trajectory.id, cut))
    return found[: max(0, missing_rollouts(group, settings))]


def _entropy(group: Group, segment: str) -> float:
    if segment not in group.entropies:
        raise TreeError(
            f"group {group.id}: no entropy of turn {segment}; ARPO needs an engine that returns "
            f"its {TOP_LOGPROBS} highest logprobs"
        )
    return group.entropies[segment]


def _turns(group: Group, trajectory: Trajectory) -> list[tuple[int, str]]:
    """(path offset, segment id) of each policy turn of the trajectory's path."""
    turns: list[tuple[int, str]] = []
    position = 0
    for segment in group.after_prompt(trajectory):
        if segment.origin is Origin.POLICY and (not turns or turns[-1][1] != segment.id):
            turns.append((position, segment.id))
        position += len(segment)
    return turns


def plan(
    groups: Sequence[Group], settings: AlgorithmSettings, seed: int, pending: int = 0
) -> list[Plan]:
    """Nothing: ARPO branches within its rollouts' budget, not after it."""
    return []


def credit(group: Group, settings: AlgorithmSettings) -> dict[str, list[Credit]]:
    """GRPO's advantage over all scored members, each on its whole path, each slot 1/N."""
    pool = rewards(group.trajectories())
    items: dict[str, list[Credit]] = {}
    for member in group.trajectories():
        if member.reward is None:
            continue
        value, weight = advantage(member.reward, pool), 1 / len(pool)
        cut = group.offset(member)
        items[member.id] = [
            Credit(0, cut + member.tokens, value, Stream.PATH, weight)
            if cut
            else rollout_credit(member, value, weight)
        ]
    return items
