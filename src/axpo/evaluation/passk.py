"""Pass@1 and the unbiased Pass@k of Chen et al. (arXiv 2107.03374) for a question.

A rollout is right where it is solved (`Trajectory.solved`). Unscored rollouts are not counted in n;
a question with fewer than k scored rollouts has no estimate. The floor leaves nothing out: it
counts unscored rollouts as wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from axpo.algorithms.subgroups import scored
from axpo.tree import Group, Trajectory


def pass_at_k(n: int, c: int, k: int) -> float:
    """1 - C(n-c, k) / C(n, k): the chance that k of n samples, c of them right, hold a right one.

    Needs n >= k >= 1 and 0 <= c <= n.
    """
    if not (n >= k >= 1 and 0 <= c <= n):
        raise ValueError(f"Pass@{k} of {c} right in {n}: expected n >= k >= 1 and 0 <= c <= n")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def tally(trajectories: Iterable[Trajectory]) -> tuple[int, int]:
    """How many of the `trajectories` are scored, and how many of those are right."""
    found = [t.solved for t in scored(trajectories)]
    return len(found), sum(map(bool, found))


def question_pass_at_k(group: Group, k: int) -> float | None:
    """The question's Pass@k; None with fewer than k scored rollouts."""
    n, c = tally(group.rollouts)
    return pass_at_k(n, c, k) if n >= k else None


def floor_pass_at_k(group: Group, k: int) -> float | None:
    """The question's Pass@k if unscored rollouts are wrong; None with fewer than k rollouts."""
    n, c = len(group.rollouts), tally(group.rollouts)[1]
    return pass_at_k(n, c, k) if n >= k else None
