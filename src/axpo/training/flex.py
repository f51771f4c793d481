"""A forest's attention in one call: flex_attention over the blocks that the tree leaves.

On a GPU the launches of many calls would take most of the time, and SDPA would choose among several
kernels, each of which rounds in its own way. Here one kernel serves every pass, however short, so
that a token is rounded in the same way whatever tree it is in. The queries that see a key are one
range, because a subtree is contiguous in preorder: the key's own query and those after it up to the
end of its subtree; for a key of another pass, the queries below its node. Blocks that no such range
touches cost nothing. PyTorch has no backward of this on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import pad

from axpo.models.device import to_device
from axpo.training.merged import KeysValues

BLOCK = 128
"""The number of queries and keys in one block of the mask: flex_attention's own default."""
LEAST = BLOCK + 1
"""The number of queries and keys to which a pass is padded. One block alone would be a dimension of
1, for which everything is compiled again, and fewer queries than a block would use flex's decoding
kernel."""

COMPILATIONS = 32
"""The most compilations. Passes need fewer: they differ in having gradients for all, some or none
of queries, keys and values, and in having keys of other passes; and three compilations pass before
torch knows that all lengths vary."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """All queries of a pass in one call; its keys are the nodes `given`, which are of other passes,
    and the pass's own."""

    given: tuple[int, ...]
    mask: BlockMask

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        given: Sequence[KeysValues],
        scaling: float | None,
    ) -> torch.Tensor:
        """The attention [1, H, L, D] of query [1, H, L, D] over key and value [1, H_kv, L, D] and
        the states of `given`."""
        if given:
            key = torch.cat([*(k for k, _ in given), key], dim=2)
            value = torch.cat([*(v for _, v in given), value], dim=2)
        return forest_attention(query, key, value, self.mask, scaling)


def block_mask(
    sizes: Sequence[int], ranges: Sequence[tuple[int, int]], queries: int, device: torch.device
) -> BlockMask:
    """The mask of one pass, for all its layers.

    Keys come in nodes of `sizes`; `ranges` [first, end) are the queries that see a node's keys. The
    last `queries` keys are the queries' own; each is seen from its own query on. The keys that pad
    a pass to `LEAST` are seen by no query; the queries that pad it see the last node.
    """
    rows, columns = (-(-max(n, LEAST) // BLOCK) for n in (queries, sum(sizes)))
    lengths = to_device(torch.tensor(sizes), device)
    padded = [*ranges[:-1], (ranges[-1][0], max(queries, LEAST))]
    spans = to_device(torch.tensor(padded, dtype=torch.int32), device)
    keys = sum(sizes)
    first, end = spans.repeat_interleave(lengths, dim=0, output_size=keys).unbind(1)
    own = torch.arange(queries, dtype=torch.int32, device=device)
    first = torch.cat([first[: keys - queries], own])
    # Keys that fill the last block have the empty range [0, 0).
    first, end = (pad(x, (0, columns * BLOCK - keys)) for x in (first, end))
    low = torch.arange(0, rows * BLOCK, BLOCK, dtype=torch.int32, device=device)[:, None]
    high = (low + BLOCK).clamp(max=max(queries, LEAST))
    # Comparisons take one byte per element of [rows, keys]; numbers would take sixteen.
    seen = ((first < high) & (end > low)).view(rows, columns, BLOCK).any(-1)
    latest, earliest = first.view(columns, BLOCK).amax(-1), end.view(columns, BLOCK).amin(-1)
    whole = (latest <= low) & (earliest >= high)
    return BlockMask.from_kv_blocks(
        *_ordered(seen & ~whole),
        *_ordered(whole),
        BLOCK_SIZE=BLOCK,
        mask_mod=_visible(first, end),
        seq_lengths=(max(queries, LEAST), max(keys, LEAST)),
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
    """The number of blocks in each row of `blocks` [rows, columns], and all columns, with those of
    its blocks first."""
    order = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32)[None, None], order.int()[None, None].contiguous()


def forest_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: BlockMask,
    scaling: float | None,
) -> torch.Tensor:
    """The attention [1, H, L, D] of query [1, H, L, D] over key and value [1, H_kv, K, D]."""
    attend = _compiled() if query.is_cuda else flex_attention
    length, grouped = query.shape[2], query.shape[1] != key.shape[1]
    query, key, value = (_padded(x) for x in (query, key, value))
    out = attend(query, key, value, block_mask=mask, scale=scaling, enable_gqa=grouped)
    return out[:, :, :length]  # pyright: ignore


def _padded(states: torch.Tensor) -> torch.Tensor:
    missing = LEAST - states.shape[2]
    return pad(states, (0, 0, 0, missing)) if missing > 0 else states


@cache
def _compiled() -> Callable[..., torch.Tensor]:
    """flex_attention, compiled once for all lengths.

    It is never used uncompiled, which would write out the whole [H, L, K]: 69 GB for 16K queries
    over 32K keys. With `fullgraph` torch raises an error instead of falling back to that, on a
    graph break and at its limit of recompilations.
    """
    if torch._dynamo.config.disable:
        raise RuntimeError(
            "torch.compile is switched off (TORCHDYNAMO_DISABLE or TORCH_COMPILE_DISABLE), but "
            "attention on a GPU needs it: unset the variable"
        )
    attend = torch.compile(flex_attention, dynamic=True, fullgraph=True)
    return torch._dynamo.config.patch(recompile_limit=COMPILATIONS)(attend)
