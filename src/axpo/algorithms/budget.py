"""How many prefixes a batch may resample, and which (arXiv 2605.28774)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from axpo.algorithms.ranking import Candidate, rank
from axpo.config import AlgorithmSettings


@dataclass(frozen=True, slots=True)
class Plan:
    """Grow `continuations` trajectories from `source`'s path up to offset `cut`."""

    group: str
    source: str
    cut: int
    confidence: float
    continuations: int


def prefix_budget(questions: int, settings: AlgorithmSettings) -> int:
    """M = floor(r B N / K): never more than floor(r B N) extra continuations a batch."""
    # The decimal that the recipe says, not its binary neighbour: 0.07 * 100 must not lose one.
    extra = Fraction(repr(settings.extra_budget)) * questions * settings.rollouts
    return math.floor(extra / settings.continuations)


def breadth_first(
    candidates: Sequence[Sequence[Candidate]],
    questions: int,
    settings: AlgorithmSettings,
    seed: int,
    pending: int = 0,
) -> list[Plan]:
    """Spend the budget over the triggered questions' `candidates` (one list a question).

    Every question gets its first prefix before any gets a second; where the budget ends inside
    a round, the least confident of that round go first (our choice). What is not used is not
    carried over.

    `pending` of the `questions` are still being sampled: what is returned is chosen whatever
    they turn out to be, as if each of them came first in every round.
    """
    queues = [rank(c, settings, seed) for c in candidates if c]
    left = prefix_budget(questions, settings)
    chosen: list[Candidate] = []
    depth = 0
    while left > pending and (turn := [queue[depth] for queue in queues if depth < len(queue)]):
        taken = rank(turn, settings, seed)[: left - pending]
        chosen += taken
        left -= len(taken) + pending
        depth += 1
    return [Plan(c.group, c.source, c.cut, c.confidence, settings.continuations) for c in chosen]
