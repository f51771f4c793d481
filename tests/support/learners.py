"""A learner of the tiny checkpoint, and the gradient that one update computes."""

from __future__ import annotations

from functools import partial

import torch

from axpo.algorithms.losses import ClipLoss
from axpo.config import OptimizerSettings
from axpo.models.loading import Checkpoint
from axpo.training.learner import Learner
from axpo.training.objective import Objective
from axpo.tree import Group

CLIP_KL = partial(ClipLoss().of, kl=0.05)


def trainer(
    checkpoint: Checkpoint, reference: Checkpoint | None = None, total: int = 10, **values
) -> Learner:
    settings = {"learning_rate": 1e-3, "max_grad_norm": 1e9} | values
    return Learner(checkpoint, reference, OptimizerSettings.model_validate(settings), total)


def flat(checkpoint: Checkpoint) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in checkpoint.model.parameters()])


def caught_gradient(
    some: Learner, groups: list[Group], objective: Objective
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
