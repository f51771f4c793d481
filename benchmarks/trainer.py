"""What every baseline of the update benchmarks shares: a model, its optimizer and the step."""

from __future__ import annotations

import torch

from axpo.config import OptimizerSettings
from axpo.models.loading import Checkpoint


class Trainer:
    """Updates `checkpoint`'s model in place; AdamW as in `axpo`'s learner."""

    def __init__(self, checkpoint: Checkpoint, settings: OptimizerSettings) -> None:
        checkpoint.model.requires_grad_(True)
        self.checkpoint = checkpoint
        self.parameters = list(checkpoint.model.parameters())
        self.max_grad_norm = settings.max_grad_norm
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=settings.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def step(self, loss: float) -> dict[str, float]:
        """The optimizer's step on the gradients that are there; returns `loss`, the update's, and
        the gradient's norm before clipping."""
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {"loss": loss, "grad_norm": norm.item()}
