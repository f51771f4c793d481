"""A tree in pieces: the whole tree's logprobs and gradient, in the memory of one piece."""

from __future__ import annotations

import random

import pytest
import torch

from axpo.costs.memory import keys_values
from axpo.errors import NonFiniteError
from axpo.models.loading import Checkpoint
from axpo.training import pieces
from axpo.training.objective import Objective
from axpo.training.packing import PackedTree
from axpo.training.pieces import cut, plain_logprobs
from axpo.training.policy import policy_logprobs
from axpo.tree import Group
from tests.support.learners import CLIP_KL, Steep, caught_gradient, flat, trainer
from tests.support.lora import adapted
from tests.support.packing import CLIP, pack_text, packed, text_group
from tests.support.padded_oracle import Builder, branching_group, credit_all, demonstration_group
from tests.support.pieces import distance, through_pieces
from tests.support.saved_bytes import SavedBytes
from tests.support.tiny import tiny_checkpoint

BUDGETS = (200, 61, 17)
WHOLE = 10_000


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    torch.set_num_threads(1)
    return tiny_checkpoint(0)


@pytest.fixture(scope="module")
def tree(checkpoint: Checkpoint) -> tuple[PackedTree, dict]:
    return packed(checkpoint, [branching_group(checkpoint, 1)])


# ------------------------------------------------------------------ where it is cut


def test_cut_by_hand():
    """Tokens 1 2 | 10 11 12 13 | 20, with 30 40 | 31 41 below it."""
    tree = pack_text(text_group())
    same, found = cut(tree, 4)
    assert same.nodes == tree.nodes
    assert [(p.start, p.end) for p in found] == [(0, 2), (2, 6), (6, 9), (9, 11)]
    assert [p.trunk for p in found] == [(0,), (), (2,), ()]
    # 10 and 20 are predicted by the prompt's last token, 30 and 31 by 20.
    trained = [tree.tokens[tree.index[p.trained]].tolist() for p in found]
    assert trained == [[10, 20], [11, 12, 13], [30, 40, 31], [41]]
    parts, found = cut(tree, 3)
    assert [(n.start, n.end, n.parent) for n in parts.nodes] == [
        (0, 2, -1), (2, 5, 0), (5, 6, 1), (6, 7, 0), (7, 9, 3), (9, 11, 3),
    ]  # fmt: skip
    assert [(p.start, p.end) for p in found] == [(0, 2), (2, 5), (5, 7), (7, 9), (9, 11)]
    assert [p.trunk for p in found] == [(0,), (1,), (3,), (), ()]


@pytest.mark.parametrize("budget", [1, 2, 5, 16, 40, 333])
def test_pieces_cover_every_token_once(tree: tuple[PackedTree, dict], budget: int):
    forest, pieces = cut(tree[0], budget)
    assert [p.start for p in pieces] == [0, *(p.end for p in pieces[:-1])]
    assert pieces[-1].end == len(forest)
    assert max(p.end - p.start for p in pieces) <= budget
    assert sorted(torch.cat([p.trained for p in pieces]).tolist()) == list(range(len(forest.index)))
    known: set[int] = set()
    for piece in pieces:
        for i in range(piece.first, piece.last):
            assert forest.nodes[i].parent in known | set(range(piece.first, i)) | {-1}
        known |= set(piece.trunk)
        before = forest.previous[forest.index[piece.trained]]
        assert ((before >= piece.start) & (before < piece.end)).all()


# ------------------------------------------------------------------ parity


@pytest.mark.parametrize("budget", BUDGETS)
def test_logprobs_and_gradient_equal_the_whole_tree(
    checkpoint: Checkpoint, tree: tuple[PackedTree, dict], budget: int
):
    forest, pixels = tree
    whole, slope = through_pieces(checkpoint, forest, pixels, WHOLE)
    assert torch.equal(whole, policy_logprobs(checkpoint, forest, pixels).detach())
    logprobs, gradient = through_pieces(checkpoint, forest, pixels, budget)
    plain = plain_logprobs(checkpoint, forest, pixels, 1.0, budget)
    error = max((x - whole).abs().max().item() for x in (logprobs, plain))
    print(f"budget {budget}: logprobs {error:.1e}, gradient {distance(gradient, slope):.1e}")
    assert error < 1e-5
    assert distance(gradient, slope) < 5e-6


def test_the_budgets_cut_where_it_hurts(checkpoint: Checkpoint, tree: tuple[PackedTree, dict]):
    """Some inside a node and inside a picture; all so that a picture stands in several pieces."""
    forest, _ = tree
    placeholder = forest.tokens == checkpoint.processor.image_token
    starts = (placeholder & ~placeholder.roll(1)).nonzero()[:, 0].tolist()
    for budget in BUDGETS:
        parts, found = cut(forest, budget)
        shown = {
            (digest, next(p.start for p in found if at < p.end))
            for digest, at in zip(forest.pictures, starts, strict=True)
        }
        assert len(shown) > len(set(forest.pictures))
    borders = [p.start for p in found[1:]]
    assert len(parts.nodes) > len(forest.nodes)
    assert any(placeholder[at] and placeholder[at - 1] for at in borders)


