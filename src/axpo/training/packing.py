"""Packed trees: a group's tokens in one flat layout, each once, with what trains them.

This module turns loss items (`axpo.training.items`) into training arrays: `pack` lays the tree out
in depth-first preorder, and `join` puts several trees side by side. An update has millions of
tokens: Python handles runs, segments and nodes, torch their tokens. Only tokens and indices are
here: the forward pass is `axpo.training.policy`, the attention over the layout
`axpo.training.attention`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import torch

from axpo.errors import TreeError
from axpo.models.positions import Grid, rope_positions
from axpo.training.items import Item, TokenRun
from axpo.tree import Group, Lineage, Node, Stream, Trajectory, joined_images

OldLogprobs = Mapping[tuple[str, str], torch.Tensor]
"""By (group id, trajectory id) the logprobs [tokens] of the trajectory's own tokens, NaN for tokens
without one; float64 on the CPU, as the recorded ones are."""
Correction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From (old, recorded) logprobs [n] of an item's tokens, a factor [n] for each token's
surrogate."""


PER_TOKEN = ("advantages", "weights", "importance", "old", "likelihood", "distilled")
"""The fields of a packed tree that hold one value per trained token, named as in `TokenBatch`."""
LIKELIHOOD = (Stream.DEMONSTRATION, Stream.DISTILLED)
"""The streams whose tokens have no ratio."""


@dataclass(frozen=True, slots=True)
class PackedNode:
    """The tokens [start, end) of the layout; `parent` indexes the forest's nodes (-1: a root)."""

    start: int
    end: int
    parent: int


@dataclass(frozen=True, slots=True)
class PackedTree:
    """One tree, or several side by side: L tokens, of which T are trained.

    `tokens` is [L], and `positions` [3, L] (M-RoPE). `previous` [L] is the token that predicts each
    one (-1 at a root). A key k is seen by the queries q with k <= q < `subtree_end`[k]. `pictures`
    are content digests in placeholder order, one per placement. `index` [T] points into the layout.
    `advantages`, `weights`, `importance` (factors of the surrogate, 1 without a correction) and
    `old` (nats; 0 if nobody sampled the token) are [T] float32. `likelihood` (tokens without a
    ratio) and `distilled` (those of them that were sampled in another context) are [T] bool.
    `groups` names the trees; `path_tokens` counts the tokens that one row per trajectory would take
    without padding.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    previous: torch.Tensor
    subtree_end: torch.Tensor
    nodes: tuple[PackedNode, ...]
    pictures: tuple[str, ...]
    index: torch.Tensor
    advantages: torch.Tensor
    weights: torch.Tensor
    importance: torch.Tensor
    old: torch.Tensor
    likelihood: torch.Tensor
    distilled: torch.Tensor
    groups: tuple[str, ...]
    path_tokens: int

    def __len__(self) -> int:
        return self.tokens.numel()


def pack(
    group: Group,
    chosen: Sequence[Item],
    weights: Sequence[float],
    grids: Callable[[str], Grid],
    merge_size: int,
    old: OldLogprobs | None = None,
    correction: Correction | None = None,
) -> PackedTree:
    """Lay out the part of the group's tree that the `chosen` items need, each token once.

    `weights` holds one number per item, the weight of each of its tokens (`item_weights`). `grids`
    returns a picture's patch grid by digest. `old` replaces the recorded logprobs, and
    `correction` of (old, recorded) gives the importance factors of an item that has ratios. Nodes
    on which no trained token depends (the masked end of a failed source, uncredited rollouts) are
    left out, which saves work and changes no result. Raises `TreeError` if `old` lacks a trained
    token.
    """
    layout = _lay_out(_needed(group.nodes(), chosen), grids, merge_size)
    recorded, lineage = _recorded(group, chosen), group.lineage()
    index: list[torch.Tensor] = []
    olds: list[torch.Tensor] = []
    importance: list[torch.Tensor] = []
    for item in chosen:
        index += [place for run in item.runs for place in layout.places(run)]
        olds.append(_logprobs(group, lineage, item, recorded if old is None else old))
        if correction is None or item.credit.stream in LIKELIHOOD:
            importance.append(torch.ones(len(item)))
        else:
            importance.append(correction(olds[-1], _logprobs(group, lineage, item, recorded)))
    lengths = torch.tensor([len(item) for item in chosen])

    def each(values: Sequence[float] | Sequence[bool]) -> torch.Tensor:
        return torch.tensor(values).repeat_interleave(lengths)

    streams = [item.credit.stream for item in chosen]
    return PackedTree(
        tokens=torch.cat(layout.tokens),
        positions=torch.cat(layout.positions, dim=1),
        previous=_previous(layout.nodes),
        subtree_end=_subtree_ends(layout.nodes),
        nodes=tuple(layout.nodes),
        pictures=tuple(layout.pictures),
        index=torch.cat(index),
        advantages=each([item.credit.advantage for item in chosen]),
        weights=each(weights),
        importance=torch.cat(importance).float(),
        old=torch.cat(olds).float(),
        likelihood=each([stream in LIKELIHOOD for stream in streams]),
        distilled=each([stream is Stream.DISTILLED for stream in streams]),
        groups=(group.id,),
        path_tokens=_path_tokens(group, chosen),
    )


def _path_tokens(group: Group, chosen: Sequence[Item]) -> int:
    longest: dict[str, int] = {}
    for item in chosen:
        id = item.trajectory.id
        longest[id] = max(longest.get(id, 0), item.runs[-1].end)
    return sum(len(group.prompt) + end for end in longest.values())


@dataclass(slots=True)
class _Layout:
    """`pack`'s lists as they grow; all but `pictures` and `parts` get an entry per node.

    `parts` holds each trajectory's nodes in order: (first path offset, end, place in the layout).
    """

    tokens: list[torch.Tensor]
    positions: list[torch.Tensor]
    nodes: list[PackedNode]
    pictures: list[str]
    parts: dict[str, list[tuple[int, int, int]]]

    def places(self, run: TokenRun) -> list[torch.Tensor]:
        """The places of the run's tokens in the layout, one tensor per node."""
        return [
            torch.arange(max(run.start, first), min(run.end, end)) + (place - first)
            for first, end, place in self.parts[run.owner.id]
            if run.start < end and first < run.end
        ]


