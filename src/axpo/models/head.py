"""The output layer. Its logits are float32 on a GPU, whatever the model's dtype is.

In bfloat16 a logit of 16 is rounded to a multiple of 1/8. The hidden states of engine and trainer
differ by roundings, so their logits would be rounded to different multiples; MiniMax-M1
(arXiv 2506.13585) found its main difference between sampling and training here. A GPU multiplies
bfloat16 into float32 in one kernel. A CPU would have to widen the weight each time (six times as
long for a decoding step of 152K words at width 2,048), so there the layer keeps its dtype. Engine,
trainer and servers must all do the same (`head_dtype`): one that differs would have other logits.
"""

from __future__ import annotations

from typing import Any

import torch

LOGITS_AT_ONCE = 2**26
"""The most logits (tokens x vocabulary) kept for backward; larger numbers are recomputed."""


def head_dtype(model: Any) -> torch.dtype:
    """The dtype in which the logits of `model`'s output layer are computed and kept."""
    weight = model.lm_head.weight
    return torch.float32 if weight.is_cuda else weight.dtype


def head_logits(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """The logits [n, V] of `model`'s output layer for `hidden` [n, hidden]; differentiable.

    They are float32 numbers with the precision of `head_dtype`. The gradient is rounded to the
    model's dtype for its two products, as autocast does.
    """
    if head_dtype(model) == model.lm_head.weight.dtype:
        return model.lm_head(hidden).float()
    return Float32Logits.apply(hidden, model.lm_head.weight)  # pyright: ignore


class Float32Logits(torch.autograd.Function):
    """The product of hidden [n, hidden] and weight [V, hidden], both in one 16-bit dtype, as
    logits [n, V] in float32."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(hidden, weight)
        return widening_product(hidden, weight.t())

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden, weight = ctx.saved_tensors
        of_hidden, of_weight = ctx.needs_input_grad
        short = gradient.to(weight.dtype)
        return short @ weight if of_hidden else None, short.t() @ hidden if of_weight else None


def widening_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a @ b in float32 for 16-bit matrices; torch has this kernel on GPUs only."""
    return torch.mm(a, b, out_dtype=torch.float32)
