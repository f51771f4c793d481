"""ARPO (arXiv 2507.19849): branch after a tool's answer where the policy has become less certain.

A question has a budget of N rollouts. A share of them starts from the prompt. Then, turn by turn,
a trajectory whose turn after an observation opens with P = alpha + beta (H - H_init) > tau gets
one more rollout that begins right after that observation (beam 2), as long as the budget lasts.
The rest of the budget is filled with rollouts from the prompt. H is the entropy of a turn's
opening, H_init that of the path's first turn. The paper's open code draws instead: it branches with
probability P (`entropy_rule = "draw"`). All N are then one GRPO group (arXiv 2402.03300): a
branched member counts as a rollout of its own, including the tokens before its cut, which the tree
stores once.

The decision about a turn depends only on that turn and the first one, so it is the same whether it
is taken while trajectories run or after they have ended (as `axpo.rollout.branching` does).
"""

from __future__ import annotations

import math
import random
from fractions import Fraction as Exact
from typing import ClassVar, Literal

from pydantic import model_validator

from axpo.algorithms.base import Algorithm, Bounds, Fork
from axpo.algorithms.credit import advantage, rollout_credit
from axpo.algorithms.entropy import TOP_LOGPROBS
from axpo.algorithms.subgroups import rewards
from axpo.config.base import Fraction
from axpo.errors import TreeError
from axpo.tree import Credit, Group, Origin, Stream, Trajectory


class Arpo(Algorithm):
    """An algorithm that branches after observations by entropy."""

    top_logprobs: ClassVar[int] = TOP_LOGPROBS

    initial_share: Fraction = 0.5
    """Share of the N rollouts that is sampled before any branch (arXiv 2507.19849: 8 of 16)."""
    entropy_rule: Literal["threshold", "draw"] = "threshold"
    """"threshold" branches if P > tau (arXiv 2507.19849), "draw" with probability P, as its open
    code does."""
    entropy_base: float = 0.5
    """alpha of P = alpha + beta dH (arXiv 2507.19849: 0.5)."""
    entropy_gain: float = 0.2
    """beta of P = alpha + beta dH (arXiv 2507.19849: 0.2)."""
    entropy_threshold: float = 0.5
    """tau; a trajectory branches if P > tau (arXiv 2507.19849: 0.5)."""

    @model_validator(mode="after")
    def _effective(self) -> Arpo:
        if self.entropy_rule == "draw" and "entropy_threshold" in self.model_fields_set:
            raise ValueError("entropy_threshold: no effect with entropy_rule = 'draw'; remove it")
        return self

    @property
    def first_rollouts(self) -> int:
        """The number of rollouts in the initial share of N; at least one."""
        # This takes the decimal that the recipe says, not its binary neighbour.
        return max(1, math.floor(Exact(repr(self.initial_share)) * self.rollouts))

    def forks(self, group: Group, turn: int, seed: int) -> list[Fork]:
        """Forks of the trajectories that branch at their `turn`th turn, each once, in the budget.

        If the budget does not suffice for all, the earlier ones in the group's order branch. A
        turn's draw depends only on the seed and the turn.
        """
        found: list[Fork] = []
        for trajectory in group.trajectories():
            turns = _turns(group, trajectory)
            if len(turns) < turn:
                continue
            (_, first), (cut, now) = turns[0], turns[turn - 1]
            change = _entropy(group, now) - _entropy(group, first)
            threshold = self.entropy_threshold
            if self.entropy_rule == "draw":
                threshold = random.Random(f"arpo/{seed}/{now}").random()
            if self.entropy_base + self.entropy_gain * change > threshold:
                found.append(Fork(trajectory.id, cut))
        return found[: max(0, self.missing_rollouts(group))]

    def credit(self, group: Group) -> dict[str, list[Credit]]:
        """GRPO's advantage over all scored members, each on its whole path; a slot weighs 1/N."""
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

    def bounds(self, questions: int) -> Bounds:
        """Branches count among the N, and may branch again."""
        return Bounds(self.rollouts, sources=None)


def _entropy(group: Group, segment: str) -> float:
    if segment not in group.entropies:
        raise TreeError(
            f"group {group.id}: no entropy of turn {segment}; ARPO needs an engine that returns "
            f"its {TOP_LOGPROBS} highest logprobs"
        )
    return group.entropies[segment]


def _turns(group: Group, trajectory: Trajectory) -> list[tuple[int, str]]:
    """The (path offset, segment id) of each policy turn of the trajectory's path."""
    turns: list[tuple[int, str]] = []
    position = 0
    for segment in group.after_prompt(trajectory):
        if segment.origin is Origin.POLICY and (not turns or turns[-1][1] != segment.id):
            turns.append((position, segment.id))
        position += len(segment)
    return turns
