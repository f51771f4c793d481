"""RLTF (arXiv 2602.02482) learns from critiques what a second attempt did better.

Each of a question's N rollouts y0 gets a critique c0, and a second attempt y1 is sampled after
(x, y0, c0). Three terms are trained:

- GRPO on the first attempts, which are what counts when nobody criticises;
- self-distillation, the likelihood of y1 after the question alone: -A log pi(y1 | x) with
  A = R(y1) - mean R(y0), without ratio or deviation; tokens below a logprob floor are dropped;
- feedback modelling, the cross-entropy of c0 after (x, y0).

In the tree the critique follows its rollout's last turn, as policy tokens that nobody sampled. The
second attempt is a branch of its rollout at offset 0, because it is trained there, although it was
sampled after the critique (`axpo.rollout.critiques`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import model_validator

from axpo.algorithms.base import Algorithm, Bounds
from axpo.algorithms.credit import advantage
from axpo.algorithms.losses import TokenBatch, likelihood_loss
from axpo.algorithms.subgroups import rewards
from axpo.config.base import NonNegativeFloat
from axpo.metrics import Mean
from axpo.tree import Credit, Group, Origin, Stream, Trajectory

if TYPE_CHECKING:
    from torch import Tensor


class Rltf(Algorithm):
    """GRPO that also learns from critiques and second attempts."""

    needs_critic: ClassVar[bool] = True

    distill_weight: NonNegativeFloat = 0.1
    """Weight of -A log pi(second attempt | question) beside GRPO (RLTF's paper: 0.1)."""
    distill_floor: float = -5.0
    """Distilled tokens with a lower logprob are dropped (RLTF's paper: -5)."""
    feedback_weight: NonNegativeFloat = 0.1
    """Weight of the critiques' cross-entropy beside GRPO (RLTF's paper: 0.1)."""

    @model_validator(mode="after")
    def _weighted(self) -> Rltf:
        if self.aggregation != "question_mean":
            raise ValueError(
                f"aggregation: {self.aggregation!r} ignores the weights of RLTF's terms; "
                "set 'question_mean'"
            )
        return self

    def credit(self, group: Group) -> dict[str, list[Credit]]:
        """Items of first attempts (GRPO), of the critiques after them and of second attempts."""
        pool = rewards(group.rollouts)
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
            if start < stop and self.feedback_weight:
                share = self.feedback_weight * weight
                items[rollout.id].append(Credit(start, stop, 1.0, Stream.DEMONSTRATION, share))
        for branch in group.branches:
            for second in branch.continuations:
                if second.reward is not None and self.distill_weight:
                    share = self.distill_weight * weight
                    value = second.reward - mean
                    whole = Credit(0, second.tokens, value, Stream.DISTILLED, share)
                    items[second.id] = [whole]
        return items

    def token_loss(self, batch: TokenBatch) -> tuple[Tensor, dict[str, float]]:
        """The ratio's loss on the tokens that have a ratio, - sum w A logprob on the others.

        Distilled tokens with a logprob below the floor are dropped; they stay in the denominators.
        Further metrics are `nll` (of critiques' and distilled tokens) and `dropped` (tokens).
        """
        assert batch.likelihood is not None and batch.distilled is not None
        loss, stats = super().token_loss(batch.part(~batch.likelihood))
        dropped = batch.distilled & (batch.logprobs.detach() < self.distill_floor)
        more, figures = likelihood_loss(batch.part(batch.likelihood & ~dropped))
        return loss + more, stats | figures | {"dropped": Mean(dropped.sum())}

    def bounds(self, questions: int) -> Bounds:
        """One second attempt per first one, sampled after it and its critique."""
        return Bounds(
            2 * self.rollouts,
            extra=questions * self.rollouts,
            extra_name="second attempts",
            attempts=2,
            sources=self.rollouts,
        )


def critique_span(rollout: Trajectory) -> tuple[int, int, int]:
    """The offsets (end of the attempt, start of the critique's words, their end).

    All three are equal without a critique. The critique is the policy's only segment without
    logprobs; an observation opens its turn.
    """
    position = opening = 0
    for segment in rollout.segments:
        if segment.origin is Origin.POLICY and not segment.logprobs:
            return opening, position, position + len(segment)
        if segment.origin is Origin.OBSERVATION:
            opening = position
        position += len(segment)
    return position, position, position
