"""Layers that keep less for the backward pass: RMS norms, and MLPs with a gate.

As transformers writes them, a norm keeps its input in float32, the normalised values and its
result, and an MLP four arrays of its inner width. Here a norm keeps its input and its result, and
an MLP what its first two products make; the rest is made again in the backward pass. Values are the
same to the bit, and without gradients transformers' own code runs.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear, silu
from transformers.activations import SiLUActivation

from axpo.models.lora import adapters_of

SILU = nn.SiLU, SiLUActivation
_silu_backward = torch.ops.aten.silu_backward


def use_lean_layers(part: nn.Module) -> None:
    """Let the RMS norms and gated MLPs in `part` keep less from now on.

    They are told by transformers' names for what is in them. An MLP with another gate than silu
    stays as it is.
    """
    for module in part.modules():
        if hasattr(module, "variance_epsilon"):
            module.__class__ = _lean(LeanNorm, type(module))
        elif hasattr(module, "gate_proj") and isinstance(module.act_fn, SILU):
            module.__class__ = _lean(LeanMLP, type(module))


@cache
def _lean(how: type, kind: type) -> type:
    return type(kind.__name__, (how, kind), {})


class LeanNorm(nn.Module):
    """Stands before a norm's own class."""

    weight: nn.Parameter
    variance_epsilon: float

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return super().forward(rows)
        return _Norm.apply(rows, self.weight, self.variance_epsilon)  # pyright: ignore


class LeanMLP(nn.Module):
    """Stands before an MLP's own class. Its last layer may have adapters, as the others may."""

    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return super().forward(rows)
        gate, up = self.gate_proj(rows), self.up_proj(rows)
        plain: Any = getattr(self.down_proj, "base_layer", self.down_proj)
        out = _Gated.apply(gate, up, plain.weight, plain.bias)
        for narrow, wide, scale in adapters_of(self.down_proj):
            out = out + wide(_Gated.apply(gate, up, narrow.weight, None)) * scale  # pyright: ignore
        return out  # pyright: ignore


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, rows: torch.Tensor, weight: torch.Tensor, epsilon: float
    ) -> torch.Tensor:
        wide = rows.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(rows, weight, scale)
        return weight * (wide * scale).to(rows.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        rows, weight, scale = ctx.saved_tensors
        gradient, wide = gradients[0].float(), weight.float()
        normal = rows.float() * scale
        product = gradient * normal
        of_rows = of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = product.flatten(0, -2).sum(0).to(weight.dtype)
        if ctx.needs_input_grad[0]:
            share = (product @ wide)[..., None] / wide.numel()
            of_rows = (gradient * wide).addcmul_(normal, share, value=-1).mul_(scale)
            of_rows = of_rows.to(rows.dtype)
        return of_rows, of_weight, None


class _Gated(torch.autograd.Function):
    """A linear layer of silu(gate) * up, which it does not keep."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        gate: torch.Tensor,
        up: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(gate, up, weight)
        return linear(silu(gate).mul_(up), weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        gate, up, weight = ctx.saved_tensors
        (gradient,) = gradients
        rows = gradient.flatten(0, -2)
        of_weight = of_bias = None
        active = silu(gate)
        if ctx.needs_input_grad[2]:
            of_weight = rows.t() @ (active * up).flatten(0, -2)
        if ctx.needs_input_grad[3]:
            of_bias = rows.sum(0)
        if not ctx.needs_input_grad[0]:
            return None, None, of_weight, of_bias
        inner = gradient @ weight
        of_up = active.mul_(inner)
        return _silu_backward(inner.mul_(up), gate), of_up, of_weight, of_bias