@pytest.mark.parametrize("frozen", [False, True])
def test_an_update_in_pieces(checkpoint: Checkpoint, frozen: bool):
    """Trees and a demonstration, prefix credit, continuations, KL: the trainer's whole update."""
    groups = [branching_group(checkpoint, seed, f"g{seed}") for seed in range(2)]
    groups.append(demonstration_group(checkpoint, 5))
    reference = tiny_checkpoint(1)
    found = []
    for budget in (WHOLE, *BUDGETS):
        values = {"max_tokens_per_micro_batch": budget, "freeze_vision": frozen}
        some = trainer(checkpoint, reference, **values)
        gradient, metrics = caught_gradient(
            some, groups, Objective(CLIP_KL, "question_mean", kl=True)
        )
        found.append((budget, gradient, metrics))
    checkpoint.model.requires_grad_(True)
    _, whole, figures = found[0]
    assert figures["chunks"] == figures["micro_batches"] == 1
    for budget, gradient, metrics in found[1:]:
        error = distance(gradient, whole)
        print(f"budget {budget}, {metrics['chunks']:.0f} chunks: gradient {error:.1e}")
        assert error < 5e-6
        assert metrics["chunks"] > metrics["micro_batches"]
        for name in ("loss", "kl", "clip_fraction", "ratio_max", "old_kl", "tokens_packed"):
            assert metrics[name] == pytest.approx(figures[name], rel=1e-4), name


def test_recomputed_logprobs_in_pieces(checkpoint: Checkpoint):
    group = branching_group(checkpoint, 1)
    whole = trainer(checkpoint).logprobs([group])
    parts = trainer(checkpoint, max_tokens_per_micro_batch=61).logprobs([group], False)
    assert parts.keys() == whole.keys()
    for name, values in whole.items():
        assert parts[name] == pytest.approx(values, abs=1e-5, nan_ok=True)


@pytest.mark.parametrize("target", ["q_proj", "v_proj", "o_proj"])
def test_adapters_below_which_no_key_has_a_gradient(target: str):
    """The first layer's keys depend on no adapter: there is nothing to pass on to them."""
    some = adapted(targets=[target])
    found = []
    for budget in (WHOLE, *BUDGETS):
        one = trainer(some, max_tokens_per_micro_batch=budget)
        group = branching_group(some, 1)
        found.append(caught_gradient(one, [group], Objective(CLIP_KL, "question_mean", kl=True))[0])
    for gradient in found[1:]:
        assert distance(gradient, found[0]) < 5e-6


def lose_what_later_pieces_say(self, kept, loss) -> None:
    loss.backward()


def swap_keys_and_values(self, kept) -> None:
    self.states |= {
        key: tuple(x.detach().clone().requires_grad_() for x in reversed(pair))
        for key, pair in kept.items()
    }


@pytest.mark.parametrize(
    ("name", "wrong", "spoils_logprobs"),
    [
        ("remember", swap_keys_and_values, True),
        ("backward", lose_what_later_pieces_say, False),
        ("backward_pictures", lambda self: None, False),
    ],
)
def test_negative_controls(
    checkpoint: Checkpoint, tree: tuple[PackedTree, dict], monkeypatch, name, wrong, spoils_logprobs
):
    """Wrong leaves, and gradients that stop at the leaves, are far outside the tolerance."""
    whole, slope = through_pieces(checkpoint, *tree, WHOLE)
    monkeypatch.setattr(pieces._Split, name, wrong)
    logprobs, gradient = through_pieces(checkpoint, *tree, 61)
    print(f"{name}: gradient {distance(gradient, slope):.2f}")
    assert distance(gradient, slope) > 0.05
    assert ((logprobs - whole).abs().max() > 0.1) == spoils_logprobs


# ------------------------------------------------------------------ guards, pictures, memory


def ancestors(split: pieces._Split, node: int) -> set[int]:
    above = split.forest.nodes[node].parent
    return set() if above < 0 else {above} | ancestors(split, above)


def test_the_trunk_stands_once(checkpoint: Checkpoint, tree: tuple[PackedTree, dict], monkeypatch):
    """Its leaves are what the passes over it computed: no copy of it, nothing else held by it."""
    computed = []
    hidden = pieces._Split._hidden

    def noted(self, chosen, keep):
        out, kept = hidden(self, chosen, keep)
        computed.append(kept.copy())
        return out, kept

    monkeypatch.setattr(pieces._Split, "_hidden", noted)
    split = pieces._Split(checkpoint, *tree, 1.0, 61)
    split.prepare_above(split.pieces[-1])

    def storages(states: list) -> dict[int, int]:
        tensors = [x for some in states for pair in some.values() for x in pair]
        return {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}

    assert storages([split.states]) == storages(computed)
    text = checkpoint.model.config.text_config
    nodes = [split.forest.nodes[i] for i in ancestors(split, split.pieces[-1].first)]
    tokens = sum(node.end - node.start for node in nodes)
    assert sum(storages([split.states]).values()) == keys_values(text, tokens, 4)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("budget", BUDGETS)
