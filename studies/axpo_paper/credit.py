"""The credit that training gave to first tool calls, and what resampling recovered, from the trees
that the runs saved.

Two tokens of a first call decide whether a policy goes on calling tools: its opening tag (to call
at all; credited by the rollout itself or, if it was resampled, by its prefix) and its last token
(this call rather than another; in rollouts and continuations alike). A source's own failed call is
masked, and so has no credit (arXiv 2605.28774).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from axpo.algorithms.subgroups import family_of
from axpo.folder import RunFolder
from axpo.store import load_groups
from axpo.tree import Group, Trajectory

ALL = "all"


def saved_groups(run: Path) -> list[Group]:
    """All trees that the training run in this folder saved, without pictures."""
    files = RunFolder(run).saved_trees().values()
    return [group for file in files for group in load_groups(file)]


def recovered(groups: Iterable[Group]) -> dict[str, dict[str, float]]:
    """Part ("all" and each family with branches) -> shares with a right continuation.

    `prefixes`: of the resampled prefixes; `subgroups`: of the questions that had any, all-wrong
    subgroups (the paper's 0.12 to 0.15). Branches without a scored continuation are left out.
    """
    found: dict[str, list[list[bool]]] = {}
    for group in groups:
        if known := [b.recovered for b in group.branches if b.recovered is not None]:
            for part in _parts(group):
                found.setdefault(part, []).append(known)
    return {
        part: {
            "prefixes": sum(map(sum, known)) / sum(map(len, known)),
            "subgroups": sum(map(any, known)) / len(known),
        }
        for part, known in found.items()
    }


def call_credit(groups: Iterable[Group]) -> dict[str, dict[str, float]]:
    """Part ("all" and each family that called tools) -> figures of its first calls.

    `tag_advantage`: mean over opening tags. `credited`, `blamed`, `no_signal`: shares of the calls
    whose last token has a positive, a negative and no advantage. A token that several loss items
    train counts for each; one that none trains has 0. Unscored trajectories are left out.
    """
    tags: dict[str, list[float]] = {}
    ends: dict[str, list[float]] = {}
    for group in groups:
        for trajectory in group.trajectories():
            if not trajectory.calls or not trajectory.scored:
                continue
            first, own = trajectory.calls[0], group.offset(trajectory)
            for part in _parts(group):
                tags.setdefault(part, []).extend(_advantages(trajectory, first.start, own))
                ends.setdefault(part, []).extend(_advantages(trajectory, first.end - 1, own))
    return {
        part: {
            "tag_advantage": sum(tags[part]) / len(tags[part]),
            "credited": sum(a > 0 for a in found) / len(found),
            "blamed": sum(a < 0 for a in found) / len(found),
            "no_signal": sum(a == 0 for a in found) / len(found),
        }
        for part, found in ends.items()
        if found and tags[part]
    }


def _parts(group: Group) -> list[str]:
    family = family_of(group)
    return [ALL] if family is None else [ALL, family]


def _advantages(trajectory: Trajectory, offset: int, own: int) -> list[float]:
    """The advantages of the token at this path offset; the trajectory's own tokens begin at
    `own`."""
    found = [c.advantage for c in trajectory.credit if c.start <= offset < c.end]
    return found or [0.0] * (offset >= own)
