"""Attention over a packed forest: one rectangular call a run of the tree.

A *run* is a chain of nodes in which each is the first child of the one before: it lies in one
piece in the preorder layout, so it costs one attention call, its tokens as queries against its
path as keys. There are as many runs as leaves. No [L, L] mask exists anywhere.

The function is registered with transformers and falls back to plain SDPA when a call brings no
`tree`: trainer and in-process engine share one module and may alternate freely.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from axpo.training.packing import PackedNode

TREE_SDPA = "axpo_tree_sdpa"


@dataclass(frozen=True, slots=True)
class Run:
    """Queries of the layout's pieces [first, last); their keys are `above` and themselves.

    `mask` [queries, keys] is additive; None for a root's run, where plain causal order serves.
    """

    first: int
    last: int
    above: tuple[int, ...]
    mask: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class TreeLayout:
    """How to attend over a forest: `sizes` of its pieces (nodes) and the runs over them."""

    sizes: tuple[int, ...]
    runs: tuple[Run, ...]


def tree_layout(
    nodes: Sequence[PackedNode], dtype: torch.dtype, device: torch.device | str = "cpu"
) -> TreeLayout:
    """Cut the forest into runs; masks of `dtype` on `device`, shared by all layers."""
    sizes = tuple(node.end - node.start for node in nodes)
    runs: list[Run] = []
    first = 0
    for i in range(1, len(nodes) + 1):
        if i < len(nodes) and nodes[i].parent == i - 1:
            continue
        above = _ancestors(nodes, first)
        mask = None
        if above:
            queries = sum(sizes[first:i])
            path = sum(sizes[j] for j in above)
            hidden = torch.ones(queries, path + queries, dtype=torch.bool, device=device)
            mask = torch.zeros(queries, path + queries, dtype=dtype, device=device)
            mask.masked_fill_(hidden.triu_(path + 1), float("-inf"))
        runs.append(Run(first, i, above, mask))
        first = i
    return TreeLayout(sizes, tuple(runs))


def _ancestors(nodes: Sequence[PackedNode], i: int) -> tuple[int, ...]:
    path: list[int] = []
    while (i := nodes[i].parent) >= 0:
        path.append(i)
    return tuple(reversed(path))


def tree_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    tree: TreeLayout | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """Attend along the paths of `tree`; query [1, H, L, D], key and value [1, H_kv, L, D].

    Returns [1, L, H, D]. Without `tree`: transformers' own SDPA, masks and caches included.
    """
    if tree is None:
        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            scaling=scaling,
            **kwargs,  # pyright: ignore[reportArgumentType]
        )
    # One split for all runs: its backward is one concatenation, where a slice a run would
    # write a gradient of the full length each.
    queries, keys, values = (x.split(tree.sizes, dim=2) for x in (query, key, value))
    grouped = query.shape[1] != key.shape[1]
    out: list[torch.Tensor] = []
    for run in tree.runs:
        path = [*run.above, *range(run.first, run.last)]
        out.append(
            scaled_dot_product_attention(
                torch.cat(queries[run.first : run.last], dim=2),
                torch.cat([keys[i] for i in path], dim=2),
                torch.cat([values[i] for i in path], dim=2),
                attn_mask=run.mask,
                is_causal=run.mask is None,
                scale=scaling,
                enable_gqa=grouped,
            )
        )
    return torch.cat(out, dim=2).transpose(1, 2), None


AttentionInterface.register(TREE_SDPA, tree_attention)
AttentionMaskInterface.register(TREE_SDPA, sdpa_mask)


def use_tree_attention(model: nn.Module) -> None:
    """Let `model` (Qwen3VLForConditionalGeneration) take `tree=`; other calls stay as they were."""
    model.model.language_model.config._attn_implementation = TREE_SDPA  # pyright: ignore
