"""Packed trees: their layout, their credit, and parity with one forward pass a row."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from axpo.algorithms.losses import TokenBatch
from axpo.errors import TreeError
from axpo.models.loading import Checkpoint
from axpo.training import attention, policy
from axpo.training.items import item_weights, items
from axpo.training.packing import PackedNode, PackedTree, join, pack
from axpo.training.policy import policy_logprobs
from axpo.tree import Credit, Group, Origin, Segment, Stream, Trajectory
from tests.support.packing import CLIP, pack_text, packed, text_group
from tests.support.padded_oracle import (
    branching_group,
    credit_all,
    demonstration_group,
    gradients,
    next_token_logprobs,
    oracle_loss,
    padded_inputs,
    row_inputs,
    trained_logprobs,
)
from tests.support.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    torch.set_num_threads(1)
    return tiny_checkpoint(0)


@pytest.fixture(scope="module")
def groups(checkpoint: Checkpoint) -> list[Group]:
    return [
        branching_group(checkpoint, 1, "a"),
        demonstration_group(checkpoint, 2, "d"),
        branching_group(checkpoint, 3, "b"),
    ]


def expected_logprobs(
    checkpoint: Checkpoint, groups: list[Group], padded: bool = False
) -> torch.Tensor:
    return torch.cat([x[2] for g in groups for x in trained_logprobs(checkpoint, g, padded)])


# ------------------------------------------------------------------ layout


def test_layout_by_hand():
    tree = pack_text(text_group())
    # Offset 1 of r1 (token 21) is the source's masked rest: nothing trained needs it.
    assert tree.tokens.tolist() == [1, 2, 10, 11, 12, 13, 20, 30, 40, 31, 41]
    assert tree.previous.tolist() == [-1, 0, 1, 2, 3, 4, 1, 6, 7, 6, 9]
    assert tree.subtree_end.tolist() == [11, 11, 6, 6, 6, 6, 11, 9, 9, 11, 11]
    assert tree.positions.tolist() == [[0, 1, 2, 3, 4, 5, 2, 3, 4, 3, 4]] * 3
    assert [(n.start, n.end, n.parent) for n in tree.nodes] == [
        (0, 2, -1), (2, 6, 0), (6, 7, 0), (7, 9, 2), (9, 11, 2),
    ]  # fmt: skip
    assert tree.tokens[tree.index].tolist() == [10, 11, 12, 13, 20, 30, 40, 31, 41]
    assert tree.advantages.tolist() == [-1.0] * 4 + [2.0] + [1.0] * 2 + [-1.0] * 2
    assert tree.old.tolist() == [-1.0] * 5 + [-2.0, -3.0] * 2
    assert tree.weights.tolist() == [0.125] * 4 + [0.5] + [0.25] * 4
    assert tree.path_tokens == 6 + 3 + 5 + 5


def test_uncredited_trajectories_are_left_out():
    group = text_group()
    group.rollouts[0].credit = []
    group.branches[0].continuations[0].credit = []
    tree = pack_text(group)
    assert tree.tokens.tolist() == [1, 2, 20, 31, 41]
    assert tree.previous.tolist() == [-1, 0, 1, 2, 3]
    assert attention.parts(tree.nodes, range(3)).runs == (slice(0, 5),)


def test_join_keeps_trees_apart():
    one, group = pack_text(text_group()), text_group()
    group.prompt = replace(group.prompt, tokens=(3, 2))
    other = pack_text(group)
    both = join([one, other])
    n = len(one)
    assert both.previous[n:].tolist() == [-1, *(one.previous[1:] + n).tolist()]
    assert both.subtree_end[n:].tolist() == (one.subtree_end + n).tolist()
    assert both.tokens[both.index].tolist() == one.tokens[one.index].tolist() * 2
    assert [node.parent for node in both.nodes] == [-1, 0, 0, 2, 2, -1, 5, 5, 7, 7]
    assert both.groups == ("g", "g")


def test_what_all_prompts_begin_with_is_laid_out_once():
    trees = list[PackedTree]()
    for prompt in ((1, 2, 3, 4), (1, 2, 3), (1, 2, 5)):
        group = text_group()
        group.prompt = replace(group.prompt, tokens=prompt)
        trees.append(pack_text(group))
    joined = join(trees)
    answers = [10, 11, 12, 13, 20, 30, 40, 31, 41]
    assert joined.tokens.tolist() == [1, 2, 3, 4, *answers, 3, *answers, 5, *answers]
    assert joined.previous[[0, 1, 2, 3, 4, 8, 13, 14, 23, 24]].tolist() == [
        -1, 0, 1, 2, 3, 3, 1, 13, 1, 23,
    ]  # fmt: skip
    assert joined.subtree_end[[0, 1, 2, 13, 23]].tolist() == [33, 33, 13, 23, 33]
    assert joined.positions[0][[2, 3, 4, 13, 14, 23, 24]].tolist() == [2, 3, 4, 2, 3, 2, 3]
    assert [(n.start, n.end, n.parent) for n in joined.nodes[:3]] == [
        (0, 2, -1), (2, 4, 0), (4, 8, 1),
    ]  # fmt: skip
    assert [n.parent for n in joined.nodes] == [-1, 0, 1, 1, 3, 3, 0, 6, 6, 8, 8, 0, 11, 11, 13, 13]
    assert joined.tokens[joined.index].tolist() == answers * 3
    # A prompt that is another's beginning keeps one token, from which its answers are predicted.
    short = join([trees[0], trees[1]])
    assert short.tokens.tolist() == [1, 2, 3, 4, *answers, 3, *answers]
    assert len(join([trees[0]])) == len(trees[0])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_paths_follow_from_any_layout(seed: int):
    """`previous` walks back along the path; the one-integer mask shows exactly the path."""
    rng = random.Random(seed)
    counter = iter(range(10**6))

    def trajectory(id: str) -> Trajectory:
        lengths = [rng.randint(1, 5) for _ in range(rng.randint(1, 3))]
        tokens = [tuple(next(counter) for _ in range(n)) for n in lengths]
        kinds = (Origin.POLICY, Origin.OBSERVATION, Origin.POLICY)
        return Trajectory(
            id,
            [
                Segment(f"{id}/{i}", kind, t, (-1.0,) * len(t) if kind is Origin.POLICY else ())
                for i, (t, kind) in enumerate(zip(tokens, kinds, strict=False))
            ],
        )

    group = Group("g", Segment("p", Origin.PROMPT, tuple(next(counter) for _ in range(3))))
    group.rollouts = [trajectory(f"r{i}") for i in range(rng.randint(1, 4))]
    for b in range(rng.randint(0, 4)):
        source = rng.choice(list(group.trajectories()))
        start = group.offset(source)
        branch = group.fork(source, rng.randint(start, start + source.tokens))
        branch.continuations = [trajectory(f"b{b}c{k}") for k in range(rng.randint(0, 3))]
    for some in group.trajectories():
        if rng.random() < 0.7:
            credit_all(some, group.offset(some), 1.0, 1.0)
    found = items(group)
    if not found:
        return
    tree = pack(group, found, [1.0] * len(found), lambda _: (1, 1, 1), 2)
    assert len(set(tree.tokens.tolist())) == len(tree)
    queries = torch.arange(len(tree))
    for item in found:
        tokens = [t for s in group.path(item.trajectory) for t in s.tokens]
        upto = tokens[: len(group.prompt) + item.offsets[-1] + 1]
        walk, at = [], tree.tokens.tolist().index(upto[-1])
        seen = tree.tokens[(queries <= at) & (at < tree.subtree_end)].tolist()
        while at >= 0:
            walk.append(tree.tokens[at].item())
            at = int(tree.previous[at])
        assert walk[::-1] == upto == seen
    found = attention.parts(tree.nodes, range(len(tree.nodes)))
    parents = {node.parent for node in tree.nodes}
    assert len(found.runs) == len(set(range(len(tree.nodes))) - parents)


# ------------------------------------------------------------------ credit


def rollout(id: str, *lengths: int) -> Trajectory:
    """Policy and observation segments in turn."""
    kinds = (Origin.POLICY, Origin.OBSERVATION)
    return Trajectory(
        id,
        [
            Segment(f"{id}/{i}", kinds[i % 2], (7,) * n, () if i % 2 else (-1.0,) * n)
            for i, n in enumerate(lengths)
        ],
    )


def selected_group(continuations: int) -> Group:
    """N = 2: a plain rollout of 5 tokens, and a selected one cut at 4 of its 6 + 3 + 2."""
    group = Group("g", Segment("p", Origin.PROMPT, (1, 2)))
    group.rollouts = [rollout("plain", 5), rollout("source", 6, 3, 2)]
    credit_all(group.rollouts[0], 0, 1.0, 0.5)
    group.rollouts[1].credit = [Credit(0, 4, 1.0, Stream.PREFIX, 0.5)]
    branch = group.fork(group.rollouts[1], 4)
    for k in range(continuations):
        branch.continuations.append(rollout(f"c{k}", 2, 3, 8))
        credit_all(branch.continuations[k], 4, 1.0, 0.5)
    return group


@pytest.mark.parametrize("continuations", [2, 4])
def test_question_mean_by_hand(continuations: int):
    """Eq. 5: prefix and each continuation weigh 1/N, however many continuations there are."""
    group, other = selected_group(continuations), Group("empty", Segment("q", Origin.PROMPT, (1,)))
    found = [items(group), items(other)]
    weights = item_weights(found, "question_mean")
    # 1/N = 0.5, over the item's policy tokens (5, 4, 2 + 8), over 2 questions.
    assert weights == [[0.5 / 5 / 2, 0.5 / 4 / 2, *[0.5 / 10 / 2] * continuations], []]
    assert [len(i.offsets) for i in found[0]] == [5, 4, *[10] * continuations]


def test_token_mean_by_hand():
    found = [items(selected_group(2)), items(selected_group(4))]
    total = (5 + 4 + 2 * 10) + (5 + 4 + 4 * 10)
    assert item_weights(found, "token_mean") == [[1 / total] * 4, [1 / total] * 6]


@pytest.mark.parametrize(
    ("credit", "message"),
    [
        ([(0, 4), (3, 6)], r"trajectory source: .*\[3, 6\) overlaps .* offset 3"),
        ([(6, 9)], r"trajectory source: .*\[6, 9\) holds no policy token"),
        ([(2, 2)], r"trajectory source: .* holds no policy token"),
        ([(0, 12)], r"trajectory source: .*\[0, 12\) leaves .* own tokens \[0, 11\)"),
    ],
)
def test_bad_credit_names_the_trajectory(credit: list[tuple[int, int]], message: str):
    group = selected_group(2)
    group.rollouts[1].credit = [Credit(a, b, 1.0, Stream.ROLLOUT, 0.5) for a, b in credit]
    with pytest.raises(TreeError, match=message):
        items(group)


def test_credit_below_a_continuations_cut_is_refused():
    group = selected_group(2)
    group.branches[0].continuations[0].credit = [Credit(3, 6, 1.0, Stream.CONTINUATION, 0.5)]
    with pytest.raises(TreeError, match=r"trajectory c0: .* own tokens \[4, 17\)"):
        items(group)


def test_unsampled_tokens_train_only_as_demonstrations(checkpoint: Checkpoint):
    group = demonstration_group(checkpoint, 0)
    assert [len(i.offsets) for i in items(group)] == [11]
    credit_all(group.rollouts[0], 0, 1.0, 1.0)
    with pytest.raises(TreeError, match="without logprobs"):
        items(group)


# ------------------------------------------------------------------ parity


def test_positions_are_transformers_own(checkpoint: Checkpoint, groups: list[Group]):
    forest, _ = packed(checkpoint, [groups[0]])
    place = {}
    for item in items(groups[0]):
        at = forest.index[sum(len(i) for i in place.values()) :][: len(item.offsets)]
        place[item.trajectory.id, item.credit.start] = at
        row = row_inputs(checkpoint, groups[0], item.trajectory)
        row.pop("pixel_values")
        positions, _ = checkpoint.model.model.get_rope_index(**row)
        columns = torch.tensor(item.offsets) + len(groups[0].prompt)
        assert torch.equal(forest.positions[:, at], positions[:, 0, columns])


@torch.no_grad()
def test_logprobs_equal_rows(checkpoint: Checkpoint, groups: list[Group]):
    forest, pixels = packed(checkpoint, groups)
    logprobs = policy_logprobs(checkpoint, forest, pixels)
    rows = expected_logprobs(checkpoint, groups)
    padded = expected_logprobs(checkpoint, groups, padded=True)
    print(f"packed {(logprobs - rows).abs().max():.1e}, padded {(padded - rows).abs().max():.1e}")
    assert (logprobs - rows).abs().max() < 1e-5
    assert (padded - rows).abs().max() < 1e-5


def test_gradients_equal_rows(checkpoint: Checkpoint, groups: list[Group]):
    forest, pixels = packed(checkpoint, groups)
    logprobs = policy_logprobs(checkpoint, forest, pixels)
    batch = TokenBatch(logprobs, forest.old, None, forest.advantages, forest.weights)
    ours = gradients(checkpoint, CLIP(batch)[0])
    rows = gradients(checkpoint, oracle_loss(checkpoint, groups, CLIP, "question_mean"))
    error = ((ours - rows).norm() / rows.norm()).item()
    print(f"gradient rel-L2 {error:.1e}")
    assert error < 1e-5


@torch.no_grad()
def test_negative_controls(checkpoint: Checkpoint, groups: list[Group]):
    """The comparison notices a wrong mask, wrong positions and a picture in a wrong place."""
    forest, pixels = packed(checkpoint, [groups[0]])
    rows = expected_logprobs(checkpoint, [groups[0]])
    chain = tuple(PackedNode(n.start, n.end, i - 1) for i, n in enumerate(forest.nodes))
    wrong = {
        "causal mask": replace(forest, nodes=chain),
        "arange positions": replace(forest, positions=torch.arange(len(forest)).expand(3, -1)),
        "swapped crops": replace(forest, pictures=forest.pictures[:2] + forest.pictures[:1:-1]),
    }
    sizes = {d: p.values.shape for d, p in pixels.items()}
    for name, bad in wrong.items():
        if name == "swapped crops":
            same = [d for d in bad.pictures if sizes[d] == sizes[bad.pictures[0]]]
            swap = {same[0]: same[-1], same[-1]: same[0]}
            bad = replace(forest, pictures=tuple(swap.get(d, d) for d in forest.pictures))
        error = (policy_logprobs(checkpoint, bad, pixels) - rows).abs().max().item()
        print(f"{name}: {error:.2f}")
        assert error > 1e-2, name


@torch.no_grad()
def test_temperature_and_ban_act_as_at_sampling(checkpoint: Checkpoint, groups: list[Group]):
    forest, pixels = packed(checkpoint, [groups[1]])
    logprobs = policy_logprobs(checkpoint, forest, pixels, temperature=0.7)
    row = row_inputs(checkpoint, groups[1], groups[1].rollouts[0])
    logits = checkpoint.model(**row, use_cache=False).logits[0]
    logits[:, list(checkpoint.processor.banned)] = float("-inf")
    expected = (logits / 0.7).log_softmax(-1)
    offsets = torch.tensor(items(groups[1])[0].offsets) + len(groups[1].prompt)
    tokens = row["input_ids"][0, offsets]
    torch.testing.assert_close(logprobs, expected[offsets - 1, tokens], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="temperature is 0"):
        policy_logprobs(checkpoint, forest, pixels, temperature=0.0)


def test_each_picture_is_encoded_once(checkpoint: Checkpoint, groups: list[Group], monkeypatch):
    forest, pixels = packed(checkpoint, groups)
    assert len(forest.pictures) > len(set(forest.pictures))
    calls = []
    encode = policy.encode_pictures
    monkeypatch.setattr(
        policy, "encode_pictures", lambda m, some: calls.append(len(some)) or encode(m, some)
    )
    policy_logprobs(checkpoint, forest, pixels)
    assert calls == [len(set(forest.pictures))]


def test_chunked_head_changes_nothing(checkpoint: Checkpoint, groups: list[Group], monkeypatch):
    forest, pixels = packed(checkpoint, [groups[0]])
    whole = policy_logprobs(checkpoint, forest, pixels)
    slope = gradients(checkpoint, whole.mean())
    vocabulary = checkpoint.model.config.text_config.vocab_size
    monkeypatch.setattr(policy, "LOGITS_AT_ONCE", 7 * vocabulary)
    chunked = policy_logprobs(checkpoint, forest, pixels)
    torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-6)
    torch.testing.assert_close(gradients(checkpoint, chunked.mean()), slope, rtol=1e-4, atol=1e-7)


@torch.no_grad()
def test_engine_style_calls_alternate_with_packed_ones(groups: list[Group]):
    """A 2-D mask, a 4-D mask with a cache, and a tree: on one module, in any order."""
    checkpoint = tiny_checkpoint(0)
    model = checkpoint.model
    group = groups[0]
    rows = [row_inputs(checkpoint, group, t) for t in group.rollouts[:3]]
    batch = padded_inputs(checkpoint, rows)
    tokens = torch.randint(0, 100, (2, 9), generator=torch.Generator().manual_seed(0))
    visible = torch.ones(9, 9).tril().bool()
    visible[5:, 2] = False

    def engine() -> torch.Tensor:
        cache, out = DynamicCache(), []
        for start, end in ((0, 5), (5, 9)):
            positions = torch.arange(start, end).expand(3, 2, -1)
            mask = visible[start:end, :end].expand(2, 1, -1, -1)
            call = model.model(
                input_ids=tokens[:, start:end],
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
            out.append(call.last_hidden_state)
        return torch.cat(out, dim=1)

    plain, cached = next_token_logprobs(checkpoint, batch), engine()
    forest, pixels = packed(checkpoint, groups)
    first = policy_logprobs(checkpoint, forest, pixels)
    assert model.config.text_config._attn_implementation == attention.TREE_SDPA
    assert torch.equal(next_token_logprobs(checkpoint, batch), plain)
    assert torch.equal(engine(), cached)
    assert torch.equal(policy_logprobs(checkpoint, forest, pixels), first)
