"""Sequence packing: every path whole, one behind the other without padding, each seeing itself.

This is what trainers do that pack (varlen FlashAttention over `cu_seqlens`); on a CPU it is one
causal call per sequence. A pass takes as many sequences as fit into as many tokens as the packed
tree has, but at least one, so that both sides have the same room.
"""

from __future__ import annotations

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
    node_path,
    places,
    trained_in,
)
from benchmarks.trainer import Trainer


class Sequences(Peer):
    """Packed rows of at most as many tokens as the tree."""

    def __init__(self, trainer: Trainer, task: Task) -> None:
        super().__init__(trainer, task)
        forest = task.forest
        leaves = [i for i, below in enumerate(children(forest)) if not below]
        batches: list[list[torch.Tensor]] = []
        room = 0
        for leaf in leaves:
            path = places(forest, node_path(forest, leaf))
            if len(path) > room:
                batches.append([])
                room = len(forest)
            batches[-1].append(path)
            room -= len(path)
        done = torch.zeros(forest.index.numel(), dtype=torch.bool)
        self.passes: list[tuple[torch.Tensor, list[int], Trained]] = []
        for batch in batches:
            at, lengths = torch.cat(batch), [len(path) for path in batch]
            trained = trained_in(forest, at, torch.arange(-1, len(at) - 1), done)
            self.passes.append((at, lengths, trained))
        assert done.all()

    def accumulate(self, pictures: Pictures) -> float:
        total = 0.0
        for at, lengths, trained in self.passes:
            loss = self.loss(self.hidden(at, pictures, Separate(lengths)), trained)
            loss.backward()
            total += loss.item()
        return total

    def work(self) -> ForwardPass:
        lengths = [length for _, lengths, _ in self.passes for length in lengths]
        return ForwardPass(
            tokens=sum(lengths),
            pairs=causal_pairs((0, length) for length in lengths),
            rows=sum(trained.rows.unique().numel() for _, _, trained in self.passes),
            pictures=(),
        )


class Separate:
    """Causal attention within each of the sequences of these `lengths`."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = lengths

    def __call__(self, call: Call) -> torch.Tensor:
        split = (x.split(self.lengths, dim=2) for x in (call.query, call.key, call.value))
        out = [
            scaled_dot_product_attention(q, k, v, is_causal=True, scale=call.scale, enable_gqa=True)
            for q, k, v in zip(*split, strict=True)
        ]
        return torch.cat(out, dim=2).transpose(1, 2)
