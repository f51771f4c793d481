"""Attention over a packed forest: on a CPU by runs of the tree, on a GPU in one call over blocks.

A *run* is a chain of nodes in which each is the first child of the one before. It is contiguous in
the preorder layout, so it costs one attention call, with its tokens as queries and its path as
keys. There are as many runs as leaves. No [L, L] mask exists anywhere. On a GPU the launches of so
many calls would take most of the time, and SDPA would choose among several kernels, each with its
own rounding; `axpo.training.flex` is one call and one kernel for all.

A pass may compute only some of the nodes: the keys and values of the nodes above come from earlier
passes (`TreeLayout.given`), and its own can be kept for later passes (`TreeLayout.kept`).

The function is registered with transformers and falls back to plain SDPA if a call has no `tree`:
trainer and in-process engine share one module and may alternate freely.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from axpo.models.families import family_of
from axpo.training.flex import block_mask, forest_attention
from axpo.training.packing import PackedNode

TREE_SDPA = "axpo_tree_sdpa"


KeysValues = tuple[torch.Tensor, torch.Tensor]
NodeStates = dict[tuple[int, int], KeysValues]
"""By (node, layer), the node's keys (rotated) and values, each [1, H_kv, tokens, D]."""


@dataclass(frozen=True, slots=True)
class NodeRun:
    """The queries of the pass's nodes [first, last), which see their path and themselves.

    The path consists of the nodes `given`, which another pass computed, then the nodes `above` of
    this pass. `mask` [queries, keys] is additive; None if plain causal order is enough.
    """

    first: int
    last: int
    given: tuple[int, ...]
    above: tuple[int, ...]
    mask: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Blocks:
    """All queries of the pass in one call; its keys are the nodes `given` and the pass's own."""

    given: tuple[int, ...]
    mask: BlockMask


class TreeLayout:
    """How one pass attends: the `sizes` of its nodes, and either `runs` over them or `blocks`.

    `given` holds the states of nodes outside the pass. `keep` holds pairs of a node's place in the
    pass and its number in the forest; their states are put into `kept` as layers are computed.

    It is no dataclass, because FSDP's hooks copy dataclasses on their way into a layer: the states
    would be kept in the copy, and the gradients of `given` would go astray.
    """

    __slots__ = ("blocks", "given", "keep", "kept", "runs", "sizes")

    def __init__(
        self,
        sizes: tuple[int, ...],
        runs: tuple[NodeRun, ...],
        given: Mapping[tuple[int, int], KeysValues],
        keep: tuple[tuple[int, int], ...],
        blocks: Blocks | None,
    ) -> None:
        self.sizes, self.runs, self.given, self.keep, self.blocks = sizes, runs, given, keep, blocks
        self.kept: NodeStates = {}

    def without_keeping(self) -> TreeLayout:
        """The same layout, which keeps no states."""
        return TreeLayout(self.sizes, self.runs, self.given, (), self.blocks)


def tree_layout(
    nodes: Sequence[PackedNode],
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    chosen: Sequence[int] | None = None,
    given: Mapping[tuple[int, int], KeysValues] | None = None,
    keep: Sequence[int] = (),
) -> TreeLayout:
    """How all layers attend over the forest's `nodes`, with masks of `dtype` on `device`.

    A pass over some of the nodes names them in `chosen` (ascending); the ancestors that it leaves
    out must be in `given`. The states of the nodes `keep` are kept.
    """
    device = torch.device(device)
    chosen = range(len(nodes)) if chosen is None else chosen
    place = {node: i for i, node in enumerate(chosen)}
    sizes = tuple(nodes[node].end - nodes[node].start for node in chosen)
    blocks = _blocks(nodes, place, device) if in_blocks(device) else None
    return TreeLayout(
        sizes,
        () if blocks else _runs(nodes, place, dtype, device),
        given or {},
        tuple((place[node], node) for node in keep),
        blocks,
    )


def in_blocks(device: torch.device) -> bool:
    """Whether attention on `device` uses the block kernel.

    It always does on a GPU: there SDPA would choose a run's kernel by its mask, its length and its
    heads, and each kernel rounds in its own way.
    """
    return device.type == "cuda"


