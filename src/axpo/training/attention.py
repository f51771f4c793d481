"""Attention over a packed forest: a token sees its path, wherever this lies in the layout.

In the preorder layout the queries that see a node's keys are one range: its subtree. From these
ranges a pass is attended in one of two ways, neither of which writes out an [L, L] mask. On a CPU
rectangles are computed one by one and merged (`axpo.training.merged`). On a GPU the launches of so
many calls would take most of the time; there it is one call over blocks (`axpo.training.flex`).

A pass may compute only some of the nodes: the keys and values of the nodes above come from earlier
passes (`TreeLayout.given`), and its own can be kept for later passes (`TreeLayout.kept`).

The function is registered with transformers and falls back to plain SDPA if a call has no `tree`:
trainer and in-process engine share one module and may alternate freely.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from axpo.models.families import family_of
from axpo.training.flex import Blocks, block_mask
from axpo.training.merged import KeysValues, Parts
from axpo.training.packing import PackedNode

TREE_SDPA = "axpo_tree_sdpa"


NodeStates = dict[tuple[int, int], KeysValues]
"""By (node, layer), the node's keys (rotated) and values, each [1, H_kv, tokens, D]."""
Span = tuple[int, int]
"""The queries [first, end) of a pass."""


class TreeLayout:
    """How one pass attends: the `sizes` of its nodes, and what their queries see.

    `given` holds the states of nodes outside the pass. `keep` holds pairs of a node's place in the
    pass and its number in the forest; their states are put into `kept` as layers are computed.

    It is no dataclass, because FSDP's hooks copy dataclasses on their way into a layer: the states
    would be kept in the copy, and the gradients of `given` would go astray.
    """

    __slots__ = ("given", "keep", "kept", "seen", "sizes")

    def __init__(
        self,
        sizes: tuple[int, ...],
        seen: Parts | Blocks,
        given: Mapping[tuple[int, int], KeysValues],
        keep: tuple[tuple[int, int], ...],
    ) -> None:
        self.sizes, self.seen, self.given, self.keep = sizes, seen, given, keep
        self.kept: NodeStates = {}

    def without_keeping(self) -> TreeLayout:
        """The same layout, which keeps no states."""
        return TreeLayout(self.sizes, self.seen, self.given, ())


def tree_layout(
    nodes: Sequence[PackedNode],
    device: torch.device | str = "cpu",
    chosen: Sequence[int] | None = None,
    given: Mapping[tuple[int, int], KeysValues] | None = None,
    keep: Sequence[int] = (),
) -> TreeLayout:
    """How all layers attend over the forest's `nodes` on `device`.

    A pass over some of the nodes names them in `chosen` (ascending); the ancestors that it leaves
    out must be in `given`. The states of the nodes `keep` are kept.
    """
    device = torch.device(device)
    chosen = range(len(nodes)) if chosen is None else chosen
    place = {node: i for i, node in enumerate(chosen)}
    return TreeLayout(
        tuple(nodes[node].end - nodes[node].start for node in chosen),
        blocks(nodes, chosen, device) if in_blocks(device) else parts(nodes, chosen),
        given or {},
        tuple((place[node], node) for node in keep),
    )


def in_blocks(device: torch.device) -> bool:
    """Whether attention on `device` uses the block kernel."""
    return device.type == "cuda"


def parts(nodes: Sequence[PackedNode], chosen: Sequence[int]) -> Parts:
    """What the pass over the nodes `chosen` computes on a CPU.

    A run is a chain of nodes in which each is the first child of the one before, so it lies in one
    piece. There are as many runs as leaves.
    """
    spans = _spans(nodes, chosen)
    runs: list[slice] = []
    branches: list[tuple[slice, slice]] = []
    first = 0
    for node, following in zip(chosen, [*chosen[1:], -1], strict=True):
        begin, last = spans[node]
        end = begin + nodes[node].end - nodes[node].start
        goes_on = following >= 0 and nodes[following].parent == node
        # Other children come behind what is below the first one.
        behind = spans[following][1] if goes_on else end
        if behind < last:
            branches.append((slice(behind, last), slice(first, end)))
        if not goes_on:
            runs.append(slice(first, end))
            first = end
    given = _given(spans, chosen)
    return Parts(tuple(runs), tuple(branches), given, tuple(slice(*spans[i]) for i in given))


def blocks(nodes: Sequence[PackedNode], chosen: Sequence[int], device: torch.device) -> Blocks:
    """What the pass over the nodes `chosen` computes on a GPU."""
    spans = _spans(nodes, chosen)
    given = _given(spans, chosen)
    keys = (*given, *chosen)
    sizes = [nodes[node].end - nodes[node].start for node in keys]
    queries = spans[chosen[-1]][1]
    return Blocks(given, block_mask(sizes, [spans[node] for node in keys], queries, device))


def _given(spans: Mapping[int, Span], chosen: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(spans.keys() - set(chosen)))


def _spans(nodes: Sequence[PackedNode], chosen: Sequence[int]) -> dict[int, Span]:
    """By node, the queries of the pass over `chosen` that see it: of every node with any."""
    spans: dict[int, Span] = {}
    path: list[tuple[int, int]] = []  # The nodes above a query, with the first query of each.
    queries = 0

    def leave(parent: int) -> None:
        while path and path[-1][0] > parent:
            node, first = path.pop()
            spans[node] = first, queries

    for node in chosen:
        new = [node]
        while True:
            parent = nodes[new[-1]].parent
            leave(parent)
            if parent < 0 or (path and path[-1][0] == parent):
                break
            new.append(parent)  # of another pass
        path += [(above, queries) for above in reversed(new)]
        queries += nodes[node].end - nodes[node].start
    leave(-1)
    return spans


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
    layer: int = module.layer_idx  # pyright: ignore[reportAssignmentType]
    if tree.keep:
        # One split, whose backward is one concatenation: that of a slice per node would write a
        # gradient of the full length each time.
        keys, values = (x.split(tree.sizes, dim=2) for x in (key, value))
        tree.kept.update({(node, layer): (keys[i], values[i]) for i, node in tree.keep})
    given = [tree.given[node, layer] for node in tree.seen.given]
    return tree.seen.attend(query, key, value, given, scaling).transpose(1, 2), None


AttentionInterface.register(TREE_SDPA, tree_attention)
AttentionMaskInterface.register(TREE_SDPA, sdpa_mask)


def use_tree_attention(model: nn.Module) -> None:
    """Let `model` accept `tree=`; other calls do not change."""
    family_of(model.config).decoder(model).config._attn_implementation = TREE_SDPA
