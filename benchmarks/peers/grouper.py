"""PrefixGrouper: a shared prefix computed once for its suffixes (`prefix_grouper` on PyPI).

Its grouping and ungrouping are its own; attention it leaves to its user. The one here is one SDPA
call a suffix, without the padding that ungrouping adds (what varlen FlashAttention would do). It
shares one level of a tree, so a tree with more has two ways:

    one group          the prompt is the prefix; a path's tokens after it are its suffix, frozen
                       tokens of a source repeated in each of its continuations
    a group a prefix   a pass for each node that ends in leaves: its whole path is the prefix

Either way all rows of a group are one pass.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from axpo.costs.flops import ForwardPass, causal_pairs
from axpo.training.packing import PackedTree
from benchmarks.peers.side import (
    Call,
    Peer,
    Pictures,
    Task,
    Trained,
    children,
    late_causal,
    node_path,
    places,
    trained_in,
)
from benchmarks.trainer import Trainer


def missing() -> str | None:
    """Why PrefixGrouper cannot run here; None if it can."""
    if importlib.util.find_spec("prefix_grouper") is None:
        return "prefix_grouper is not installed: pip install prefix_grouper"
    return None


@dataclass(frozen=True, slots=True)
class Shared:
    """A prefix and its suffixes, as places in the tree's layout."""

    prefix: torch.Tensor
    suffixes: list[torch.Tensor]

    @property
    def lengths(self) -> list[int]:
        return [len(suffix) for suffix in self.suffixes]

    @property
    def at(self) -> torch.Tensor:
        return torch.cat([self.prefix, *self.suffixes])

    def before(self) -> torch.Tensor:
        """The row of the token before each one."""
        before = torch.arange(-1, len(self.at) - 1)
        start = len(self.prefix)
        for length in self.lengths:
            before[start] = len(self.prefix) - 1
            start += length
        return before


def one_group(forest: PackedTree) -> list[Shared]:
    """All paths as suffixes of what they have in common."""
    below = children(forest)
    leaves = [i for i, some in enumerate(below) if not some]
    fork = 0
    while len(below[fork]) == 1:
        fork = below[fork][0]
    top = node_path(forest, fork)
    suffixes = [places(forest, node_path(forest, leaf)[len(top) :]) for leaf in leaves]
    return [Shared(places(forest, top), suffixes)]


def group_a_prefix(forest: PackedTree) -> list[Shared]:
    """For every node with leaves below it, these as suffixes of its path."""
    below = children(forest)
    found: list[Shared] = []
    for i, some in enumerate(below):
        leaves = [child for child in some if not below[child]]
        if leaves:
            prefix = places(forest, node_path(forest, i))
            found.append(Shared(prefix, [places(forest, [leaf]) for leaf in leaves]))
    return found


class Grouped(Peer):
    """A pass for each of the groups."""

    def __init__(self, trainer: Trainer, task: Task, groups: list[Shared]) -> None:
        super().__init__(trainer, task)
        done = torch.zeros(task.forest.index.numel(), dtype=torch.bool)
        self.passes: list[tuple[Shared, Trained]] = [
            (group, trained_in(task.forest, group.at, group.before(), done)) for group in groups
        ]
        assert done.all()

    def accumulate(self, pictures: Pictures) -> float:
        total = 0.0
        for group, trained in self.passes:
            hidden = self.hidden(group.at, pictures, Grouping(group))
            loss = self.loss(hidden, trained)
            loss.backward()
            total += loss.item()
        return total

    def work(self) -> ForwardPass:
        groups = [group for group, _ in self.passes]
        runs = [(0, len(group.prefix)) for group in groups]
        runs += [(len(group.prefix), length) for group in groups for length in group.lengths]
        return ForwardPass(
            tokens=sum(length for _, length in runs),
            pairs=causal_pairs(runs),
            rows=sum(trained.rows.unique().numel() for _, trained in self.passes),
            pictures=(),
        )


class Grouping:
    """PrefixGrouper's attention over a group: its prefix, then one call a suffix."""

    def __init__(self, group: Shared) -> None:
        from prefix_grouper import PrefixGrouper

        self.prefix, self.lengths = len(group.prefix), group.lengths
        self.grouper: Any = PrefixGrouper([[self.prefix, *self.lengths]])
        longest = max(self.lengths)
        self.mask = late_causal(longest, self.prefix + longest)

    def __call__(self, call: Call) -> torch.Tensor:
        return self.grouper.forward(self.attend, call.query, call.key, call.value, call.scale)

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor,
        scale: float | None,
    ) -> torch.Tensor:
        """What PrefixGrouper calls for the prefix [1, H, P, D], then for the suffixes [rows, H, S,
        D] with keys and values of prefix and suffix; returns [rows, tokens, H, D]."""
        if query.shape[2] == key.shape[2]:
            out = scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=scale, enable_gqa=True
            )
            return out.transpose(1, 2)
        rows: list[torch.Tensor] = []
        for i, length in enumerate(self.lengths):
            seen = self.prefix + length
            assert self.mask is not None
            attended = scaled_dot_product_attention(
                query[i : i + 1, :, :length],
                key[i : i + 1, :, :seen],
                value[i : i + 1, :, :seen],
                self.mask[:length, :seen],
                scale=scale,
                enable_gqa=True,
            )
            rows.append(pad(attended, (0, 0, 0, query.shape[2] - length)))
        return torch.cat(rows).transpose(1, 2)