def _runs(
    nodes: Sequence[PackedNode],
    place: Mapping[int, int],
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[NodeRun, ...]:
    """The runs of the nodes in `place`, which maps each node to its place in the pass."""
    chosen = list(place)
    sizes = [node.end - node.start for node in nodes]
    runs: list[NodeRun] = []
    first = 0
    for i in range(1, len(chosen) + 1):
        if i < len(chosen) and nodes[chosen[i]].parent == chosen[i - 1]:
            continue
        above = _ancestors(nodes, chosen[first])
        mask = None
        if above:
            queries = sum(sizes[node] for node in chosen[first:i])
            path = sum(sizes[node] for node in above)
            hidden = torch.ones(queries, path + queries, dtype=torch.bool, device=device)
            mask = torch.zeros(queries, path + queries, dtype=dtype, device=device)
            mask.masked_fill_(hidden.triu_(path + 1), float("-inf"))
        outside = tuple(node for node in above if node not in place)
        inside = tuple(place[node] for node in above if node in place)
        runs.append(NodeRun(first, i, outside, inside, mask))
        first = i
    return tuple(runs)


def _blocks(nodes: Sequence[PackedNode], place: Mapping[int, int], device: torch.device) -> Blocks:
    """The blocks of a pass: each node's keys are seen by its subtree, whose queries are contiguous
    in the pass."""
    spans: dict[int, tuple[int, int]] = {}
    queries = 0
    for node in place:
        end = queries + nodes[node].end - nodes[node].start
        for above in (*_ancestors(nodes, node), node):
            spans[above] = (spans[above][0] if above in spans else queries, end)
        queries = end
    outside = tuple(sorted(node for node in spans if node not in place))
    keys = (*outside, *place)
    sizes = [nodes[node].end - nodes[node].start for node in keys]
    return Blocks(outside, block_mask(sizes, [spans[node] for node in keys], queries, device))


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
    """Attend along the paths of `tree`; query is [1, H, L, D], key and value are [1, H_kv, L, D].

    Returns [1, L, H, D]. Without `tree` this is transformers' own SDPA, masks and caches included.
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
    # All runs share one split, whose backward is one concatenation. The backward of a slice per run
    # would write a gradient of the full length each time.
    queries, keys, values = (x.split(tree.sizes, dim=2) for x in (query, key, value))
    layer: int = module.layer_idx  # pyright: ignore[reportAssignmentType]
    tree.kept.update({(node, layer): (keys[i], values[i]) for i, node in tree.keep})
    if tree.blocks is None:
        attended = _along_runs(queries, keys, values, tree, layer, scaling)
    else:
        if before := [tree.given[node, layer] for node in tree.blocks.given]:
            key = torch.cat([*(k for k, _ in before), key], dim=2)
            value = torch.cat([*(v for _, v in before), value], dim=2)
        attended = forest_attention(query, key, value, tree.blocks.mask, scaling)
    return attended.transpose(1, 2), None


def _along_runs(
    queries: tuple[torch.Tensor, ...],
    keys: tuple[torch.Tensor, ...],
    values: tuple[torch.Tensor, ...],
    tree: TreeLayout,
    layer: int,
    scaling: float | None,
) -> torch.Tensor:
    """Attention [1, H, L, D] in one call per run; arguments are split by the pass's nodes."""
    out: list[torch.Tensor] = []
    for run in tree.runs:
        # Nodes of earlier passes come first on every path, as nodes follow their ancestors.
        before = [tree.given[node, layer] for node in run.given]
        path = [*run.above, *range(run.first, run.last)]
        out.append(
            scaled_dot_product_attention(
                torch.cat(queries[run.first : run.last], dim=2),
                torch.cat([*(k for k, _ in before), *(keys[i] for i in path)], dim=2),
                torch.cat([*(v for _, v in before), *(values[i] for i in path)], dim=2),
                attn_mask=run.mask,
                is_causal=run.mask is None,
                scale=scaling,
                enable_gqa=queries[0].shape[1] != keys[0].shape[1],
            )
        )
    return torch.cat(out, dim=2)


AttentionInterface.register(TREE_SDPA, tree_attention)
AttentionMaskInterface.register(TREE_SDPA, sdpa_mask)


def use_tree_attention(model: nn.Module) -> None:
    """Let `model` accept `tree=`; other calls do not change."""
    family_of(model.config).decoder(model).config._attn_implementation = TREE_SDPA
