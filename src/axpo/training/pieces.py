"""A forest of any size, forward and backward, in memory that a token budget bounds.

A forest within the budget is one pass. A larger tree is cut into *pieces*, consecutive runs of
its preorder layout, and only one piece at a time holds a graph for backward. What pieces share
is computed without graph and then stands as *leaves* that gather gradients: the features of the
pictures, and the keys and values of the *trunk*, the nodes that a later piece looks back on.
Pieces are trained last to first, and what stands above a piece is computed when the last piece
below it comes. By the time a piece goes backward, every piece below it has left its gradient on
the trunk's leaves, so one backward call starts from the piece's loss and from its own keys and
values with those gradients; these leaves are then done. The pictures go last, the same way.

This is the chain rule in another order: the gradient is exact. A token's logprob is trained in
the piece of the token that *predicts* it, so nothing but keys and values crosses a border, and a
border may lie anywhere: between branches, inside a path, inside a picture.

Memory beside weights: the activations of one piece (at most `budget` tokens) or of one encoder
call (at most `budget` picture tokens, or one picture), keys and values of the trunk above the
piece and of its own, and the pictures' features; keys, values and features twice, with their
gradients.
Work: the trunk and the pictures go forward twice, all else as often as without pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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


@dataclass(frozen=True, slots=True)
class Piece:
    """Nodes [first, last) of a cut forest: its layout's tokens [start, end).

    `trunk` are those of the nodes that later pieces look back on; `trained` [t] are the places
    in the forest's `index` of the trained tokens that this piece's tokens predict.
    """

    first: int
    last: int
    start: int
    end: int
    trunk: tuple[int, ...]
    trained: torch.Tensor


@dataclass(frozen=True, slots=True)
class Pass:
    """A part of the trained tokens: `logprobs` [t] of those at the places `trained` [t] of T.

    Both may be empty. `backward(loss)` belongs to every pass, before the next one is asked for.
    """

    trained: torch.Tensor
    logprobs: torch.Tensor
    backward: Callable[[torch.Tensor], None]


def cut(forest: PackedTree, budget: int) -> tuple[PackedTree, list[Piece]]:
    """Cut `forest` into pieces of at most `budget` tokens.

    Nodes stay whole as long as they fit, for what is cut through becomes trunk; one that does
    not fit opens a piece, and one larger than the budget goes on through several. The forest
    that is returned has the pieces' parts of such nodes as nodes of their own.
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
    pieces = [
        Piece(
            begin,
            stop,
            nodes[begin].start,
            end,
            tuple(i for i in range(begin, stop) if forest.subtree_end[nodes[i].start] > end),
            (home == i).nonzero()[:, 0],
        )
        for i, (begin, stop, end) in enumerate(
            zip(first, [*first[1:], len(nodes)], ends, strict=True)
        )
    ]
    return replace(forest, nodes=tuple(nodes)), pieces


def training_passes(
    checkpoint: Checkpoint,
    forest: PackedTree,
    pixels: Mapping[str, Pixels],
    temperature: float,
    budget: int,
) -> Iterator[Pass]:
    """Passes that cover each trained token once; together they leave the loss's gradient.

    Their losses add up, for token weights hold the whole update's denominators. The gradient is
    whole once the iterator is exhausted: the pictures come last.
    """
    if len(forest) <= budget:
        logprobs = policy_logprobs(checkpoint, forest, pixels, temperature)
        yield Pass(torch.arange(forest.index.numel()), logprobs, torch.Tensor.backward)
        return
    split = _Split(checkpoint, forest, pixels, temperature, budget)
    for piece in reversed(split.pieces):
        split.prepare_above(piece)
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
) -> torch.Tensor:
    """`policy_logprobs` without a gradient, in pieces where `forest` exceeds the budget."""
    if len(forest) <= budget:
        return policy_logprobs(checkpoint, forest, pixels, temperature, read)
    split = _Split(checkpoint, forest, pixels, temperature, budget, read)
    out = torch.empty(forest.index.numel(), device=checkpoint.model.device)
    for piece in split.pieces:
        out[to_device(piece.trained, out.device)], kept = split.forward(piece)
        # Copies: views would hold the keys of the whole piece.
        split.remember({key: (k.clone(), v.clone()) for key, (k, v) in kept.items()})
        split.forget_before(piece.end)
    return out


