"""Depth first, one path at a time: AReaL-DTA's execution (arXiv 2602.00482), written anew.

The tree is walked in depth-first order with one stack of keys and values and one of their
gradients, both as long as the longest path. A node that others see is *pushed*: its keys and values
are computed without a graph. When all that is below it is done, it is *popped*: computed again with
a graph, on the keys and values above it as leaves, and taken backward from its loss and from the
gradients that its descendants left on its own keys and values. A leaf is only popped. Nodes longer
than `BLOCK` are popped in blocks, from the last to the first, so activations of one block exist at
a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from axpo.costs.flops import ForwardPass, causal_pairs
from benchmarks.peers.side import (
    Call,
    Peer,
    Pictures,
    Task,
    Trained,
    children,
    late_causal,
)
from benchmarks.trainer import Trainer

BLOCK = 2048


@dataclass(frozen=True, slots=True)
class Block:
    """The places [start, end) of the layout, after `above` tokens of its path; `pushed` if others
    see it."""

    start: int
    end: int
    above: int
    pushed: bool
    trained: Trained


class DepthFirst(Peer):
    """One path's keys and values, one block's activations."""

    def __init__(self, trainer: Trainer, task: Task, block: int = BLOCK) -> None:
        super().__init__(trainer, task)
        forest = task.forest
        self.below = children(forest)
        self.blocks: list[list[Block]] = []
        done = torch.zeros(forest.index.numel(), dtype=torch.bool)
        ends: list[int] = []
        for node, below in zip(forest.nodes, self.below, strict=True):
            above = ends[node.parent] if node.parent >= 0 else 0
            starts = range(node.start, node.end, block)
            self.blocks.append(
                [
                    Block(
                        start,
                        end := min(node.end, start + block),
                        above + start - node.start,
                        bool(below) or end < node.end,
                        _predicted(task, start, end, done),
                    )
                    for start in starts
                ]
            )
            ends.append(above + node.end - node.start)
        assert done.all()
        self.depth = max(ends)

    def accumulate(self, pictures: Pictures) -> float:
        text = self.trainer.checkpoint.model.config.text_config
        size = (1, text.num_key_value_heads, self.depth, text.head_dim)
        stack = Stack([torch.zeros(size) for _ in range(4 * text.num_hidden_layers)])
        total = 0.0
        for block, push in self.visits():
            at = torch.arange(block.start, block.end)
            if push:
                with torch.no_grad():
                    self.hidden(at, pictures, Pushing(stack, block.above))
            else:
                above = Popping(stack, block.above)
                loss = self.loss(self.hidden(at, pictures, above), block.trained)
                above.backward(loss, block.pushed)
                total += loss.item()
        return total

    def visits(self) -> Iterator[tuple[Block, bool]]:
        """Blocks in the order in which they are pushed (True) and popped."""
        waiting = [(0, False)]
        while waiting:
            node, below_done = waiting.pop()
            if not below_done:
                yield from ((block, True) for block in self.blocks[node] if block.pushed)
                waiting.append((node, True))
                waiting += [(child, False) for child in reversed(self.below[node])]
            else:
                yield from ((block, False) for block in reversed(self.blocks[node]))

    def work(self) -> ForwardPass:
        blocks = [block for node in self.blocks for block in node]
        return _pass(blocks, sum(block.trained.rows.unique().numel() for block in blocks))

    def again(self) -> ForwardPass:
        return _pass([block for node in self.blocks for block in node if block.pushed], 0)


def _predicted(task: Task, start: int, end: int, done: torch.Tensor) -> Trained:
    """The tokens that those at the places [start, end) predict, marked as `done`."""
    forest = task.forest
    before = forest.previous[forest.index]
    found = ((before >= start) & (before < end)).nonzero()[:, 0]
    done[found] = True
    return Trained(found, before[found] - start)


def _pass(blocks: list[Block], rows: int) -> ForwardPass:
    runs = [(block.above, block.end - block.start) for block in blocks]
    return ForwardPass(
        tokens=sum(length for _, length in runs), pairs=causal_pairs(runs), rows=rows, pictures=()
    )


class Stack:
    """By layer the keys, the values and the gradients of both [1, H_kv, depth, D] of one path."""

    def __init__(self, buffers: list[torch.Tensor]) -> None:
        self.layers = list(zip(*[iter(buffers)] * 4, strict=True))


class Pushing:
    """Attention of a block that comes onto the stack after `above` tokens."""

    def __init__(self, stack: Stack, above: int) -> None:
        self.stack, self.above = stack, above
        self.mask: torch.Tensor | None = None

    def seen(self, call: Call) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values that the block sees."""
        keys, values, key_grads, value_grads = self.stack.layers[call.layer]
        end = self.above + call.key.shape[2]
        keys[:, :, self.above : end] = call.key
        values[:, :, self.above : end] = call.value
        # What an earlier path left here.
        key_grads[:, :, self.above : end] = 0
        value_grads[:, :, self.above : end] = 0
        return keys[:, :, :end], values[:, :, :end]

    def __call__(self, call: Call) -> torch.Tensor:
        keys, values = self.seen(call)
        if self.above and self.mask is None:
            self.mask = late_causal(call.query.shape[2], keys.shape[2])
        out = scaled_dot_product_attention(
            call.query,
            keys,
            values,
            self.mask,
            is_causal=not self.above,
            scale=call.scale,
            enable_gqa=True,
        )
        return out.transpose(1, 2)


class Popping(Pushing):
    """The same with a graph: the stack's keys and values are leaves."""

    def __init__(self, stack: Stack, above: int) -> None:
        super().__init__(stack, above)
        self.leaves: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.own: list[tuple[torch.Tensor, torch.Tensor]] = []

    def seen(self, call: Call) -> tuple[torch.Tensor, torch.Tensor]:
        self.own.append((call.key, call.value))
        if not self.above:
            return call.key, call.value
        keys, values, *_ = self.stack.layers[call.layer]
        k, v = (x[:, :, : self.above].detach().requires_grad_() for x in (keys, values))
        self.leaves.append((k, v))
        return torch.cat([k, call.key], dim=2), torch.cat([v, call.value], dim=2)

    def backward(self, loss: torch.Tensor, pushed: bool) -> None:
        """Go backward from the loss and from what descendants left; leave the gradients of what is
        above."""
        tensors: list[torch.Tensor] = [loss]
        grads: list[torch.Tensor | None] = [None]
        if pushed:
            for own, (_, _, *left) in zip(self.own, self.stack.layers, strict=True):
                end = self.above + own[0].shape[2]
                tensors += own
                grads += [grad[:, :, self.above : end] for grad in left]
        torch.autograd.backward(tensors, grads)
        for pair, (_, _, *left) in zip(self.leaves, self.stack.layers, strict=False):
            for leaf, grad in zip(pair, left, strict=True):
                assert leaf.grad is not None
                grad[:, :, : self.above] += leaf.grad
