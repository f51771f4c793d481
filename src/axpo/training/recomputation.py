"""Gradient checkpointing (arXiv 1604.06174): layers keep their input and are computed again.

Every text layer and every block of the vision tower keeps only its input for backward, and runs a
second time when its backward comes. This happens only while a graph is being made: sampling,
reference and the trunk of pieces are computed as before. The result is the same to the bit on the
same kernels, because no family has anything random.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from axpo.models.families import family_of
from axpo.training.attention import TreeLayout

Forward = Callable[..., torch.Tensor]


def recompute_layers(model: Any) -> None:
    """Let the layers of `model` train this way from now on."""
    family = family_of(model.config)
    for layer in (*family.decoder(model).layers, *family.vision_blocks(model)):
        layer.forward = partial(_recomputed, layer.forward)


def _recomputed(forward: Forward, hidden: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    if not torch.is_grad_enabled():
        return forward(hidden, **kwargs)
    again = False

    def run(hidden: torch.Tensor) -> torch.Tensor:
        nonlocal again
        tree: TreeLayout | None = kwargs.get("tree")
        if again and tree is not None:
            # What later pieces see was kept the first time, and they are done by now.
            return forward(hidden, **(kwargs | {"tree": tree.without_keeping()}))
        again = True
        return forward(hidden, **kwargs)

    out = checkpoint(run, hidden, use_reentrant=False, preserve_rng_state=False)
    assert isinstance(out, torch.Tensor)
    return out
