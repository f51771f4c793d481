"""The output layer, whose logits are float32 on a GPU whatever the model's dtype is.

In bfloat16 a logit of 16 is rounded to a multiple of 1/8, and engine and trainer, whose hidden
states differ by a rounding, end on other multiples. MiniMax-M1 (arXiv 2506.13585) found its main
difference between sampling and training here. A GPU multiplies bfloat16 into float32 in one kernel;
a CPU would have to widen the weight each time (six times as long for a decoding step of 152K words
at width 2,048), so there the layer keeps its dtype. Engine, trainer and servers must do the same
(`head_dtype`): a single one that differs would land between the others' multiples.
"""

from __future__ import annotations

from typing import Any

import torch

LOGITS_AT_ONCE = 2**26
"""Logits (tokens x vocabulary) that may be kept for backward; beyond it they are recomputed."""


def head_dtype(model: Any) -> torch.dtype:
    """The dtype in which the logits of `model`'s output layer are summed and kept."""
    weight = model.lm_head.weight
    return torch.float32 if weight.is_cuda else weight.dtype


def head_logits(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Logits [n, V] (float32, at the precision of `head_dtype`) of `model`'s output layer after
    `hidden` [n, hidden]; differentiable.

    The gradient is rounded to the model's dtype for its two products, as autocast does.
    """
    if head_dtype(model) == model.lm_head.weight.dtype:
        return model.lm_head(hidden).float()
    return Float32Logits.apply(hidden, model.lm_head.weight)  # pyright: ignore


class Float32Logits(torch.autograd.Function):
    """(hidden [n, hidden], weight [V, hidden]) of one short dtype -> logits [n, V] in float32."""

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
    """a @ b in float32 of short matrices; torch has this kernel on GPUs only."""
    return torch.mm(a, b, out_dtype=torch.float32)
