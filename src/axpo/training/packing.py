"""Packed trees: a group's tokens laid out flat, each once, with what trains them.

Owns the step from credit to training arrays. `items` checks a group's credit and lists the
policy tokens of each loss item; `item_weights` says how much each of them counts in the update;
`pack` lays the tree out in depth-first preorder and `join` puts several trees side by side.
Only tokens and indices live here: the forward pass is `axpo.training.policy`, the attention
over the layout `axpo.training.attention`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from axpo.models.positions import Grid, rope_positions
from axpo.tree import Credit, Group, ImageSpan, Node, Origin, Segment, Stream, Trajectory, TreeError

Aggregation = Literal["question_mean", "token_mean"]
OldLogprobs = Mapping[tuple[str, str], Sequence[float]]
"""(group id, trajectory id) -> a logprob for each of the trajectory's own tokens, NaN if none."""
Correction = Callable[[Sequence[float], Sequence[float]], Sequence[float]]
"""(old, recorded) logprobs of an item's tokens -> a factor for each token's surrogate."""


LIKELIHOOD = (Stream.DEMONSTRATION, Stream.DISTILLED)
"""Streams whose tokens have no ratio."""


@dataclass(frozen=True, slots=True)
class Item:
    """One credit and what it trains: `offsets` are the path offsets of its policy tokens.

    `owners` are the trajectories that store them: its own, and for a whole path its sources too.
    """

    trajectory: Trajectory
    credit: Credit
    offsets: tuple[int, ...]
    owners: tuple[Trajectory, ...]


@dataclass(frozen=True, slots=True)
class PackedNode:
    """Tokens [start, end) of the layout; `parent` indexes the forest's nodes (-1: a root)."""

    start: int
    end: int
    parent: int


@dataclass(frozen=True, slots=True)
class PackedTree:
    """One tree or several side by side: L tokens, of which T are trained.

    `tokens` [L]; `positions` [3, L] (M-RoPE); `previous` [L] is the token that predicts each one
    (-1 at a root); a key k is seen by the queries q with k <= q < `subtree_end`[k]. `pictures`
    are content digests in placeholder order, one a placement. `index` [T] points into the
    layout; `advantages`, `weights`, `importance` (factors of the surrogate, 1 without a correction)
    and `old` (nats; 0 where nobody sampled) are [T] float32, `likelihood` and `distilled` (tokens
    without a ratio; those of them sampled elsewhere) [T] bool.
    `groups` names the trees, `path_tokens` counts the tokens that one row a trajectory would
    take without padding.
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


def items(group: Group) -> list[Item]:
    """The group's loss items in trajectory order.

    Raises `TreeError` naming the trajectory where a credit leaves the trajectory's own tokens (for
    a path credit its path), holds no policy token, overlaps another, or asks for old logprobs that
    nobody recorded.
    """
    found: list[Item] = []
    for trajectory in group.trajectories():
        if not trajectory.credit:
            continue
        origins = _origins(group.after_prompt(trajectory))
        own = group.offset(trajectory)
        taken: set[int] = set()
        for credit in trajectory.credit:
            name = (
                f"group {group.id}, trajectory {trajectory.id}: {credit.stream} credit "
                f"[{credit.start}, {credit.end})"
            )
            start = 0 if credit.stream is Stream.PATH else own
            if not start <= credit.start <= credit.end <= len(origins):
                raise TreeError(
                    f"{name} leaves the trajectory's own tokens [{start}, {len(origins)})"
                )
            offsets = tuple(o for o in range(credit.start, credit.end) if origins[o] is not None)
            if not offsets:
                raise TreeError(f"{name} holds no policy token; leave an empty item out")
            if not taken.isdisjoint(offsets):
                raise TreeError(
                    f"{name} overlaps another credit at offset {min(taken & set(offsets))}; "
                    "a token belongs to one stream"
                )
            if credit.stream is not Stream.DEMONSTRATION and not all(origins[o] for o in offsets):
                raise TreeError(f"{name} covers policy tokens without logprobs; who sampled them?")
            taken.update(offsets)
            owners = tuple(trajectory if o >= own else group.owner(trajectory, o) for o in offsets)
            found.append(Item(trajectory, credit, offsets, owners))
    return found


def _origins(segments: Sequence[Segment]) -> list[bool | None]:
    """For each token: None if not the policy's, else whether its logprob was recorded."""
    return [
        bool(s.logprobs) if s.origin is Origin.POLICY else None for s in segments for _ in s.tokens
    ]


