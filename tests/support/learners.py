"""A learner of the tiny checkpoint, and the gradient that one update computes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch

from axpo.algorithms.losses import ClipLoss, TokenBatch
from axpo.config import OptimizerSettings
from axpo.models.loading import Checkpoint
from axpo.training.learner import LocalLearner
from axpo.training.objective import Objective
from axpo.tree import Group

if TYPE_CHECKING:
    from axpo.algorithms.losses import Loss

CLIP_KL = partial(ClipLoss().of, kl=0.05)


def trainer(
    checkpoint: Checkpoint, reference: Checkpoint | None = None, total: int = 10, **values
) -> LocalLearner:
    settings = {"learning_rate": 1e-3, "max_grad_norm": 1e9} | values
    return LocalLearner(checkpoint, reference, OptimizerSettings.model_validate(settings), total)


class Steep:
    """A loss of which call `number` has a finite value with an infinite slope (sqrt at 0)."""

    def __init__(self, number: int, loss: Loss) -> None:
        self.number, self.loss, self.calls = number, loss, 0

    def __call__(self, batch: TokenBatch) -> tuple[torch.Tensor, Mapping[str, float]]:
        value, stats = self.loss(batch)
        self.calls += 1
        if self.calls == self.number:
            value = value + (batch.logprobs.sum() * 0.0).abs().sqrt()
        return value, stats


def flat(checkpoint: Checkpoint) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in checkpoint.model.parameters()])


def caught_gradient(
    some: LocalLearner, groups: list[Group], objective: Objective
) -> tuple[torch.Tensor, dict[str, float]]:
    """The gradient that reaches the optimizer in one update; the weights stay."""
    caught = []

    def step() -> None:
        parameters = some.checkpoint.model.parameters()
        caught.append(
            torch.cat(
                [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
            )
        )

    some.optimizer.step = step  # pyright: ignore
    metrics = some.update(groups, objective)
    return caught[0].clone(), metrics