def test_only_what_stands_above_a_piece_is_held(
    checkpoint: Checkpoint, tree: tuple[PackedTree, dict], monkeypatch, budget: int, grad: bool
):
    """And, in training, what stands above those that went before it; each node computed once."""
    held: list[tuple[pieces._Split, pieces.Piece, set[int]]] = []
    alone: list[int] = []
    forward, hidden = pieces._Split.forward, pieces._Split._hidden

    def noted_forward(self, piece):
        held.append((self, piece, {node for node, _ in self.states}))
        return forward(self, piece)

    def noted_hidden(self, chosen, keep):
        if not torch.is_grad_enabled():
            alone.extend(chosen)
        return hidden(self, chosen, keep)

    monkeypatch.setattr(pieces._Split, "forward", noted_forward)
    monkeypatch.setattr(pieces._Split, "_hidden", noted_hidden)
    if grad:
        through_pieces(checkpoint, *tree, budget)
    else:
        plain_logprobs(checkpoint, *tree, 1.0, budget)
    everything = {i for _, piece, _ in held for i in piece.trunk}
    for split, piece, nodes in held:
        own = set(piece.trunk) if grad else set()
        assert nodes == ancestors(split, piece.first) | own
    if grad:
        assert sorted(alone) == sorted(everything)
    if budget == BUDGETS[-1]:  # branches have trunks of their own: together they are more
        assert max(len(nodes) for _, _, nodes in held) < len(everything)


def test_non_finite_spares_the_weights(checkpoint: Checkpoint):
    """Also where the pieces that went backward before were fine."""
    some = trainer(checkpoint, max_tokens_per_micro_batch=61)
    group = branching_group(checkpoint, 1, "g")
    before, steep = flat(checkpoint), Steep(2, CLIP)
    with pytest.raises(NonFiniteError, match="gradient of group g is not finite"):
        some.update([group], Objective(steep, "question_mean"))
    credit_all(group.rollouts[0], 0, float("inf"), 0.25)
    with pytest.raises(NonFiniteError, match="loss of group g is"):
        some.update([group], Objective(CLIP, "question_mean"))
    assert steep.calls > 2
    assert torch.equal(flat(checkpoint), before)
    assert all(p.grad is None for p in checkpoint.model.parameters())


def test_pictures_are_encoded_twice_within_the_budget(
    checkpoint: Checkpoint, tree: tuple[PackedTree, dict], monkeypatch
):
    """Once for their features, once more when these have gathered their gradient."""
    forest, pixels = tree
    calls: list[tuple[bool, int, int]] = []
    encode = pieces.encode_pictures

    def counted(model, some):
        tokens = sum(p.tokens(checkpoint.processor.merge_size) for p in some)
        calls.append((torch.is_grad_enabled(), len(some), tokens))
        return encode(model, some)

    monkeypatch.setattr(pieces, "encode_pictures", counted)
    through_pieces(checkpoint, forest, pixels, 40)
    for grad in (False, True):
        assert sum(n for with_grad, n, _ in calls if with_grad is grad) == len(set(forest.pictures))
    assert all(tokens <= 40 or n == 1 for _, n, tokens in calls)
    assert len(calls) > 2


def long_prompt(build: Builder) -> Group:
    group = build.group("prompt", [1, 2], words=300)
    group.rollouts = [build.rollout(f"r{i}", 6) for i in range(4)]
    return group


def many_branches(build: Builder) -> Group:
    group = build.group("branches", [1])
    group.rollouts = [build.rollout(f"r{i}", 50, 3, 40) for i in range(8)]
    return group


@pytest.mark.parametrize("grown", [long_prompt, many_branches])
def test_the_budget_bounds_what_backward_keeps(checkpoint: Checkpoint, grown):
    group = grown(Builder(checkpoint, 0))
    for rollout in group.rollouts:
        credit_all(rollout, 0, random.Random(rollout.id).uniform(-1, 1), 0.25)
    forest, pixels = packed(checkpoint, [group])
    peaks: dict[int, int] = {}
    slopes: dict[int, torch.Tensor] = {}
    for budget in (WHOLE, 200, 64):
        with SavedBytes(checkpoint.model.parameters()) as saved:
            _, slopes[budget] = through_pieces(checkpoint, forest, pixels, budget)
        assert saved.live == 0
        peaks[budget] = saved.peak
        assert distance(slopes[budget], slopes[WHOLE]) < 5e-6
    print(f"{len(forest)} tokens, peak bytes by budget: {peaks}")
    assert peaks[200] < 0.45 * peaks[WHOLE]
    assert peaks[64] < 0.2 * peaks[WHOLE]