def _needed(nodes: Sequence[Node], chosen: Sequence[Item]) -> list[Node]:
    """The nodes with a trained token and their ancestors, with renumbered parents."""
    trained: dict[str, list[TokenRun]] = {}
    for run in (run for item in chosen for run in item.runs):
        trained.setdefault(run.owner.id, []).append(run)
    keep = [False] * len(nodes)
    for i in reversed(range(len(nodes))):  # A parent comes before its children.
        node, end = nodes[i], nodes[i].start + len(nodes[i])
        runs = trained.get(node.trajectory, ())
        keep[i] |= any(run.start < end and node.start < run.end for run in runs)
        if keep[i] and node.parent >= 0:
            keep[node.parent] = True
    kept = [i for i in range(len(nodes)) if keep[i]]
    number = {-1: -1} | {old: new for new, old in enumerate(kept)}
    return [replace(nodes[i], parent=number[nodes[i].parent]) for i in kept]


def _lay_out(nodes: Sequence[Node], grids: Callable[[str], Grid], merge_size: int) -> _Layout:
    layout = _Layout([], [], [], [], {})
    following: list[int] = []  # The position that follows each node.
    start = 0
    for node in nodes:
        length = len(node)
        spans = joined_images(node.segments)
        positions, after = rope_positions(
            length,
            [(span, grids(span.digest)) for span in spans],
            following[node.parent] if node.parent >= 0 else 0,
            merge_size,
        )
        layout.tokens += [_tensor(segment.tokens, np.int64) for segment in node.segments]
        layout.positions.append(positions)
        layout.nodes.append(PackedNode(start, start + length, node.parent))
        layout.pictures += [span.digest for span in spans]
        part = node.start, node.start + length, start
        layout.parts.setdefault(node.trajectory, []).append(part)
        following.append(after)
        start += length
    return layout


def _tensor(values: Sequence[float], dtype: type[np.generic]) -> torch.Tensor:
    # numpy is ten times as fast as torch, which reads a sequence's values one by one.
    return torch.from_numpy(np.array(values, dtype))


def _previous(nodes: Sequence[PackedNode]) -> torch.Tensor:
    """The token before each one: its neighbour, or the parent's last at the start of a node."""
    previous = torch.arange(-1, nodes[-1].end - 1)
    for node in nodes:
        previous[node.start] = nodes[node.parent].end - 1 if node.parent >= 0 else -1
    return previous


