"""An output layer alone."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn

WIDTH, VOCABULARY, TOKENS = 64, 3079, 5


def layer(dtype: torch.dtype) -> tuple[SimpleNamespace, torch.Tensor]:
    """A model of an output layer alone, logits of deviation 4, and hidden states for it."""
    torch.manual_seed(0)
    linear = nn.Linear(WIDTH, VOCABULARY, bias=False)
    nn.init.normal_(linear.weight, std=4 / WIDTH**0.5)
    hidden = torch.randn(TOKENS, WIDTH)
    return SimpleNamespace(lm_head=linear.to(dtype)), hidden.to(dtype).requires_grad_()
