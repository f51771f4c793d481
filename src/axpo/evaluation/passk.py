"""Pass@1 and the unbiased Pass@k of Chen et al. (arXiv 2107.03374), per question and as a mean.

A rollout is right where it is solved (`Trajectory.solved`). Unscored rollouts leave n; a question
with fewer than k scored ones has no estimate and is dropped, which the mean reports. The floor
leaves nothing out: there they count as wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from axpo.algorithms.subgroups import scored
from axpo.tree import Group, Trajectory


@dataclass(frozen=True, slots=True)
class PassAtK:
    """Mean over questions, None where every question was dropped."""

    value: float | None
    questions: int
    dropped: int


def pass_at_k(n: int, c: int, k: int) -> float:
    """1 - C(n-c, k) / C(n, k): the chance that k of n samples, c of them right, hold a right one.

    Needs n >= k >= 1 and 0 <= c <= n.
    """
    if not (n >= k >= 1 and 0 <= c <= n):
        raise ValueError(f"Pass@{k} of {c} right in {n}: expected n >= k >= 1 and 0 <= c <= n")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def tally(trajectories: Iterable[Trajectory]) -> tuple[int, int]:
    """(scored, right) among `trajectories`."""
    found = [t.solved for t in scored(trajectories)]
    return len(found), sum(map(bool, found))


def question_pass_at_k(group: Group, k: int) -> float | None:
    """The question's estimate; None with fewer than k scored rollouts."""
    n, c = tally(group.rollouts)
    return pass_at_k(n, c, k) if n >= k else None


def floor_pass_at_k(group: Group, k: int) -> float | None:
    """The question's estimate with unscored rollouts as wrong ones; None with fewer than k."""
    n, c = len(group.rollouts), tally(group.rollouts)[1]
    return pass_at_k(n, c, k) if n >= k else None


def mean_pass_at_k(groups: Sequence[Group], k: int) -> PassAtK:
    """The mean over the questions that have an estimate, and how many have none."""
    found = [p for group in groups if (p := question_pass_at_k(group, k)) is not None]
    value = math.fsum(found) / len(found) if found else None
    return PassAtK(value, len(found), len(groups) - len(found))
