"""Loss items: a group's credit, checked, as runs of policy tokens with their weights.

An update has millions of tokens, so everything here handles runs, never single tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from axpo.errors import TreeError
from axpo.tree import Credit, Group, Lineage, Origin, Stream, Trajectory

Aggregation = Literal["question_mean", "token_mean"]


@dataclass(frozen=True, slots=True)
class TokenRun:
    """The policy tokens at the path offsets [start, end), which `owner` stores."""

    owner: Trajectory
    start: int
    end: int

    def within(self, start: int, end: int) -> TokenRun:
        """The part of the run in [start, end)."""
        return replace(self, start=max(self.start, start), end=min(self.end, end))


@dataclass(frozen=True, slots=True)
class Item:
    """One credit and what it trains: `runs` of policy tokens in the order of the path.

    The credit's trajectory stores them; for a path credit also its sources.
    """

    trajectory: Trajectory
    credit: Credit
    runs: tuple[TokenRun, ...]

    def __len__(self) -> int:
        """The number of tokens that the item trains."""
        return sum(run.end - run.start for run in self.runs)

    @property
    def offsets(self) -> tuple[int, ...]:
        """The path offsets of the item's tokens."""
        return tuple(offset for run in self.runs for offset in range(run.start, run.end))


def items(group: Group) -> list[Item]:
    """The group's loss items in trajectory order.

    Raises `TreeError`, naming the trajectory, if a credit leaves the trajectory's own tokens (for a
    path credit its path), holds no policy token, overlaps another credit, or needs old logprobs
    that were not recorded.
    """
    found: list[Item] = []
    lineage = group.lineage()
    for trajectory in group.trajectories():
        if not trajectory.credit:
            continue
        whole = any(credit.stream is Stream.PATH for credit in trajectory.credit)
        path = _policy_runs(lineage, trajectory, whole)
        own = lineage.offset(trajectory)
        taken: list[TokenRun] = []
        for credit in trajectory.credit:
            name = (
                f"group {group.id}, trajectory {trajectory.id}: {credit.stream} credit "
                f"[{credit.start}, {credit.end})"
            )
            start, end = 0 if credit.stream is Stream.PATH else own, own + trajectory.tokens
            if not start <= credit.start <= credit.end <= end:
                raise TreeError(f"{name} leaves the trajectory's own tokens [{start}, {end})")
            parts = [(run.within(credit.start, credit.end), seen) for run, seen in path]
            parts = [(run, seen) for run, seen in parts if run.start < run.end]
            runs = tuple(run for run, _ in parts)
            if not runs:
                raise TreeError(f"{name} holds no policy token; leave an empty item out")
            shared = [(max(a.start, b.start), min(a.end, b.end)) for a in taken for b in runs]
            if both := [start for start, end in shared if start < end]:
                raise TreeError(
                    f"{name} overlaps another credit at offset {min(both)}; "
                    "a token belongs to one stream"
                )
            if credit.stream is not Stream.DEMONSTRATION and not all(seen for _, seen in parts):
                raise TreeError(f"{name} covers policy tokens without logprobs; who sampled them?")
            taken += runs
            found.append(Item(trajectory, credit, runs))
    return found


def _policy_runs(
    lineage: Lineage, trajectory: Trajectory, whole: bool
) -> list[tuple[TokenRun, bool]]:
    """The trajectory's own policy segments as runs, or those of its `whole` path, each with whether
    its logprobs were recorded."""
    runs: list[tuple[TokenRun, bool]] = []
    segments, start = trajectory.segments, lineage.offset(trajectory)
    if whole:
        segments, start = lineage.after_prompt(trajectory), 0
    # A path's segments are cut where its trajectories are, so that each has one owner.
    for segment in segments:
        end = start + len(segment)
        if segment.origin is Origin.POLICY:
            run = TokenRun(lineage.owner(trajectory, start), start, end)
            runs.append((run, bool(segment.logprobs)))
        start = end
    return runs


class Size(NamedTuple):
    """How many questions an update has, and how many tokens their items train."""

    questions: int
    tokens: int

    @classmethod
    def of(cls, groups: Sequence[Sequence[Item]]) -> Size:
        """The size of `groups`, the `items` of each."""
        return cls(len(groups), sum(len(item) for group in groups for item in group))

    @classmethod
    def total(cls, parts: Sequence[Size]) -> Size:
        """The size of an update that consists of `parts`."""
        return cls(sum(part.questions for part in parts), sum(part.tokens for part in parts))


def item_weights(
    groups: Sequence[Sequence[Item]], aggregation: Aggregation, whole: Size | None = None
) -> list[list[float]]:
    """The weight of each token, per item; `groups` are the `items` of ALL groups of an update, or
    of a part of it, whose whole size is then given.

    question_mean (Eq. 5) is the credit's weight over the item's number of tokens, over the number
    of questions. token_mean is one over the number of all trained tokens; credit weights do not
    matter. Both denominators count the whole update, with groups without credit, every micro-batch
    and every rank: with local counts a token's weight would depend on what it is packed with, and
    the parts would not add up to the batch.
    """
    questions, tokens = whole or Size.of(groups)
    if aggregation == "question_mean":
        return [[item.credit.weight / len(item) / questions for item in group] for group in groups]
    return [[1.0 / tokens for _ in group] for group in groups]
