"""Float32 master weights, on which the optimizer works if the model's weights are bfloat16.

bfloat16 resolves about one part in 256. An update at RL's learning rates is smaller and would round
away if it were added to the weight itself, so each such weight has a master in float32. A gradient
is added to its master's as soon as a backward pass has computed it, so that micro-batches add up in
float32 and no second set of gradients is kept. Norm, clip and AdamW see masters only; `publish`
rounds them into the model. A float32 weight is its own master and costs nothing.

Weights, gradients and AdamW's moments take 16 bytes per trained parameter in float32, and 18 here.
bfloat16 saves time by faster kernels, and memory by half the activations, keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

_HOOK = "_axpo_master_hook"


class MasterWeights:
    """The masters of `weights`; `parameters` holds them in the same order.

    Gradients of bfloat16 weights are added to their master's `grad` (float32); the weight's own is
    None after a backward pass. A weight has one master; a new one replaces the one before.
    """

    def __init__(self, weights: Sequence[nn.Parameter]) -> None:
        self.parameters: list[nn.Parameter] = []
        self._rounded: list[torch.Tensor] = []
        self._masters: list[torch.Tensor] = []
        for weight in weights:
            if weight.dtype == torch.float32:
                self.parameters.append(weight)
                continue
            master = nn.Parameter(weight.detach().float())
            self.parameters.append(master)
            self._rounded.append(weight)
            self._masters.append(master)
            if (before := getattr(weight, _HOOK, None)) is not None:
                before.remove()
            setattr(weight, _HOOK, weight.register_post_accumulate_grad_hook(_moving_to(master)))

    @torch.no_grad()
    def publish(self) -> torch.Tensor | None:
        """Round the masters into the model's weights (to nearest, ties to even).

        Returns the share of rounded weights that took another value, on their device; None if all
        weights are float32. At RL's learning rates the share stays small for long: a master starts
        on the grid of bfloat16, and must move by half a step of it before its weight changes.
        """
        moved: list[torch.Tensor] = []
        for weight, master in zip(self._rounded, self._masters, strict=True):
            rounded = master.to(weight.dtype)
            moved.append((rounded != weight).sum())
            weight.copy_(rounded)
        if not moved:
            return None
        return torch.stack(moved).sum() / sum(weight.numel() for weight in self._rounded)

    def state(self) -> list[torch.Tensor]:
        """The masters of bfloat16 weights; empty for a float32 model."""
        return [master.detach() for master in self._masters]

    @torch.no_grad()
    def load(self, state: Sequence[torch.Tensor]) -> None:
        """Load a `state` in place, and round it into the model's weights.

        Raises `ValueError` if it belongs to a model of another dtype, with nothing changed.
        """
        if len(state) != len(self._masters):
            raise ValueError(
                f"the checkpoint holds {len(state)} master weights, expected "
                f"{len(self._masters)}: resume with the model.dtype that it was trained with"
            )
        for master, saved in zip(self._masters, state, strict=True):
            master.copy_(saved)
        for weight, master in zip(self._rounded, self._masters, strict=True):
            weight.copy_(master)


def _moving_to(master: nn.Parameter) -> Callable[[torch.Tensor], None]:
    """A hook that adds a weight's fresh gradient to its master's and frees it."""

    def move(weight: torch.Tensor) -> None:
        assert weight.grad is not None
        if master.grad is None:
            master.grad = weight.grad.float()
        else:
            master.grad.add_(weight.grad)  # The sum is float32.
        weight.grad = None

    return move