class _Split:
    """A forest in pieces, with the leaves that they share.

    `states` are the trunk's keys and values, `shown` the pictures' features; where grad is on,
    both gather it.
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
            features = [f for call in self.calls for f in encode_pictures(checkpoint.model, call)]
            self.shown = show(checkpoint, forest, pictures, features)
        visual = checkpoint.model.model.visual
        self.trains_pictures = torch.is_grad_enabled() and any(
            parameter.requires_grad for parameter in visual.parameters()
        )
        if self.shown is not None and self.trains_pictures:
            for leaf in _tensors(self.shown.features):
                leaf.requires_grad_()

    def prepare_above(self, piece: Piece) -> None:
        """Compute those of the nodes above `piece` that no piece after it has looked back on.

        All stand above its first node: what a later one looks back on spans what is between.
        """
        nodes, above = self.forest.nodes, list[int]()
        node = nodes[piece.first].parent
        while node >= 0 and (node, 0) not in self.states:
            above.append(node)
            node = nodes[node].parent
        for node in reversed(above):
            # A pass a node: what it computed is the node's alone, to be kept and freed as it is.
            with torch.no_grad():
                _, kept = self._hidden((node,), (node,))
            self.remember(kept)

    def forget_before(self, end: int) -> None:
        """Drop nodes that no token from `end` on looks back on."""
        nodes, after = self.forest.nodes, self.forest.subtree_end
        for node, layer in list(self.states):
            if after[nodes[node].start] <= end:
                del self.states[node, layer]

    def remember(self, kept: NodeStates) -> None:
        """Let later pieces see these nodes of a pass without graph, as leaves where grad is on."""
        grad = torch.is_grad_enabled()
        for key, pair in kept.items():
            keys, values = (x.requires_grad_(grad) for x in pair)
            self.states[key] = keys, values

    def forward(self, piece: Piece) -> tuple[torch.Tensor, NodeStates]:
        """Logprobs [t] of the piece's trained tokens; keys and values of its trunk."""
        hidden, kept = self._hidden(range(piece.first, piece.last), piece.trunk)
        index = self.forest.index[piece.trained]
        rows, tokens = self.forest.previous[index] - piece.start, self.forest.tokens[index]
        args = hidden, rows, tokens, self.temperature, self.read
        return token_logprobs(self.checkpoint, *args), kept

    def _hidden(
        self, chosen: Sequence[int], keep: Sequence[int]
    ) -> tuple[torch.Tensor, NodeStates]:
        nodes, model = self.forest.nodes, self.checkpoint.model
        layout = tree_layout(nodes, model.dtype, model.device, chosen, self.states, keep)
        at = torch.cat([torch.arange(nodes[i].start, nodes[i].end) for i in chosen])
        return hidden_states(self.checkpoint, self.forest, at, self.shown, layout), layout.kept

    def backward(self, kept: NodeStates, loss: torch.Tensor) -> None:
        """Backward from `loss` and from what later pieces want of this one's trunk."""
        tensors: list[torch.Tensor] = [loss]
        gradients: list[torch.Tensor | None] = [None]
        while kept:  # emptied, so that no piece outlives its turn
            key, pair = kept.popitem()
            for tensor, leaf in zip(pair, self.states.pop(key), strict=True):
                if tensor.requires_grad:  # not below the first adapter
                    tensors.append(tensor)
                    gradients.append(leaf.grad)
        torch.autograd.backward(tensors, gradients)

    def backward_pictures(self) -> None:
        """Encode the pictures again, with graph, and pass on what their features gathered."""
        if self.shown is None or not self.trains_pictures:
            return
        leaves = _tensors(self.shown.features)
        first = 0
        for call in self.calls:
            tensors: list[torch.Tensor] = []
            gradients: list[torch.Tensor | None] = []
            for features in encode_pictures(self.checkpoint.model, call):
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
    """Neighbouring pictures together, up to `budget` tokens per call; a larger one goes alone."""
    calls: list[list[Pixels]] = []
    room = 0
    for picture in pictures:
        if (tokens := picture.tokens(merge_size)) > room:
            calls.append([])
            room = budget
        calls[-1].append(picture)
        room -= tokens
    return calls
