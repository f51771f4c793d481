"""Which failed prefixes are resampled (arXiv 2605.28774): for AXPO, and for the diagnosis.

A question is triggered if its tool-using rollouts are all wrong. Each of them has one prefix, which
ends with the opening tag of a call. The least confident prefixes of the batch are resampled, as far
as the budget of floor(r B N) continuations lasts. The ablations are settings.

`branch_at = "least_confident"` goes beyond the paper: it may freeze a longer prefix, through the
tag of a later call of a multi-turn rollout.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction as Exact
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from axpo.algorithms.base import Algorithm, Bounds, Plan
from axpo.algorithms.confidence import span_confidence
from axpo.algorithms.subgroups import all_wrong, subgroup
from axpo.config.base import Fraction
from axpo.tree import Call, Group, Origin, Trajectory


@dataclass(frozen=True, slots=True)
class Candidate:
    """A prefix that could be resampled: `source`'s path up to offset `cut`."""

    group: str
    source: str
    cut: int
    confidence: float


class Resampling(Algorithm):
    """An algorithm that resamples failed prefixes; subclasses say how they are credited."""

    resamples_failures: ClassVar[bool] = True

    continuations: Annotated[int, Field(ge=2)] = 4
    """K, continuations per selected prefix (paper: 4)."""
    extra_budget: Fraction = 0.25
    """r: at most floor(r B N) extra continuations per batch (paper: 0.25)."""
    prefix: Literal["tool_call", "scratch"] = "tool_call"
    """"scratch" resamples whole rollouts: the ablation without prefix fix."""
    resample: Literal["tool", "no_tool"] = "tool"
    """"no_tool" triggers on and resamples no-tool rollouts instead (ablation)."""
    ranking: Literal["confidence", "random"] = "confidence"
    """"random" ranks candidate prefixes by a seeded draw (ablation)."""
    branch_at: Literal["first", "least_confident"] = "first"
    """The call that a prefix ends in: the first (paper), or the least confident of those that an
    observation answered (our extension, beyond the paper)."""

    @model_validator(mode="after")
    def _branches(self) -> Resampling:
        if "branch_at" in self.model_fields_set:
            for key, needed in (("prefix", "tool_call"), ("resample", "tool")):
                if (value := getattr(self, key)) != needed:
                    raise ValueError(f"branch_at: no effect with {key} = {value!r}; remove it")
        return self

    @property
    def continues(self) -> bool:
        """Whether continuations begin inside their source; "scratch" ones begin at the prompt."""
        return self.prefix != "scratch"

    def prefix_budget(self, questions: int) -> int:
        """M = floor(r B N / K) prefixes: at most floor(r B N) extra continuations per batch."""
        # This takes the decimal of the recipe, not its binary neighbour: 0.07 * 100 is exactly 7.
        extra = Exact(repr(self.extra_budget)) * questions * self.rollouts
        return math.floor(extra / self.continuations)

    def candidates(self, group: Group) -> list[Candidate]:
        """The group's prefixes that may be resampled; empty if the group is not triggered."""
        members = subgroup(group, tool=self.resample == "tool")
        if not all_wrong(members):
            return []
        make = self._tool_candidate if self.resample == "tool" else self._answer_candidate
        return [made for rollout in members if (made := make(group, rollout)) is not None]

    def plan(self, groups: Sequence[Group], seed: int, pending: int = 0) -> list[Plan]:
        """The batch's branches: triggered questions breadth-first, at most floor(r B N / K)."""
        questions = len(groups) + pending
        if self.prefix_budget(questions) <= pending:
            return []
        found = [self.candidates(group) for group in groups]
        return self.breadth_first(found, questions, seed, pending)

    def breadth_first(
        self,
        candidates: Sequence[Sequence[Candidate]],
        questions: int,
        seed: int,
        pending: int = 0,
    ) -> list[Plan]:
        """Spend the budget over the triggered questions' `candidates` (one list per question).

        Every question gets its first prefix before any gets a second; if the budget ends inside a
        round, the least confident of that round go first (our choice). What is not used is not
        carried over.

        Only branches that are certain are returned: those that the budget reaches even if each of
        the `pending` questions takes one branch in every round.
        """
        queues = [self.rank(c, seed) for c in candidates if c]
        left = self.prefix_budget(questions)
        chosen: list[Candidate] = []
        depth = 0
        while left > pending and (turn := [queue[depth] for queue in queues if depth < len(queue)]):
            taken = self.rank(turn, seed)[: left - pending]
            chosen += taken
            left -= len(taken) + pending
            depth += 1
        return [Plan(c.group, c.source, c.cut, c.confidence, self.continuations) for c in chosen]

    def rank(self, candidates: Sequence[Candidate], seed: int) -> list[Candidate]:
        """The candidates, least confident first; ties go by source id, never by order of rollouts.

        `ranking = "random"` orders them by a draw from (seed, source id) instead (ablation).
        """
        if self.ranking == "random":
            return sorted(candidates, key=lambda c: (_draw(seed, c.source), c.source))
        return sorted(candidates, key=lambda c: (c.confidence, c.source))

    def _tool_candidate(self, group: Group, rollout: Trajectory) -> Candidate:
        """The rollout's prefix up to and including the opening tag of its first call.

        Confidence is taken over the whole call, from opening tag to closing tag. With
        `prefix = "scratch"` the whole rollout is resampled (cut 0) and ranked in the same way. With
        `branch_at = "least_confident"` (beyond the paper) a later call may take the first one's
        place; then all that was thought, called and observed before it is in the frozen prefix.
        """
        calls = rollout.calls[:1] if self.branch_at == "first" else _branching_calls(rollout)
        ranked = [(span_confidence(rollout.segments, c.start, c.end), c.start) for c in calls]
        confidence, start = min(ranked)
        cut = start + 1 if self.prefix == "tool_call" else 0
        return Candidate(group.id, rollout.id, cut, confidence)

    def _answer_candidate(self, group: Group, rollout: Trajectory) -> Candidate | None:
        """The ablation's prefix of a no-tool rollout: its thinking, ranked by its answer's tokens.

        None if thinking never ended, because there is no answer to resample (choice).
        """
        if rollout.answer_start is None or rollout.answer_start >= rollout.tokens:
            return None
        confidence = span_confidence(rollout.segments, rollout.answer_start, rollout.tokens)
        cut = rollout.answer_start if self.prefix == "tool_call" else 0
        return Candidate(group.id, rollout.id, cut, confidence)

    def bounds(self, questions: int) -> Bounds:
        """The budget's continuations, of which one question may get all.

        A rollout's first call is in its first turn, because a turn without a call is its last.
        """
        extra = int(self.extra_budget * questions * self.rollouts)
        return Bounds(
            self.rollouts + min(extra, self.rollouts * self.continuations),
            extra=extra,
            extra_name="continuations",
            sources=0 if self.prefix == "scratch" else self.rollouts,
            first_turn=self.branch_at == "first",
        )


def _branching_calls(rollout: Trajectory) -> list[Call]:
    """The first call, and the later calls that an observation answered.

    Calls that no observation answered stand in a last turn, after which the limits leave no room.
    """
    answered = 0
    position = 0
    for segment in rollout.segments:
        if segment.origin is Origin.OBSERVATION:
            answered = position
        position += len(segment)
    return [c for i, c in enumerate(rollout.calls) if i == 0 or c.end <= answered]


def _draw(seed: int, source: str) -> bytes:
    return hashlib.sha256(f"{seed}/{source}".encode()).digest()