def item_weights(groups: Sequence[Sequence[Item]], aggregation: Aggregation) -> list[list[float]]:
    """Weight of each token of each item; `groups` are the `items` of ALL groups of an update.

    question_mean (Eq. 5): the credit's weight over the item's tokens, over the number
    of questions. token_mean: one over all trained tokens; credit weights play no role. Both
    denominators count the whole update, groups without credit and every micro-batch included:
    with local counts a token's weight would depend on what it happens to be packed with, and
    micro-batches would not add up to the batch.
    """
    if aggregation == "question_mean":
        return [
            [item.credit.weight / len(item.offsets) / len(groups) for item in group]
            for group in groups
        ]
    total = sum(len(item.offsets) for group in groups for item in group)
    return [[1.0 / total for _ in group] for group in groups]


def pack(
    group: Group,
    chosen: Sequence[Item],
    weights: Sequence[float],
    grids: Callable[[str], Grid],
    merge_size: int,
    old: OldLogprobs | None = None,
    correction: Correction | None = None,
) -> PackedTree:
    """Lay out what `chosen` items need of the group's tree, each token once.

    `weights` holds one number an item, the weight of each of its tokens (`item_weights`).
    `grids` gives a picture's patch grid by digest; `old` replaces the recorded logprobs, and
    `correction` of (old, recorded) gives the importance factors of an item that has ratios.
    Nodes that no trained token depends on (a masked failed rest, uncredited rollouts) are left
    out: less work, same result. Raises `TreeError` where `old` lacks a trained token.
    """
    nodes = group.nodes()
    trained: dict[str, set[int]] = {}
    longest: dict[str, int] = {}
    for item in chosen:
        longest[item.trajectory.id] = max(longest.get(item.trajectory.id, 0), item.offsets[-1])
        for owner, offset in zip(item.owners, item.offsets, strict=True):
            trained.setdefault(owner.id, set()).add(offset)
    layout = _lay_out(_needed(nodes, trained), grids, merge_size)
    index: list[int] = []
    olds: list[float] = []
    advantages: list[float] = []
    per_token: list[float] = []
    importance: list[float] = []
    streams: list[Stream] = []
    for item, weight in zip(chosen, weights, strict=True):
        places = zip(item.owners, item.offsets, strict=True)
        index += [layout.place[owner.id, offset] for owner, offset in places]
        own = _old_logprobs(group, item, old)
        olds += own
        advantages += [item.credit.advantage] * len(item.offsets)
        factors = [1.0] * len(own)
        if correction is not None and item.credit.stream not in LIKELIHOOD:
            factors = correction(own, _old_logprobs(group, item, None))
        importance += factors
        per_token += [weight] * len(own)
        streams += [item.credit.stream] * len(item.offsets)
    return PackedTree(
        tokens=torch.tensor(layout.tokens),
        positions=torch.cat(layout.positions, dim=1),
        previous=torch.tensor(layout.previous),
        subtree_end=_subtree_ends(layout.nodes),
        nodes=tuple(layout.nodes),
        pictures=tuple(layout.pictures),
        index=torch.tensor(index),
        advantages=torch.tensor(advantages, dtype=torch.float32),
        weights=torch.tensor(per_token, dtype=torch.float32),
        importance=torch.tensor(importance, dtype=torch.float32),
        old=torch.tensor(olds, dtype=torch.float32),
        likelihood=torch.tensor([stream in LIKELIHOOD for stream in streams]),
        distilled=torch.tensor([stream is Stream.DISTILLED for stream in streams]),
        groups=(group.id,),
        path_tokens=sum(len(group.prompt) + last + 1 for last in longest.values()),
    )


@dataclass(slots=True)
class _Layout:
    """`pack`'s lists as they grow; `place` finds a (trajectory, path offset)."""

    tokens: list[int]
    positions: list[torch.Tensor]
    previous: list[int]
    nodes: list[PackedNode]
    pictures: list[str]
    place: dict[tuple[str, int], int]


def _needed(nodes: Sequence[Node], trained: Mapping[str, set[int]]) -> list[Node]:
    """The nodes with a trained token and their ancestors, parents renumbered."""
    keep = [False] * len(nodes)
    for i in reversed(range(len(nodes))):  # a parent stands before its children
        node = nodes[i]
        offsets = trained.get(node.trajectory, set())
        keep[i] |= any(node.start <= o < node.start + len(node) for o in offsets)
        if keep[i] and node.parent >= 0:
            keep[node.parent] = True
    kept = [i for i in range(len(nodes)) if keep[i]]
    number = {-1: -1} | {old: new for new, old in enumerate(kept)}
    return [replace(nodes[i], parent=number[nodes[i].parent]) for i in kept]


