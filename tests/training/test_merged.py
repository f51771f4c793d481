"""A forest's attention merged from parts, against softmax over a full mask in float64."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch

from axpo.training.attention import parts
from axpo.training.merged import LONGEST, Parts
from axpo.training.packing import PackedNode
from tests.support.forests import oracle, random_forest
from tests.support.saved_bytes import SavedBytes

States = list[torch.Tensor]
EXACT = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 8e-3}
"""Relative error of values; of gradients three times that."""


def chain(*sizes: int) -> list[PackedNode]:
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [PackedNode(e - n, e, i - 1) for i, (n, e) in enumerate(zip(sizes, ends, strict=True))]


def star(prompt: int, *leaves: int) -> list[PackedNode]:
    nodes = [PackedNode(0, prompt, -1)]
    for leaf in leaves:
        nodes.append(PackedNode(nodes[-1].end, nodes[-1].end + leaf, 0))
    return nodes


def tokens(nodes: Sequence[PackedNode], some: Sequence[int]) -> int:
    return sum(nodes[i].end - nodes[i].start for i in some)


def by_full_mask(query, key, value, mask: torch.Tensor, scaling: float) -> torch.Tensor:
    """Softmax of all scores, with key heads repeated for the queries that share them."""
    again = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(again, dim=1) for x in (key, value))
    scores = query @ key.transpose(-1, -2) * scaling
    return scores.masked_fill(~mask, float("-inf")).softmax(dim=-1) @ value


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The error as a share; a token that sees itself alone has slopes of 0."""
    return ((found.double() - expected).norm() / expected.norm().clamp(min=1.0)).item()


class Case:
    """A pass over `chosen` nodes with drawn states, `heads` of queries and of keys."""

    def __init__(
        self, nodes: Sequence[PackedNode], chosen: Sequence[int], dtype: torch.dtype, heads=(4, 2)
    ) -> None:
        torch.manual_seed(0)
        self.nodes, self.chosen, self.parts = nodes, chosen, parts(nodes, chosen)
        count = tokens(nodes, chosen)

        def drawn(heads: int, tokens: int) -> torch.Tensor:
            # The axes as models lay them out: tokens before heads.
            return torch.randn(1, tokens, heads, 16, dtype=dtype).transpose(1, 2).requires_grad_()

        query, key = heads
        self.own = drawn(query, count), drawn(key, count), drawn(key, count)
        sizes = [tokens(nodes, [i]) for i in self.parts.given]
        self.given = [(drawn(key, size), drawn(key, size)) for size in sizes]
        self.slope = torch.randn(self.own[0].shape)

    def states(self) -> States:
        return [*self.own, *(x for pair in self.given for x in pair)]

    def found(self) -> tuple[torch.Tensor, States]:
        out = self.parts.attend(*self.own, self.given, 0.3)
        return out, list(torch.autograd.grad(out, self.states(), self.slope.to(out.dtype)))

    def expected(self) -> tuple[torch.Tensor, States]:
        query, key, value, *given = (x.detach().double().requires_grad_() for x in self.states())
        mask = oracle(self.nodes, self.chosen, (*self.parts.given, *self.chosen))
        keys, values = torch.cat([*given[::2], key], 2), torch.cat([*given[1::2], value], 2)
        out = by_full_mask(query, keys, values, mask, 0.3)
        slope = self.slope.to(self.own[0].dtype).double()
        return out, list(torch.autograd.grad(out, [query, key, value, *given], slope))

    def check(self) -> None:
        out, gradients = self.found()
        right, slopes = self.expected()
        bound = EXACT[out.dtype]
        assert relative(out, right) < bound
        for some, slope in zip(gradients, slopes, strict=True):
            assert relative(some, slope) < 3 * bound


SHAPES = {
    "one token": [PackedNode(0, 1, -1)],
    "single tokens": star(1, 1, 1, 1),
    "a chain": chain(3, 1, 40, 7),
    "long against short": star(300, 2, 1, 3),
    "short against long": star(1, 90, 130, 70),
    "in halves": star(LONGEST, LONGEST + 1, LONGEST, 2 * LONGEST + 1),
    "in halves of halves, across nodes": chain(1, 300, 2, 4 * LONGEST, 7),
    "wide": star(20, *([5, 1, 9] * 12)),
    "roots side by side": [PackedNode(0, 5, -1), PackedNode(5, 6, -1), PackedNode(6, 30, -1)],
    "nested, both children branch": [
        PackedNode(0, 30, -1), PackedNode(30, 35, 0), PackedNode(35, 50, 1), PackedNode(50, 51, 1),
        PackedNode(51, 60, 0), PackedNode(60, 70, 4), PackedNode(70, 90, 4),
    ],
}  # fmt: skip


@pytest.mark.parametrize("dtype", EXACT, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_trees(name: str, dtype: torch.dtype):
    nodes = SHAPES[name]
    Case(nodes, range(len(nodes)), dtype).check()


@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (4, 1)])
def test_heads_that_share_keys(heads: tuple[int, int]):
    nodes = SHAPES["nested, both children branch"]
    Case(nodes, range(len(nodes)), torch.float32, heads).check()


