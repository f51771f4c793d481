"""Gradients of a tree whose update is computed in pieces."""

from __future__ import annotations

import torch

from axpo.algorithms.losses import TokenBatch
from axpo.models.loading import Checkpoint
from axpo.training.packing import PackedTree
from axpo.training.pieces import training_passes
from tests.support.packing import CLIP


def flat_gradient(checkpoint: Checkpoint) -> torch.Tensor:
    """The gradients that backward left, which are cleared."""
    parameters = list(checkpoint.model.parameters())
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    checkpoint.model.zero_grad(set_to_none=True)
    return torch.cat([g.flatten() for g in found])


def through_pieces(
    checkpoint: Checkpoint, forest: PackedTree, pixels: dict, budget: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logprobs and gradient of the clipped loss."""
    logprobs = torch.full((forest.index.numel(),), float("nan"))
    for some in training_passes(checkpoint, forest, pixels, 1.0, budget):
        at = some.trained
        logprobs[at] = some.logprobs.detach()
        batch = TokenBatch(
            some.logprobs, forest.old[at], None, forest.advantages[at], forest.weights[at]
        )
        some.backward(CLIP(batch)[0])
    return logprobs, flat_gradient(checkpoint)


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()