def _lay_out(nodes: Sequence[Node], grids: Callable[[str], Grid], merge_size: int) -> _Layout:
    layout = _Layout([], [], [], [], [], {})
    following: list[int] = []  # position that follows each node
    for node in nodes:
        start, length = len(layout.tokens), len(node)
        spans = _spans(node.segments)
        positions, after = rope_positions(
            length,
            [(span, grids(span.digest)) for span in spans],
            following[node.parent] if node.parent >= 0 else 0,
            merge_size,
        )
        layout.tokens += [token for segment in node.segments for token in segment.tokens]
        layout.positions.append(positions)
        layout.previous.append(layout.nodes[node.parent].end - 1 if node.parent >= 0 else -1)
        layout.previous += range(start, start + length - 1)
        layout.nodes.append(PackedNode(start, start + length, node.parent))
        layout.pictures += [span.digest for span in spans]
        layout.place.update({(node.trajectory, node.start + i): start + i for i in range(length)})
        following.append(after)
    return layout


def _spans(segments: Sequence[Segment]) -> list[ImageSpan]:
    """The node's pictures, their starts counted from the node's first token."""
    spans: list[ImageSpan] = []
    done = 0
    for segment in segments:
        spans += [replace(span, start=span.start + done) for span in segment.images]
        done += len(segment)
    return spans


def _subtree_ends(nodes: Sequence[PackedNode]) -> torch.Tensor:
    ends = [node.end for node in nodes]
    for i in reversed(range(len(nodes))):
        if nodes[i].parent >= 0:
            ends[nodes[i].parent] = max(ends[nodes[i].parent], ends[i])
    lengths = torch.tensor([node.end - node.start for node in nodes])
    return torch.tensor(ends).repeat_interleave(lengths)


def _old_logprobs(group: Group, item: Item, old: OldLogprobs | None) -> list[float]:
    """The recorded logprobs of the item's tokens, or those that `old` gives for them."""
    stored: dict[str, tuple[int, Sequence[float]]] = {}
    for owner in {owner.id: owner for owner in item.owners}.values():
        if old is None:
            own = [p for s in owner.segments for p in (s.logprobs or (0.0,) * len(s))]
        else:
            own = old.get((group.id, owner.id), ())
        stored[owner.id] = group.offset(owner), own
    values: list[float] = []
    for owner, offset in zip(item.owners, item.offsets, strict=True):
        start, own = stored[owner.id]
        values.append(own[offset - start] if offset - start < len(own) else float("nan"))
    if any(value != value for value in values):
        raise TreeError(
            f"group {group.id}, trajectory {item.trajectory.id}: the given old logprobs lack "
            "trained tokens; recompute them with the same groups, credit and kl"
        )
    return values


def join(trees: Sequence[PackedTree]) -> PackedTree:
    """Several trees side by side; none sees another."""
    starts = [0]
    firsts = [0]
    for tree in trees:
        starts.append(starts[-1] + len(tree))
        firsts.append(firsts[-1] + len(tree.nodes))
    pairs = list(zip(trees, starts[:-1], strict=True))
    return PackedTree(
        tokens=torch.cat([t.tokens for t in trees]),
        positions=torch.cat([t.positions for t in trees], dim=1),
        previous=torch.cat([t.previous + s * (t.previous >= 0) for t, s in pairs]),
        subtree_end=torch.cat([t.subtree_end + s for t, s in pairs]),
        nodes=tuple(
            PackedNode(n.start + s, n.end + s, n.parent + f if n.parent >= 0 else -1)
            for (t, s), f in zip(pairs, firsts[:-1], strict=True)
            for n in t.nodes
        ),
        pictures=tuple(p for t in trees for p in t.pictures),
        index=torch.cat([t.index + s for t, s in pairs]),
        advantages=torch.cat([t.advantages for t in trees]),
        weights=torch.cat([t.weights for t in trees]),
        importance=torch.cat([t.importance for t in trees]),
        old=torch.cat([t.old for t in trees]),
        likelihood=torch.cat([t.likelihood for t in trees]),
        distilled=torch.cat([t.distilled for t in trees]),
        groups=tuple(g for t in trees for g in t.groups),
        path_tokens=sum(t.path_tokens for t in trees),
    )
