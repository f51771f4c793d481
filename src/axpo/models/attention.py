"""Faster attention for vision towers.

transformers' non-flash vision attention calls its kernel once per picture. The function here
takes the packed sequence (the flash interface) and runs pictures of equal length as one batch.
"""

from __future__ import annotations

from itertools import groupby

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

# "flash" in the name makes transformers pass cu_seq_lens and the whole packed sequence.
VARLEN_VISION = "axpo_flash_interface_sdpa"


def varlen_vision_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    cu_seq_lens_q: torch.Tensor,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Full attention within each picture; query, key, value [1, H, L, D] -> [1, L, H, D]."""
    lengths = cu_seq_lens_q.diff().tolist()
    out: list[torch.Tensor] = []
    start = 0
    for length, run in groupby(lengths):
        count = len(list(run))
        end = start + count * length
        q, k, v = (
            x[0, :, start:end].unflatten(1, (count, length)).transpose(0, 1)
            for x in (query, key, value)
        )
        attended = scaled_dot_product_attention(q, k, v, scale=scaling)
        out.append(attended.transpose(1, 2).flatten(0, 1))
        start = end
    return torch.cat(out).unsqueeze(0), None


AttentionInterface.register(VARLEN_VISION, varlen_vision_attention)
