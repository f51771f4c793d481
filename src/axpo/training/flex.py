"""A forest's attention in one call: flex_attention over the blocks that the tree leaves.

On a GPU a call a run is bound by launches; here one kernel serves the whole pass. Which queries
see a key is one range, since a subtree is contiguous in preorder: its own query and those behind
it up to the end of its subtree; for a key of another pass, the queries below its node. Blocks
that no such range touches cost nothing. PyTorch has no backward of this on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import pad

from axpo.models.transfer import to_device

BLOCK = 128
"""Queries and keys of one block of the mask: flex_attention's own default."""


def block_mask(
    sizes: Sequence[int], ranges: Sequence[tuple[int, int]], queries: int, device: torch.device
) -> BlockMask:
    """The mask of one pass, for all its layers.

    Keys come in nodes of `sizes`; `ranges` [first, end) are the queries that a node's keys are
    for. The last `queries` keys are the queries' own: each is seen from its own query on.
    """
    lengths = to_device(torch.tensor(sizes), device)
    spans = to_device(torch.tensor(ranges, dtype=torch.int32), device)
    keys = sum(sizes)
    first, end = spans.repeat_interleave(lengths, dim=0, output_size=keys).unbind(1)
    own = torch.arange(queries, dtype=torch.int32, device=device)
    first = torch.cat([first[: keys - queries], own])
    rows, columns = -(-queries // BLOCK), -(-keys // BLOCK)
    # Keys that fill the last block have the empty range [0, 0).
    first, end = (pad(x, (0, columns * BLOCK - keys)) for x in (first, end))
    low = torch.arange(0, rows * BLOCK, BLOCK, device=device)[:, None]
    high = (low + BLOCK).clamp(max=queries)
    seen = (torch.maximum(first, low) < torch.minimum(end, high)).view(rows, columns, BLOCK)
    whole = ((first <= low) & (end >= high)).view(rows, columns, BLOCK).all(-1)
    return BlockMask.from_kv_blocks(
        *_ordered(seen.any(-1) & ~whole),
        *_ordered(whole),
        BLOCK_SIZE=BLOCK,
        mask_mod=_visible(first, end),
        seq_lengths=(queries, keys),
    )


def _visible(
    first: torch.Tensor, end: torch.Tensor
) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    def visible(
        batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        return (query >= first[key]) & (query < end[key])

    return visible


def _ordered(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How many blocks each row of `blocks` [rows, columns] has, and all columns, those first."""
    order = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32)[None, None], order.int()[None, None].contiguous()


def forest_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: BlockMask,
    scaling: float | None,
) -> torch.Tensor:
    """Attention [1, H, L, D] of query [1, H, L, D] over key and value [1, H_kv, K, D]."""
    attend = _compiled() if query.is_cuda else flex_attention
    grouped = query.shape[1] != key.shape[1]
    return attend(query, key, value, block_mask=mask, scale=scaling, enable_gqa=grouped)  # pyright: ignore


@cache
def _compiled() -> Callable[..., torch.Tensor]:
    """Compiled once for all lengths; without, the whole [H, L, K] would be written out."""
    return torch.compile(flex_attention, dynamic=True)
