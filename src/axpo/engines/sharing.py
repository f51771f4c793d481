"""Attention of a decoding step that reads what several rows begin with once, on a CPU.

The rows of one question begin with the same prompt, and each has a copy of its keys and values. A
step's attention is bound by reading them. Here all rows of a group attend in one call to the first
tokens of one of them, every row attends to its own rest, and the two are merged by their logsumexp.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from axpo.engines.slots import Slot, common_prefix, reusable

SHARED_PROMPTS = "axpo_shared_prompts"
WORTH = 0.2
"""The least share of all keys that is worth a step in parts, which has a call for each group."""


@dataclass(frozen=True, slots=True)
class Shared:
    """Within each of `groups`, which hold all rows, the first `length` tokens are alike."""

    length: int
    groups: tuple[tuple[int, ...], ...]


def can_share(model: Any) -> bool:
    """Whether steps of `model` can be computed in parts: on a CPU, in float32.

    In bfloat16 both parts are rounded before they are merged, which the trainer's attention does
    not do: logprobs would differ from its by 0.012 nats instead of 0.003.
    """
    return model.device.type == "cpu" and model.dtype == torch.float32


def shared_prompts(slots: Sequence[Slot]) -> Shared | None:
    """What the running `slots`, one a row, begin with alike; None if it is not worth it."""
    by_name: dict[str | None, list[Slot]] = {}
    for slot in slots:
        by_name.setdefault(slot.group, []).append(slot)
    groups = [(_alike(group), group) for group in by_name.values()]
    shortest = min(slot.length for slot in slots)

    def saved(length: int) -> int:
        return length * sum(len(group) - 1 for alike, group in groups if alike >= length)

    length = max((min(alike, shortest) for alike, _ in groups), key=saved)
    if saved(length) < WORTH * sum(slot.length for slot in slots):
        return None
    # Rows that are alike for less are groups of one.
    parts = ([group] if alike >= length else [[slot] for slot in group] for alike, group in groups)
    rows = (tuple(slot.row for slot in part) for part in chain.from_iterable(parts))
    return Shared(length, tuple(rows))


def _alike(group: Sequence[Slot]) -> int:
    """How many first tokens of all slots are the same, with the same pictures."""
    first, length = group[0], group[0].length
    for other in group[1:]:
        common = common_prefix(first.tokens[:length], other.tokens[:length])
        length = min(length, reusable(first.tokens, first.spans, other, common))
    return length


@contextmanager
def sharing(decoder: Any) -> Iterator[None]:
    """Let the text model `decoder` take the argument `shared`, for one step.

    The model may be a trainer's too, whose attention comes back afterwards.
    """
    config = decoder.config
    usual, config._attn_implementation = config._attn_implementation, SHARED_PROMPTS
    try:
        yield
    finally:
        config._attn_implementation = usual


def shared_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float,
    shared: Shared,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Attend with one query per row, [n, H, 1, D], to key and value [n, H_kv, width, D].

    `attention_mask` [n or 1, 1, 1, width] is additive. Returns [n, 1, H, D].
    """
    rows, prompts, others = len(query), slice(shared.length), slice(shared.length, None)
    # The heads that share a head of keys are queries of one call: [n, H_kv, H / H_kv, D].
    packed = query.view(rows, key.shape[1], -1, query.shape[-1])
    mask = attention_mask[..., others]
    own, own_sum = _attend(packed, key[:, :, others], value[:, :, others], scaling, mask)
    order = torch.tensor([row for group in shared.groups for row in group])
    queries = packed[order].transpose(0, 1).contiguous()
    ends = accumulate((len(group) for group in shared.groups), initial=0)
    parts: list[tuple[torch.Tensor, torch.Tensor]] = []
    for (start, end), group in zip(pairwise(ends), shared.groups, strict=True):
        row = slice(group[0], group[0] + 1)
        together = queries[None, :, start:end].flatten(2, 3)
        parts.append(_attend(together, key[row, :, prompts], value[row, :, prompts], scaling))
    back = order.argsort()
    prompt, prompt_sum = (
        torch.cat(part, dim=2)[0].unflatten(1, (rows, -1)).transpose(0, 1)[back]
        for part in zip(*parts, strict=True)
    )
    share = torch.sigmoid(prompt_sum - own_sum)[..., None]
    merged = torch.lerp(own.float(), prompt.float(), share).to(query.dtype)
    return merged.reshape(rows, 1, -1, query.shape[-1]), None


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the queries [n, H, q, D] see, and the logsumexp [n, H, q] (float32) of their scores."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, attn_mask=mask, scale=scaling
    )


AttentionInterface.register(SHARED_PROMPTS, shared_attention)
AttentionMaskInterface.register(SHARED_PROMPTS, sdpa_mask)