def _subtree_ends(nodes: Sequence[PackedNode]) -> torch.Tensor:
    ends = [node.end for node in nodes]
    for i in reversed(range(len(nodes))):
        if nodes[i].parent >= 0:
            ends[nodes[i].parent] = max(ends[nodes[i].parent], ends[i])
    lengths = torch.tensor([node.end - node.start for node in nodes])
    return torch.tensor(ends).repeat_interleave(lengths)


def _recorded(group: Group, chosen: Sequence[Item]) -> OldLogprobs:
    """The logprobs under the policy that sampled the trajectories of `chosen`; 0 for tokens that
    nobody sampled."""
    owners = {run.owner.id: run.owner for item in chosen for run in item.runs}
    return {(group.id, id): sampled_logprobs(owner, missing=0.0) for id, owner in owners.items()}


def sampled_logprobs(trajectory: Trajectory, missing: float) -> torch.Tensor:
    """The recorded logprobs [tokens] (float64) of the trajectory's own tokens; `missing` for tokens
    without one."""
    parts = [
        _tensor(segment.logprobs or (missing,) * len(segment), np.float64)
        for segment in trajectory.segments
    ]
    return torch.cat(parts)


def _logprobs(group: Group, lineage: Lineage, item: Item, given: OldLogprobs) -> torch.Tensor:
    """The logprobs that are `given` for the item's tokens."""
    parts: list[torch.Tensor] = []
    for run in item.runs:
        start = lineage.offset(run.owner)
        own = given.get((group.id, run.owner.id), torch.empty(0))
        parts.append(own[run.start - start : run.end - start])
    values = torch.cat(parts)
    if len(values) < len(item) or values.isnan().any():
        raise TreeError(
            f"group {group.id}, trajectory {item.trajectory.id}: the given old logprobs lack "
            "trained tokens; recompute them with the same groups, credit and kl"
        )
    return values


def join(trees: Sequence[PackedTree]) -> PackedTree:
    """Several trees side by side, none of which sees another.

    What all their prompts begin with (a system turn with its tools is most of a text prompt) is
    laid out once, as a node above their roots.
    """
    n = _shared(trees)
    starts = accumulate((len(tree) - n for tree in trees[:-1]), initial=0)
    root = [PackedNode(0, n, -1)] if n else []
    firsts = accumulate((len(tree.nodes) for tree in trees[:-1]), initial=len(root))
    pairs = list(zip(trees, starts, strict=True))
    previous = [t.previous[n:] + s * (t.previous[n:] >= n) for t, s in pairs]
    nodes = [
        PackedNode(max(o.start, n) + s, o.end + s, o.parent + f if o.parent >= 0 else len(root) - 1)
        for (t, s), f in zip(pairs, firsts, strict=True)
        for o in t.nodes
    ]
    return PackedTree(
        tokens=torch.cat([trees[0].tokens[:n], *(t.tokens[n:] for t in trees)]),
        positions=torch.cat([trees[0].positions[:, :n], *(t.positions[:, n:] for t in trees)], 1),
        previous=torch.cat([trees[0].previous[:n], *previous]),
        subtree_end=torch.cat(
            [torch.full((n,), nodes[-1].end), *(t.subtree_end[n:] + s for t, s in pairs)]
        ),
        nodes=(*root, *nodes),
        pictures=tuple(p for t in trees for p in t.pictures),
        index=torch.cat([t.index + s for t, s in pairs]),
        **{name: torch.cat([getattr(t, name) for t in trees]) for name in PER_TOKEN},
        groups=tuple(g for t in trees for g in t.groups),
        path_tokens=sum(t.path_tokens for t in trees),
    )


def _shared(trees: Sequence[PackedTree]) -> int:
    """The number of tokens with which the roots of all trees begin; each root keeps one at least.

    0 if there are pictures: the placeholders of one belong to one tree.
    """
    if len(trees) < 2 or any(tree.pictures for tree in trees):
        return 0
    most = min(tree.nodes[0].end for tree in trees) - 1
    first = trees[0].tokens[:most]
    same = torch.stack([tree.tokens[:most] == first for tree in trees]).all(dim=0)
    return int(same.long().cumprod(dim=0).sum())
