"""What training arrays say of each token, and that no Python object stands for one."""

from __future__ import annotations

import math
import random
import tracemalloc

import pytest
import torch

from axpo.training.items import item_weights, items
from axpo.training.packing import pack, sampled_logprobs
from axpo.training.parity import mismatch
from axpo.tree import Credit, Group, Origin, Segment, Stream, Trajectory
from tests.support.padded_oracle import credit_all


def random_group(rng: random.Random) -> Group:
    """Rollouts and nested branches of distinct tokens, with recorded logprobs and all streams."""
    counter = iter(range(10**6))

    def segment(id: str, kind: Origin, longest: int) -> Segment:
        tokens = tuple(next(counter) for _ in range(rng.randint(1, longest)))
        sampled = kind is Origin.POLICY
        return Segment(id, kind, tokens, tuple(-rng.random() for _ in tokens) if sampled else ())

    def trajectory(id: str) -> Trajectory:
        kinds = (Origin.POLICY, Origin.OBSERVATION, Origin.POLICY)[: rng.randint(1, 3)]
        return Trajectory(id, [segment(f"{id}/{i}", kind, 9) for i, kind in enumerate(kinds)])

    group = Group("g", segment("p", Origin.PROMPT, 4))
    group.rollouts = [trajectory(f"r{i}") for i in range(rng.randint(2, 5))]
    for b in range(rng.randint(0, 4)):
        source = rng.choice(list(group.trajectories()))
        start = group.offset(source)
        branch = group.fork(source, rng.randint(start, start + source.tokens))
        branch.continuations = [trajectory(f"b{b}c{k}") for k in range(rng.randint(1, 3))]
    for some in group.trajectories():
        own = group.offset(some)
        first = own + len(some.segments[0])
        stream = rng.choice([Stream.ROLLOUT, Stream.PATH, Stream.DISTILLED, Stream.DEMONSTRATION])
        some.credit = [Credit(own, first, rng.gauss(0, 1), stream, rng.random())]
        if len(some.segments) == 3:
            more = Credit(first, own + some.tokens, rng.gauss(0, 1), Stream.ROLLOUT, rng.random())
            some.credit.append(more)
    return group


@pytest.mark.parametrize("given", [False, True], ids=["recorded", "given"])
@pytest.mark.parametrize("seed", range(40))
def test_training_arrays_token_by_token(seed: int, given: bool):
    """To the bit what one dictionary entry a token says."""
    group = random_group(random.Random(seed))
    found = items(group)
    weights = item_weights([found, []], "question_mean")[0]
    sampled = {
        (group.id, t.id): [p for s in t.segments for p in (s.logprobs or (0.0,) * len(s))]
        for t in group.trajectories()
    }
    old = {
        key: torch.tensor([p - 0.25 for p in own], dtype=torch.float64)
        for key, own in sampled.items()
    }
    tree = pack(
        group,
        found,
        weights,
        lambda _: (1, 1, 1),
        2,
        old if given else None,
        lambda ours, theirs: (ours - theirs).exp(),
    )
    place = {token: i for i, token in enumerate(tree.tokens.tolist())}
    token = {
        (t.id, group.offset(t) + i): x
        for t in group.trajectories()
        for i, x in enumerate(x for s in t.segments for x in s.tokens)
    }
    rows = []
    for item, weight in zip(found, weights, strict=True):
        for offset in item.offsets:
            owner = group.lineage().owner(item.trajectory, offset)
            recorded = sampled[group.id, owner.id][offset - group.offset(owner)]
            ratio = item.credit.stream in (Stream.ROLLOUT, Stream.PATH)
            factor = math.exp(-0.25) if given and ratio else 1.0
            rows.append(
                (
                    place[token[owner.id, offset]],
                    recorded - 0.25 * given,
                    item.credit.advantage,
                    weight,
                    factor,
                    not ratio,
                    item.credit.stream is Stream.DISTILLED,
                )
            )
    index, olds, advantages, per_token, factors, likelihood, distilled = zip(*rows, strict=True)
    assert tree.index.tolist() == list(index)
    assert tree.old.tolist() == torch.tensor(olds).tolist()
    assert tree.advantages.tolist() == torch.tensor(advantages).tolist()
    assert tree.weights.tolist() == torch.tensor(per_token).tolist()
    assert tree.importance.tolist() == torch.tensor(factors).tolist()
    assert tree.likelihood.tolist() == list(likelihood)
    assert tree.distilled.tolist() == list(distilled)


def test_no_python_object_a_token():
    """An update has millions of tokens: taken one by one they take minutes and gigabytes."""
    tokens = tuple(range(20_000))
    group = Group("g", Segment("p", Origin.PROMPT, tokens))
    for i in range(4):
        segment = Segment(f"r{i}", Origin.POLICY, tokens, tuple(-t / 1e6 for t in tokens))
        group.rollouts.append(Trajectory(f"r{i}", [segment]))
        credit_all(group.rollouts[i], 0, 1.0, 0.25)
    old = {("g", t.id): sampled_logprobs(t, 0.0) for t in group.rollouts}

    def count(*_: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(tokens))

    tracemalloc.start()
    try:
        found = items(group)
        weights = item_weights([found], "token_mean")[0]
        tree = pack(group, found, weights, lambda _: (1, 1, 1), 2, old, count)
        mismatch([group], old)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    print(f"{peak / len(tree):.1f} bytes of Python's a token")
    assert len(tree) == 5 * len(tokens)
    # numpy's part of the arrays takes 10; a number in a list would take 32, in a dictionary 100.
    assert peak < 20 * len(tree)
