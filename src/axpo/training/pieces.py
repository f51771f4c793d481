"""A forest of any size, forward and backward, in memory that a token budget bounds.

A forest within the budget is one pass. A larger tree is cut into *pieces*, consecutive parts of its
preorder layout, and only one piece at a time has a graph for backward. What pieces share is
computed without a graph, and then serves as *leaves* that collect gradients: the features of the
pictures, and the keys and values of the *trunk*, which are the nodes that a later piece sees.

Pieces are trained from last to first. The nodes above a piece are computed when the last piece
below them is trained. When a piece goes backward, every piece below it has added its gradient to
the trunk's leaves. So one backward call starts from the piece's loss and from its own keys and
values with those gradients, and its leaves are no longer needed. The pictures come last, in the
same way.

This is the chain rule in another order, so the gradient is exact. A token's logprob is trained in
the piece of the token that *predicts* it. Therefore only keys and values cross a border, and a
border may be anywhere: between branches, inside a path, inside a picture.

The memory beside the weights holds the activations of one piece (at most `budget` tokens) or of one
encoder call (at most `budget` picture tokens, or one picture), the keys and values of the piece's
trunk and of the trunk above it, and the pictures' features; the latter three twice, because they
have gradients. The trunk and the pictures go forward twice, everything else as often as without
pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from axpo.models.device import to_device
from axpo.models.loading import Checkpoint
from axpo.models.vision import Features, Pixels, encode_pictures
from axpo.training.attention import NodeStates, tree_layout
from axpo.training.packing import PackedNode, PackedTree
from axpo.training.policy import (
    Read,
    distinct_pictures,
    hidden_states,
    log_probability,
    policy_logprobs,
    show,
    token_logprobs,
)
from axpo.training.ranks import Kind, Meet, alone


@dataclass(frozen=True, slots=True)
class Piece:
    """The nodes [first, last) of a cut forest, which are its layout's tokens [start, end).

    `trunk` holds those of the nodes that later pieces see; `trained` [t] the places in the forest's
    `index` of the trained tokens that this piece's tokens predict.
    """

    first: int
    last: int
    start: int
    end: int
    trunk: tuple[int, ...]
    trained: torch.Tensor


@dataclass(frozen=True, slots=True)
class Pass:
    """The `logprobs` [t] of the trained tokens at the places `trained` [t] of T; both may be empty.

    `backward(loss)` must be called for every pass before the next one is taken.
    """

    trained: torch.Tensor
    logprobs: torch.Tensor
    backward: Callable[[torch.Tensor], None]


def cut(forest: PackedTree, budget: int) -> tuple[PackedTree, list[Piece]]:
    """Cut `forest` into pieces of at most `budget` tokens.

    Nodes stay whole as long as they fit, because a node that is cut becomes trunk. A node that does
    not fit begins a new piece, and a node larger than the budget extends over several. In the
    returned forest the parts of such nodes are nodes of their own.
    """
    nodes: list[PackedNode] = []
    last_part: list[int] = []
    first: list[int] = []
    room = 0
    for node in forest.nodes:
        if node.end - node.start > room:
            room = 0
        parent = last_part[node.parent] if node.parent >= 0 else -1
        start = node.start
        while start < node.end:
            if room == 0:
                first.append(len(nodes))
                room = budget
            end = min(node.end, start + room)
            nodes.append(PackedNode(start, end, parent))
            parent = len(nodes) - 1
            room -= end - start
            start = end
        last_part.append(parent)
    ends = [*(nodes[i].start for i in first[1:]), len(forest)]
    home = torch.bucketize(forest.previous[forest.index], torch.tensor(ends), right=True)
    trained = home.argsort(stable=True).split(home.bincount(minlength=len(first)).tolist())
    pieces = [
        Piece(
            begin,
            stop,
            nodes[begin].start,
            end,
            tuple(i for i in range(begin, stop) if forest.subtree_end[nodes[i].start] > end),
            trained[i],
        )
        for i, (begin, stop, end) in enumerate(
            zip(first, [*first[1:], len(nodes)], ends, strict=True)
        )
    ]
    return replace(forest, nodes=tuple(nodes)), pieces


def plan(forest: PackedTree, budget: int) -> list[Kind]:
    """The kinds of the passes that `training_passes` makes, in order.

    `plain_logprobs` makes as many as there are of the kind `TRAIN`.
    """
    if len(forest) <= budget:
        return [Kind.TRAIN]
    cut_forest, pieces = cut(forest, budget)
    known: set[int] = set()
    kinds: list[Kind] = []
    for piece in reversed(pieces):
        above = _unknown_above(cut_forest.nodes, piece, known)
        kinds += [*(Kind.TRUNK for _ in above), Kind.TRAIN]
        known = known.union(above).difference(piece.trunk)
    return kinds


def _unknown_above(nodes: Sequence[PackedNode], piece: Piece, known: Container[int]) -> list[int]:
    """The nodes above `piece` that are not `known`, from the top.

    All of them are above its first node, because pieces are contiguous in preorder.
    """
    above: list[int] = []
    node = nodes[piece.first].parent
    while node >= 0 and node not in known:
        above.append(node)
        node = nodes[node].parent
    return above[::-1]


def training_passes(
    checkpoint: Checkpoint,
    forest: PackedTree,
    pixels: Mapping[str, Pixels],
    temperature: float,
    budget: int,
    meet: Meet = alone,
) -> Iterator[Pass]:
    """Passes that cover each trained token once and together leave the loss's gradient.

    Their losses add up, because token weights hold the whole update's denominators. The gradient is
    complete when the iterator is exhausted, because the pictures come last. `meet` is called before
    each pass, with its kind.
    """
    if len(forest) <= budget:
        meet(Kind.TRAIN)
        logprobs = policy_logprobs(checkpoint, forest, pixels, temperature)
        yield Pass(torch.arange(forest.index.numel()), logprobs, torch.Tensor.backward)
        return
    split = _Split(checkpoint, forest, pixels, temperature, budget)
    for piece in reversed(split.pieces):
        split.prepare_above(piece, meet)
        meet(Kind.TRAIN)
        logprobs, kept = split.forward(piece)
        yield Pass(piece.trained, logprobs, partial(split.backward, kept))
    split.backward_pictures()


@torch.no_grad()
def plain_logprobs(
    checkpoint: Checkpoint,
    forest: PackedTree,
    pixels: Mapping[str, Pixels],
    temperature: float,
    budget: int,
    read: Read = log_probability,
    meet: Callable[[], None] = alone,
) -> torch.Tensor:
    """`policy_logprobs` without a gradient, in pieces if `forest` exceeds the budget.

    `meet` is called before each pass.
    """
    if len(forest) <= budget:
        meet()
        return policy_logprobs(checkpoint, forest, pixels, temperature, read)
    split = _Split(checkpoint, forest, pixels, temperature, budget, read)
    out = torch.empty(forest.index.numel(), device=checkpoint.model.device)
    for piece in split.pieces:
        meet()
        out[to_device(piece.trained, out.device)], kept = split.forward(piece)
        # They are copied, because views would keep the keys of the whole piece.
        split.remember({key: (k.clone(), v.clone()) for key, (k, v) in kept.items()})
        split.forget_before(piece.end)
    return out


class _Split:
    """A forest in pieces, with the leaves that they share.

    `states` are the trunk's keys and values, `shown` the pictures' features; if gradients are on,
    both collect them.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        forest: PackedTree,
        pixels: Mapping[str, Pixels],
        temperature: float,
        budget: int,
        read: Read = log_probability,
    ) -> None:
        self.checkpoint = checkpoint
        self.forest, self.pieces = cut(forest, budget)
        self.temperature, self.read = temperature, read
        self.states: NodeStates = {}
        pictures = distinct_pictures(forest)
        merge_size = checkpoint.processor.merge_size
        self.calls = _encoder_calls([pixels[d] for d in pictures], merge_size, budget)
        with torch.no_grad():
            features = [f for call in self.calls for f in self._encoded(call)]
            self.shown = show(checkpoint, forest, pictures, features)
        vision = checkpoint.processor.family.vision(checkpoint.model)
        self.trains_pictures = torch.is_grad_enabled() and any(
            parameter.requires_grad for parameter in vision.parameters()
        )
        if self.shown is not None and self.trains_pictures:
            for leaf in _tensors(self.shown.features):
                leaf.requires_grad_()

    def _encoded(self, call: Sequence[Pixels]) -> list[Features]:
        return self.checkpoint.through(partial(encode_pictures, self.checkpoint.model, call))

    def prepare_above(self, piece: Piece, meet: Meet = alone) -> None:
        """Compute those of the nodes above `piece` that no later piece has needed."""
        known = {node for node, _ in self.states}
        for node in _unknown_above(self.forest.nodes, piece, known):
            meet(Kind.TRUNK)
            # One pass per node makes states that are the node's alone, and can be freed alone.
            with torch.no_grad():
                kept = self.checkpoint.through(lambda at=(node,): self._hidden(at, at)[1])
            self.remember(kept)

    def forget_before(self, end: int) -> None:
        """Drop the nodes that no token from `end` on sees."""
        nodes, after = self.forest.nodes, self.forest.subtree_end
        for node, layer in list(self.states):
            if after[nodes[node].start] <= end:
                del self.states[node, layer]

    def remember(self, kept: NodeStates) -> None:
        """Let later pieces see these nodes of a pass without graph; leaves if gradients are on."""
        grad = torch.is_grad_enabled()
        for key, pair in kept.items():
            keys, values = (x.requires_grad_(grad) for x in pair)
            self.states[key] = keys, values

    def forward(self, piece: Piece) -> tuple[torch.Tensor, NodeStates]:
        """The logprobs [t] of the piece's trained tokens, and the keys and values of its trunk."""
        return self.checkpoint.through(partial(self._forward, piece))

    def _forward(self, piece: Piece) -> tuple[torch.Tensor, NodeStates]:
        hidden, kept = self._hidden(range(piece.first, piece.last), piece.trunk)
        index = self.forest.index[piece.trained]
        rows, tokens = self.forest.previous[index] - piece.start, self.forest.tokens[index]
        args = hidden, rows, tokens, self.temperature, self.read
        return token_logprobs(self.checkpoint, *args), kept

    def _hidden(
        self, chosen: Sequence[int], keep: Sequence[int]
    ) -> tuple[torch.Tensor, NodeStates]:
        nodes, model = self.forest.nodes, self.checkpoint.model
        layout = tree_layout(nodes, model.device, chosen, self.states, keep)
        at = torch.cat([torch.arange(nodes[i].start, nodes[i].end) for i in chosen])
        return hidden_states(self.checkpoint, self.forest, at, self.shown, layout), layout.kept

    def backward(self, kept: NodeStates, loss: torch.Tensor) -> None:
        """Go backward from `loss` and from the gradients of later pieces on this one's trunk."""
        tensors: list[torch.Tensor] = [loss]
        gradients: list[torch.Tensor | None] = [None]
        while kept:  # It is emptied, so that nothing keeps the piece in memory.
            key, pair = kept.popitem()
            for tensor, leaf in zip(pair, self.states.pop(key), strict=True):
                if tensor.requires_grad:  # It does not below the first adapter.
                    tensors.append(tensor)
                    gradients.append(leaf.grad)
        torch.autograd.backward(tensors, gradients)

    def backward_pictures(self) -> None:
        """Encode the pictures again with a graph; go backward from their features' gradients."""
        if self.shown is None or not self.trains_pictures:
            return
        leaves = _tensors(self.shown.features)
        first = 0
        for call in self.calls:
            tensors: list[torch.Tensor] = []
            gradients: list[torch.Tensor | None] = []
            for features in self._encoded(call):
                after = first + len(features.embeds)
                for found, leaf in zip(_tensors(features), leaves, strict=True):
                    assert leaf.grad is not None
                    tensors.append(found)
                    gradients.append(leaf.grad[first:after])
                first = after
            torch.autograd.backward(tensors, gradients)


def _tensors(features: Features) -> tuple[torch.Tensor, ...]:
    return features.embeds, *features.deepstack


def _encoder_calls(pictures: Sequence[Pixels], merge_size: int, budget: int) -> list[list[Pixels]]:
    """Neighbouring pictures, up to `budget` tokens per call; a larger picture has its own call."""
    calls: list[list[Pixels]] = []
    room = 0
    for picture in pictures:
        if (tokens := picture.tokens(merge_size)) > room:
            calls.append([])
            room = budget
        calls[-1].append(picture)
        room -= tokens
    return calls
