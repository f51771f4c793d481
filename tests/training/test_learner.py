"""The optimizer step: the oracle's gradient, whatever the micro-batches, and its guards."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from functools import partial

import pytest
import torch

from axpo.algorithms.losses import ClipLoss, likelihood_loss
from axpo.config import OptimizerSettings
from axpo.errors import NonFiniteError, TreeError
from axpo.models.loading import Checkpoint
from axpo.models.vision import encode_pictures
from axpo.training.batches import Work, micro_batches, prepare, with_pixels
from axpo.training.items import Aggregation
from axpo.training.learner import LocalLearner, learning_rate
from axpo.training.objective import Objective
from axpo.training.ranks import Ranks
from axpo.tree import Group
from tests.support.learners import CLIP_KL, Steep, caught_gradient, flat, trainer
from tests.support.padded_oracle import (
    Builder,
    branching_group,
    credit_all,
    demonstration_group,
    gradients,
    oracle_loss,
)
from tests.support.saved_bytes import SavedBytes
from tests.support.tiny import tiny_checkpoint

CLIP = partial(ClipLoss().of, kl=0.0)


@pytest.fixture
def checkpoint() -> Checkpoint:
    return tiny_checkpoint(0)


@pytest.fixture
def groups(checkpoint: Checkpoint) -> list[Group]:
    return [branching_group(checkpoint, seed, f"g{seed}") for seed in range(3)]


@pytest.mark.parametrize("aggregation", ["question_mean", "token_mean"])
def test_gradient_with_kl_equals_rows(
    checkpoint: Checkpoint, groups: list[Group], aggregation: Aggregation
):
    reference = tiny_checkpoint(1)
    some = trainer(checkpoint, reference)
    ours, metrics = caught_gradient(some, groups, Objective(CLIP_KL, aggregation, kl=True))
    loss = oracle_loss(checkpoint, groups, CLIP_KL, aggregation, reference)
    rows = gradients(checkpoint, loss)
    error = ((ours - rows).norm() / rows.norm()).item()
    print(f"{aggregation}: gradient rel-L2 {error:.1e}, KL {metrics['kl']:.2f}")
    assert error < 1e-5
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert metrics["grad_norm"] == pytest.approx(rows.norm().item(), rel=1e-5)
    assert metrics["kl"] > 0.1


def test_demonstrations_and_rollouts_through_one_path(checkpoint: Checkpoint):
    groups = [demonstration_group(checkpoint, seed, f"d{seed}") for seed in range(3)]
    ours, metrics = caught_gradient(trainer(checkpoint), groups, Objective())
    rows = gradients(checkpoint, oracle_loss(checkpoint, groups, likelihood_loss, "token_mean"))
    assert (ours - rows).norm() / rows.norm() < 1e-5
    assert metrics["nll"] == pytest.approx(metrics["loss"], rel=1e-5)
    assert metrics["tokens_packed"] == metrics["tokens_path"]


@pytest.mark.parametrize("aggregation", ["question_mean", "token_mean"])
def test_micro_batches_change_nothing(
    checkpoint: Checkpoint, groups: list[Group], aggregation: Aggregation
):
    found = []
    for budget, expected in ((10_000, 1), (700, 2), (400, 3)):
        some = trainer(checkpoint, tiny_checkpoint(1), max_tokens_per_micro_batch=budget)
        gradient, metrics = caught_gradient(some, groups, Objective(CLIP_KL, aggregation, kl=True))
        assert metrics["micro_batches"] == expected
        found.append((gradient, metrics))
    whole, figures = found[0]
    for gradient, metrics in found[1:]:
        error = ((gradient - whole).norm() / whole.norm()).item()
        print(f"{metrics['micro_batches']:.0f} micro-batches: rel-L2 {error:.1e}")
        assert error < 1e-6
        for name in ("loss", "kl", "clip_fraction", "ratio_max", "tokens_packed"):
            assert metrics[name] == pytest.approx(figures[name], rel=1e-5), name


def test_metrics(checkpoint: Checkpoint, groups: list[Group]):
    before = flat(checkpoint)
    some = trainer(checkpoint, tiny_checkpoint(1))
    began = time.perf_counter()
    metrics = some.update(groups, Objective(CLIP_KL, "question_mean", kl=True))
    wall = time.perf_counter() - began
    assert all(isinstance(v, float) and math.isfinite(v) for v in metrics.values())
    assert metrics["chunks"] == metrics["micro_batches"] == 1
    assert metrics["tokens_trained"] < metrics["tokens_packed"] < metrics["tokens_path"]
    assert 0 < metrics["clip_fraction"] < 1 < metrics["ratio_max"]
    assert metrics["learning_rate"] == 1e-3
    phases = ("pack", "reference", "forward", "backward", "optimizer")
    seconds = [metrics[f"seconds_{phase}"] for phase in phases]
    assert all(value > 0 for value in seconds)
    assert 0.9 * wall < sum(seconds) <= wall
    assert not torch.equal(flat(checkpoint), before)
    assert all(p.grad is None for p in checkpoint.model.parameters())


def test_skipped_groups_count_in_the_denominators(checkpoint: Checkpoint, groups: list[Group]):
    build = Builder(checkpoint, 9)
    flat_group = build.group("flat", [1])
    flat_group.rollouts = [build.rollout(f"r{i}", 6) for i in range(2)]
    for rollout in flat_group.rollouts:
        credit_all(rollout, 0, 0.0, 0.5)
    empty = build.group("empty", [1])
    some = trainer(checkpoint)
    for aggregation in ("question_mean", "token_mean"):
        all_groups = [groups[0], flat_group, empty]
        ours, metrics = caught_gradient(some, all_groups, Objective(CLIP, aggregation))
        rows = gradients(checkpoint, oracle_loss(checkpoint, all_groups, CLIP, aggregation))
        assert metrics["groups_trained"] == 1
        assert (ours - rows).norm() / rows.norm() < 1e-5
    # With a KL term every rollout has something to say.
    some = trainer(checkpoint, tiny_checkpoint(1))
    _, metrics = caught_gradient(some, all_groups, Objective(CLIP_KL, "question_mean", kl=True))
    assert metrics["groups_trained"] == 2


def test_an_update_without_any_signal_leaves_the_weights(checkpoint: Checkpoint):
    group = Builder(checkpoint, 0).group("g", [1])
    some = trainer(checkpoint)
    before = flat(checkpoint)
    metrics = some.update([group], Objective(CLIP, "token_mean"))
    assert metrics["grad_norm"] == metrics["loss"] == metrics["micro_batches"] == 0.0
    assert torch.equal(flat(checkpoint), before)
    assert some.updates == 1


def test_trees_share_micro_batches_by_size(checkpoint: Checkpoint, groups: list[Group]):
    small = [demonstration_group(checkpoint, seed, f"d{seed}") for seed in range(2)]
    four = [small[0], groups[0], small[1], groups[1]]
    prepared = prepare(checkpoint.processor, four, Objective())
    sizes = {work.group.id: len(work.tree) for work in prepared}
    assert sizes["d0"] < sizes["g0"] == sizes["g1"]

    def ids(budget: int) -> list[list[str]]:
        return [[w.group.id for w in batch] for batch in micro_batches(prepared, budget)]

    assert ids(10_000) == [["g0", "g1", "d0", "d1"]]
    assert ids(sizes["g0"] + sizes["d0"]) == [["g0", "d0"], ["g1", "d1"]]
    assert ids(sizes["g0"]) == [["g0"], ["g1"], ["d0", "d1"]]
    assert ids(sizes["d0"]) == [["g0"], ["g1"], ["d0"], ["d1"]]


def test_non_finite_names_the_group_and_spares_the_weights(
    checkpoint: Checkpoint, groups: list[Group]
):
    some = trainer(checkpoint, max_tokens_per_micro_batch=400)
    some.update(groups, Objective(CLIP, "question_mean"))
    before, state = flat(checkpoint), some.optimizer.state_dict()["state"][0]["exp_avg"].clone()
    credit_all(groups[1].rollouts[0], 0, float("inf"), 0.25)
    with pytest.raises(NonFiniteError, match="loss of group g1 is"):
        some.update(groups, Objective(CLIP, "question_mean"))

    credit_all(groups[1].rollouts[0], 0, 1.0, 0.25)
    with pytest.raises(NonFiniteError, match="gradient of group g1 is not finite"):
        some.update(groups, Objective(Steep(2, CLIP), "question_mean"))
    assert torch.equal(flat(checkpoint), before)
    assert torch.equal(some.optimizer.state_dict()["state"][0]["exp_avg"], state)
    assert all(p.grad is None for p in checkpoint.model.parameters())
    assert some.updates == 1


def test_recomputed_logprobs_start_the_ratio_at_one(checkpoint: Checkpoint, groups: list[Group]):
    some = trainer(checkpoint)
    old = some.logprobs(groups)
    recorded = groups[0].rollouts[0].segments[0].logprobs
    first = some.update(groups[:2], Objective(CLIP, "question_mean", old=old))
    assert first["ratio_max"] == pytest.approx(1.0, abs=1e-5)
    assert first["clip_fraction"] == 0.0
    second = some.update(groups[2:], Objective(CLIP, "question_mean", old=old))
    assert second["ratio_max"] > 1.001
    assert groups[0].rollouts[0].segments[0].logprobs == recorded
    with pytest.raises(TreeError, match=r"group d, trajectory d/teacher: .* lack trained tokens"):
        some.update([demonstration_group(checkpoint, 1)], Objective(CLIP, "token_mean", old=old))


def test_a_correction_weighs_tokens_by_both_logprobs(checkpoint: Checkpoint, groups: list[Group]):
    some = trainer(checkpoint, learning_rate=0.0)
    old = some.logprobs(groups)
    seen: list[tuple[list[float], list[float]]] = []

    def double(trained: torch.Tensor, sampled: torch.Tensor) -> torch.Tensor:
        seen.append((trained.tolist(), sampled.tolist()))
        return torch.full_like(trained, 2.0)

    plain = some.update(groups, Objective(CLIP, "question_mean", old=old))
    twice = some.update(groups, Objective(CLIP, "question_mean", old=old, correction=double))
    assert twice["loss"] == pytest.approx(2 * plain["loss"], rel=1e-5)
    assert twice["grad_norm"] == pytest.approx(2 * plain["grad_norm"], rel=1e-5)
    recorded = {p for g in groups for t in g.trajectories() for s in t.segments for p in s.logprobs}
    fresh = {p for own in old.values() for p in own.tolist()}
    for trained, sampled in seen:
        assert set(sampled) <= recorded and set(trained) <= fresh


def test_a_correction_leaves_the_kl_term_alone(checkpoint: Checkpoint, groups: list[Group]):
    """Doubling the surrogate, a KL term of beta 1 stays what it is, loss and gradient."""
    some = trainer(checkpoint, tiny_checkpoint(1), learning_rate=0.0)
    loss = partial(ClipLoss().of, kl=1.0)
    old = some.logprobs(groups, kl=True)
    found: dict[float, tuple[torch.Tensor, dict[str, float]]] = {}
    for factor in (0.0, 1.0, 2.0):
        weigh = partial(_times, factor)
        found[factor] = caught_gradient(
            some, groups, Objective(loss, "question_mean", kl=True, old=old, correction=weigh)
        )
    (kl_slope, kl), (slope, plain), (twice_slope, twice) = found.values()
    assert kl["loss"] > 0.1  # a KL term alone
    assert twice["loss"] - kl["loss"] == pytest.approx(2 * (plain["loss"] - kl["loss"]), rel=1e-4)
    expected = kl_slope + 2 * (slope - kl_slope)
    assert float((twice_slope - expected).norm() / expected.norm()) < 1e-5


def _times(factor: float, trained: torch.Tensor, sampled: torch.Tensor) -> torch.Tensor:
    return torch.full_like(trained, factor)


def test_missing_picture_is_named(checkpoint: Checkpoint, groups: list[Group]):
    digest = groups[0].prompt.images[0].digest
    del groups[0].pictures[digest]
    with pytest.raises(TreeError, match=f"group g0: .*{digest}"):
        trainer(checkpoint).update(groups, Objective(CLIP, "question_mean"))


def test_pictures_of_two_micro_batches_are_in_memory(checkpoint: Checkpoint, groups: list[Group]):
    prepared = prepare(checkpoint.processor, groups, Objective(CLIP, "question_mean"))
    shown = [list(dict.fromkeys(work.tree.pictures)) for work in prepared]
    asked = 0

    def batches() -> Iterator[list[Work]]:
        nonlocal asked
        for work in prepared:
            asked += 1
            yield [work]

    for number, (batch, pixels) in enumerate(with_pixels(checkpoint.processor, batches())):
        assert asked == min(number + 2, len(prepared))
        assert list(pixels) == shown[number] and batch == [prepared[number]]
        for digest, found in pixels.items():
            own = checkpoint.processor.pixels(digest, batch[0].group.pictures[digest])
            assert torch.equal(found.values, own.values)
    assert asked == len(prepared) > 2


def test_frozen_vision_stays(checkpoint: Checkpoint, groups: list[Group]):
    visual = {n: p.clone() for n, p in checkpoint.model.model.visual.named_parameters()}
    text = checkpoint.model.model.language_model.norm.weight.clone()
    some = trainer(checkpoint, freeze_vision=True)
    some.update(groups, Objective(CLIP, "question_mean"))
    for name, parameter in checkpoint.model.model.visual.named_parameters():
        assert torch.equal(parameter, visual[name]), name
    trained = len(list(checkpoint.model.parameters())) - len(visual)
    assert len(some.optimizer.state_dict()["state"]) == trained
    group = groups[0]
    with SavedBytes(()) as saved:  # no graph goes through the tower
        pixels = [checkpoint.processor.pixels(d, image) for d, image in group.pictures.items()]
        features = encode_pictures(checkpoint.model, pixels)
    assert saved.peak == 0 and not any(f.embeds.requires_grad for f in features)
    assert not torch.equal(checkpoint.model.model.language_model.norm.weight, text)


def test_reference_is_frozen_and_separate(checkpoint: Checkpoint, groups: list[Group]):
    with pytest.raises(ValueError, match="must be a copy"):
        trainer(checkpoint, checkpoint)
    with pytest.raises(ValueError, match="kl needs a reference"):
        trainer(checkpoint).update(groups, Objective(CLIP_KL, "question_mean", kl=True))
    reference = tiny_checkpoint(0)
    before = flat(reference)
    some = trainer(checkpoint, reference)
    first = some.update(groups, Objective(CLIP_KL, "question_mean", kl=True))
    assert first["kl"] == pytest.approx(0.0, abs=1e-6)
    assert some.update(groups, Objective(CLIP_KL, "question_mean", kl=True))["kl"] > 1e-6
    assert torch.equal(flat(reference), before)


def test_norms_and_biases_are_not_decayed(checkpoint: Checkpoint):
    decayed, spared = trainer(checkpoint, weight_decay=0.1).optimizer.param_groups
    assert decayed["weight_decay"] == 0.1
    assert spared["weight_decay"] == 0.0
    assert {p.ndim for p in spared["params"]} == {1}
    assert min(p.ndim for p in decayed["params"]) == 2


def test_gradient_is_clipped(checkpoint: Checkpoint, groups: list[Group]):
    objective = Objective(CLIP, "question_mean")
    free, figures = caught_gradient(trainer(checkpoint), groups, objective)
    some = trainer(checkpoint, max_grad_norm=0.5)
    cut, metrics = caught_gradient(some, groups, objective)
    assert metrics["grad_norm"] == figures["grad_norm"] > 0.5
    torch.testing.assert_close(cut, free * 0.5 / free.norm(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        ("constant", [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        ("linear", [0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25, 0]),
        ("cosine", [0.25, 0.5, 0.75, 1, 0.85355339, 0.5, 0.14644661, 0]),
    ],
)
def test_schedule_by_hand(decay: str, expected: list[float]):
    settings = OptimizerSettings(learning_rate=0.5, warmup_steps=3, decay=decay)  # pyright: ignore
    rates = [learning_rate(settings, update, total=7) for update in range(8)]
    assert rates == pytest.approx([0.5 * e for e in expected])
    assert learning_rate(settings, 50, total=7) == pytest.approx(rates[-1])


def test_ranks_do_not_give_their_parts_to_an_engine(checkpoint: Checkpoint):
    class Many(Ranks):
        many = True

    some = LocalLearner(checkpoint, None, OptimizerSettings(), 1, ranks=Many())
    with pytest.raises(
        ValueError, match=r"ranks give their weights by `axpo\.training\.publishing`"
    ):
        asyncio.run(some.publish(1))
