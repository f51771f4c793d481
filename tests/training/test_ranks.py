"""What ranks agree on before the first pass: the plans of passes, their order, who trains what."""

from __future__ import annotations

from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import axpo
from axpo.training.batches import shared
from axpo.training.pieces import plain_logprobs, plan, training_passes
from axpo.training.ranks import Kind, rounds, shares
from tests.support.packing import packed
from tests.support.padded_oracle import branching_group, demonstration_group
from tests.support.tiny import tiny_checkpoint


@pytest.mark.parametrize("budget", [10_000, 200, 61, 17])
def test_passes_are_those_of_the_plan(budget: int):
    torch.set_num_threads(1)
    checkpoint = tiny_checkpoint()
    forest, pixels = packed(checkpoint, [branching_group(checkpoint, 1)])
    met: list[Kind] = []
    for some in training_passes(checkpoint, forest, pixels, 1.0, budget, met.append):
        some.backward(some.logprobs.sum())
    assert met == plan(forest, budget)
    assert (Kind.TRUNK in met) == (budget < len(forest))
    plain: list[Kind] = []
    plain_logprobs(checkpoint, forest, pixels, 1.0, budget, meet=partial(plain.append, Kind.PLAIN))
    assert len(plain) == met.count(Kind.TRAIN)


@given(st.lists(st.lists(st.sampled_from(Kind), max_size=6), min_size=1, max_size=4))
def test_rounds_hold_every_plan_and_none_is_in_vain(plans: list[list[Kind]]):
    order = rounds(plans)
    takers = [0] * len(order)
    for plan_of_rank in plans:
        left = iter(range(len(order)))
        for kind in plan_of_rank:
            takers[next(i for i in left if order[i] == kind)] += 1
    assert all(takers)
    assert len(order) <= sum(map(len, plans))
    if len({tuple(plan_of_rank) for plan_of_rank in plans}) == 1:
        assert order == plans[0]


def test_rounds_of_unequal_plans():
    reference, trunk, train = Kind.REFERENCE, Kind.TRUNK, Kind.TRAIN
    plans = [[reference, train], [reference, reference, trunk, train, train], []]
    assert rounds(plans) == [reference, reference, trunk, train, train]


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), max_size=6), st.integers(1, 3))
def test_shares_are_within_a_third_of_the_best(sizes: list[int], ranks: int):
    found = shares(sizes, ranks)
    assert sorted(place for share in found for place in share) == list(range(len(sizes)))
    largest = max(sum(sizes[place] for place in share) for share in found)
    best = min(
        max(
            sum(s for s, r in zip(sizes, owners, strict=True) if r == rank) for rank in range(ranks)
        )
        for owners in product(range(ranks), repeat=len(sizes))
    )
    assert 3 * largest <= 4 * best


def test_groups_are_shared_by_tokens():
    checkpoint = tiny_checkpoint()
    tree = branching_group(checkpoint, 0, "tree")
    small = [demonstration_group(checkpoint, seed, f"d{seed}") for seed in range(3)]
    assert [[g.id for g in part] for part in shared([*small, tree], 2)] == [
        ["tree"],
        ["d0", "d1", "d2"],
    ]
    assert shared([tree], 2) == [[tree], []]


def test_one_module_knows_of_sharding():
    source = Path(axpo.__file__).parent
    found = {
        file.relative_to(source).as_posix()
        for file in source.rglob("*.py")
        if "torch.distributed.fsdp" in file.read_text()
    }
    assert found == {"training/sharding.py"}
