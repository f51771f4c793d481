"""What an algorithm is: its settings, its needs, and pure functions on groups.

In a step, a group grows `first_rollouts` from its prompt, then, turn by turn, those that `forks`
asks for, until it has its `rollouts`. `plan` says what is resampled across the batch, `credit` what
each token is worth, and `token_loss` what the learner minimises. Nothing here touches a model or
changes a group. A new algorithm overrides what it does differently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from axpo.algorithms.losses import ClipLoss, PolicyLoss, TokenBatch
from axpo.config.base import NonNegativeFloat, Part, PositiveFloat
from axpo.tree import Credit, Group

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Plan:
    """A request to grow `continuations` trajectories from `source`'s path up to offset `cut`."""

    group: str
    source: str
    cut: int
    confidence: float
    continuations: int


@dataclass(frozen=True, slots=True)
class Fork:
    """A request for one more rollout from `source`'s path up to offset `cut`."""

    source: str
    cut: int


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most that an algorithm samples, from which costs are estimated.

    `paths` is the most trajectories in one question's tree; `extra` is the most in a batch beside
    its rollouts, and `extra_name` what they are called. A path holds at most `attempts` times
    `rollout.max_tokens`. Trajectories branch from at most `sources` others of their tree (None:
    from any of them); with `first_turn` only within the first turn of their source.
    """

    paths: int
    extra: int = 0
    extra_name: str = ""
    attempts: int = 1
    sources: int | None = 0
    first_turn: bool = False


class Algorithm(Part):
    """Group-relative policy optimisation of N rollouts per question, which others build on."""

    kind: ClassVar[str] = "algorithm"
    top_logprobs: ClassVar[int] = 0
    """How many of the highest logprobs the engine returns at each token. From 1 on, a group knows
    the entropy of its turns' openings (`axpo.algorithms.entropy`)."""
    needs_critic: ClassVar[bool] = False
    """Whether each rollout gets a critique by the task (`axpo.tasks.base.Critic`), and a second
    attempt after it."""
    resamples_failures: ClassVar[bool] = False
    """Whether `plan` grows branches from failed rollouts alone, so that a recovered branch is one
    that resampling saved."""

    rollouts: Annotated[int, Field(ge=2)] = 8
    """N, rollouts per question (paper: 8; ARPO's: 16, its branches among them)."""
    loss: PolicyLoss = ClipLoss()
    """How the ratio enters the loss: name = "clip" is DAPO's asymmetric clip, "cispo" the capped
    weight of arXiv 2506.13585."""
    kl: NonNegativeFloat = 1e-3
    """beta of the k3 KL estimate to the SFT policy (paper: 1e-3)."""
    max_k3: PositiveFloat | None = None
    """A token's k3 is at most this (verl: 10). Off by default."""
    aggregation: Literal["question_mean", "token_mean"] = "question_mean"
    """question_mean is Eq. 5: each slot weighs 1/N, then the mean over questions (choice)."""

    @model_validator(mode="after")
    def _consistent(self) -> Algorithm:
        if self.kl == 0 and self.max_k3 is not None:
            raise ValueError("max_k3: no effect with kl = 0; remove it")
        if self.loss.name == "cispo" and self.aggregation != "token_mean":
            raise ValueError(
                f"aggregation: {self.aggregation!r}, but CISPO is token-normalised; "
                "set 'token_mean'"
            )
        return self

    @property
    def first_rollouts(self) -> int:
        """The number of a question's rollouts that start before any is forked; at most N."""
        return self.rollouts

    def missing_rollouts(self, group: Group) -> int:
        """The number of rollouts that the group lacks to have N."""
        return self.rollouts - sum(1 for _ in group.trajectories())

    @property
    def continues(self) -> bool:
        """Whether trajectories go on from inside others, by `plan` or `forks`. Then an environment
        must be one that can be rebuilt."""
        mine, base = type(self), Algorithm
        return mine.plan is not base.plan or mine.forks is not base.forks

    def forks(self, group: Group, turn: int, seed: int) -> list[Fork]:
        """The forks of those trajectories of `group` that have a `turn`-th turn (from 2 on).

        It is only called if `first_rollouts` is less than N. `seed` fixes what is drawn.
        """
        return []

    def plan(self, groups: Sequence[Group], seed: int, pending: int = 0) -> list[Plan]:
        """What is resampled of a batch.

        While `pending` more of its groups are still being sampled, only plans are returned that
        hold however those turn out.
        """
        return []

    def credit(self, group: Group) -> Mapping[str, list[Credit]]:
        """The loss items of each trajectory by its id; a trajectory without any is not trained."""
        raise NotImplementedError(f"{type(self).__name__} has no credit()")

    def token_loss(self, batch: TokenBatch) -> tuple[Tensor, dict[str, float]]:
        """The loss of a micro-batch's tokens, a scalar with a gradient, and its metrics.

        In the metrics (`axpo.metrics`) a mean's parts are sums over tokens.
        """
        return self.loss.of(batch, self.kl, self.max_k3)

    def bounds(self, questions: int) -> Bounds:
        """The most that is sampled in a batch of `questions`."""
        return Bounds(self.rollouts)