@pytest.mark.parametrize("dtype", EXACT, ids=str)
@pytest.mark.parametrize("seed", range(12))
def test_random_forests_and_parts_of_them(seed: int, dtype: torch.dtype):
    """Whole ones, and passes whose nodes see keys of nodes that are in none of their runs."""
    rng = random.Random(seed)
    nodes = random_forest(rng, rng.randint(2, 25), rng.choice([1, 4, 60]))
    chosen = list(range(len(nodes)))
    if seed % 3 == 1:
        first = rng.randrange(len(nodes))
        chosen = chosen[first : first + rng.randint(1, len(nodes))]
    elif seed % 3 == 2:
        chosen = sorted(rng.sample(chosen, rng.randint(1, len(nodes))))
    Case(nodes, chosen, dtype).check()


def test_nodes_outside_are_seen_by_what_is_below_them_alone():
    """Nodes 0 - 1 - 2, 0 - 1 - 3, 0 - 4; a pass over 3 and 4."""
    nodes = [
        PackedNode(0, 4, -1), PackedNode(4, 7, 0), PackedNode(7, 9, 1), PackedNode(9, 14, 1),
        PackedNode(14, 16, 0),
    ]  # fmt: skip
    found = parts(nodes, [3, 4])
    assert found == Parts(
        runs=(slice(0, 5), slice(5, 7)),
        branches=(),
        given=(0, 1),
        below=(slice(0, 7), slice(0, 5)),
    )
    Case(nodes, [3, 4], torch.float64).check()


def length(some: slice) -> int:
    return some.stop - some.start


def pairs(found: Parts, sizes: dict[int, int]) -> int:
    """Pairs of query and key that are computed."""
    causal = sum(length(run) * (length(run) + 1) // 2 for run in found.runs)
    across = sum(length(a) * length(b) for a, b in found.branches)
    above = sum(length(at) * sizes[i] for i, at in zip(found.given, found.below, strict=True))
    return causal + across + above


@pytest.mark.parametrize("seed", range(8))
def test_each_pair_is_computed_once_in_few_calls(seed: int):
    """One call per leaf, and one per node with several children; more where runs are long."""
    rng = random.Random(seed)
    nodes = random_forest(rng, rng.randint(2, 30), rng.choice([5, 2 * LONGEST]))
    chosen = range(rng.randrange(len(nodes)), len(nodes))
    found = parts(nodes, chosen)
    sizes = {i: tokens(nodes, [i]) for i in range(len(nodes))}
    needed = oracle(nodes, chosen, (*found.given, *chosen)).sum()
    assert pairs(found, sizes) == pairs(found.halved(), sizes) == needed
    branching = {i for i in chosen if sum(node.parent == i for node in nodes) > 1}
    leaves = set(chosen) - {node.parent for node in nodes}
    assert len(found.runs) == len(leaves)
    assert len(found.branches) == len(branching)


def test_a_long_run_is_computed_in_halves():
    """321 tokens: the first half fits into one call, the second is halved again."""
    one = 2 * LONGEST + 1
    found = Parts((slice(0, 9), slice(9, 9 + one)), ((slice(9, 11), slice(0, 9)),), (), ())
    first, third = 9 + one // 2, 9 + one // 2 + (one - one // 2) // 2
    assert found.halved() == Parts(
        runs=(slice(0, 9), slice(9, first), slice(first, third), slice(third, 9 + one)),
        branches=(
            (slice(third, 9 + one), slice(first, third)),
            (slice(first, 9 + one), slice(9, first)),
            (slice(9, 11), slice(0, 9)),
        ),
        given=(),
        below=(),
    )
    assert max(length(run) for run in found.halved().runs) == LONGEST


def test_a_parts_own_keys_are_neither_copied_nor_masked():
    """What is kept: the queries, keys and values as they came, the result and its logarithms."""
    nodes = SHAPES["wide"]
    case = Case(nodes, range(1, len(nodes)), torch.float32)
    with SavedBytes([]) as saved:
        out = case.parts.attend(*case.own, case.given, None)
    assert len(case.given) == 1 and out.requires_grad
    states = sum(x.numel() for x in case.states())
    assert saved.live == 4 * (states + out.numel() + out.numel() // 16)


def test_frozen_states_need_no_gradient():
    """As below the first adapter: keys of earlier passes that collect none."""
    nodes = star(6, 4, 3)
    case = Case(nodes, [1, 2], torch.float64)
    given = [(k.detach(), v.detach()) for k, v in case.given]
    out = case.parts.attend(*case.own, given, 0.3)
    found = torch.autograd.grad(out, case.own, case.slope.double())
    for some, slope in zip(found, case.expected()[1][:3], strict=True):
        assert relative(some, slope) < 1e-12


def test_numbers_far_apart_do_not_overflow():
    """One part's scores exceed the other's by 1,000: exp of that is no float64."""
    nodes = star(3, 2, 2)
    for sign in (1, -1):
        case = Case(nodes, range(3), torch.float64, heads=(1, 1))
        query, key, value = (x.detach().clone() for x in case.own)
        query[..., 0], key[:, :, :3, 0] = 20.0, 167.0 * sign
        case.own = query.requires_grad_(), key.requires_grad_(), value.requires_grad_()
        case.check()
