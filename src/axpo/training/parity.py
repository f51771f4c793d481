"""Whether the engine samples from the model that is trained: its logprobs beside the trainer's.

The loss compares them as numerator and denominator of one ratio. A wrong pixel cap, dtype, ban or
weight shows here first, as figures, for whatever engine: rollouts of a few training questions,
tool turns and their pictures included, against the trainer's own packed forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from axpo.config import UserError
from axpo.rollout.agent import Agent
from axpo.rollout.sampling import sample_group, together
from axpo.training.packing import OldLogprobs
from axpo.training.trainer import Trainer
from axpo.tree import Credit, Group, Stream, Trajectory

QUESTIONS, ROLLOUTS = 4, 2
"""What is sampled for the check."""


@dataclass(frozen=True, slots=True)
class Parity:
    """Differences (nats) engine minus trainer over `tokens` sampled tokens.

    `ratio` is the mean of exp(trainer - engine): 1 where both are the same distribution.
    """

    tokens: int
    mean: float
    largest: float
    ratio: float

    def metrics(self, name: str) -> dict[str, float]:
        """As metrics `{name}_mean`, `{name}_max` and `{name}_ratio`."""
        return {
            f"{name}_mean": self.mean,
            f"{name}_max": self.largest,
            f"{name}_ratio": self.ratio,
        }


async def check_parity(
    agent: Agent, trainer: Trainer, groups: Sequence[Group], seed: int, limit: float
) -> Parity:
    """Sample rollouts of `groups` (new ones, which are used up) and compare.

    Raises `UserError` with the figures where the mean difference is above `limit`, and where
    nothing could be sampled.
    """
    await together([sample_group(agent, group, ROLLOUTS, seed) for group in groups])
    for group in groups:
        await agent.engine.release(group.id)
    found = compare(trainer, groups)
    if found is None:
        fault = next((t.fault for g in groups for t in g.rollouts if t.fault), "no token")
        raise UserError(f"the engine sampled nothing to compare with the trainer: {fault}")
    if not found.mean <= limit:
        raise UserError(
            f"the engine's logprobs differ from the trainer's by {found.mean:.2g} nats a token on "
            f"average (at most {found.largest:.2g}, over {found.tokens} tokens), the limit is "
            f"{limit:g}: the engine does not sample from the model that is trained. Look at dtype, "
            "pixel limits and weights; engine.vllm.max_logprob_difference sets the limit"
        )
    return found


def compare(trainer: Trainer, groups: Sequence[Group]) -> Parity | None:
    """The differences over all tokens that the rollouts of `groups` sampled; None without any.

    Replaces the rollouts' credit.
    """
    for rollout in (t for group in groups for t in group.rollouts):
        rollout.credit = [Credit(0, rollout.tokens, 1.0, Stream.ROLLOUT, 1.0)]
    sampled = [g for g in groups if any(t.tokens for t in g.rollouts)]
    return mismatch(sampled, trainer.recompute_logprobs(sampled, kl=False))


def mismatch(groups: Sequence[Group], trained: OldLogprobs) -> Parity | None:
    """The engine's logprobs in `groups` against `trained`, the trainer's, where both know one."""
    differences = [
        engine - ours
        for group in groups
        for trajectory in group.trajectories()
        for engine, ours in _pairs(trajectory, trained.get((group.id, trajectory.id), ()))
    ]
    if not differences:
        return None
    sizes = [abs(d) for d in differences]
    return Parity(
        tokens=len(sizes),
        mean=sum(sizes) / len(sizes),
        largest=max(sizes),
        ratio=sum(math.exp(-d) for d in differences) / len(sizes),
    )


def _pairs(trajectory: Trajectory, trained: Sequence[float]) -> list[tuple[float, float]]:
    """(engine's, trainer's) logprob of each sampled token that is trained."""
    if not trained:
        return []
    engine: list[float] = []
    for segment in trajectory.segments:
        engine += segment.logprobs or (math.nan,) * len(segment)
    pairs = zip(engine, trained, strict=True)
    return [pair for pair in pairs if not any(map(math.isnan, pair))]
