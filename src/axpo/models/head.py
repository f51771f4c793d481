"""The output layer, whose logits are float32 whatever the model's dtype is.

In bfloat16 a logit of 16 is rounded to a multiple of 1/8, and engine and trainer, whose hidden
states differ by a rounding, end on other multiples. MiniMax-M1 (arXiv 2506.13585) found its main
difference between sampling and training here. Weights and hidden states stay as they are; their
products are summed, and kept, in float32. Both sides must do so: one alone lands between the
other's multiples.
"""

from __future__ import annotations

from typing import Any

import torch

WORDS = 1024
"""Rows of the weight that are widened at once where no kernel does it: they stay in the cache."""


def float32_logits(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Logits [n, V] (float32) of `model`'s output layer after `hidden` [n, hidden]; differentiable.

    The gradient is rounded to the model's dtype for its two products, as autocast does.
    """
    if model.lm_head.weight.dtype == torch.float32:
        return model.lm_head(hidden)
    return _Float32Logits.apply(hidden, model.lm_head.weight)  # pyright: ignore


class _Float32Logits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(hidden, weight)
        if hidden.is_cuda:
            return torch.mm(hidden, weight.t(), out_dtype=torch.float32)
        wide = hidden.float()
        return torch.cat([wide @ part.float().t() for part in weight.split(WORDS)], dim=-1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden, weight = ctx.saved_tensors
        of_hidden, of_weight = ctx.needs_input_grad
        short = gradient.to(weight.dtype)
        return short @ weight if of_hidden else None, short.t() @ hidden if of_weight else None
