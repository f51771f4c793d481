"""Gradient checkpointing: the same numbers, fewer bytes, with trees, pieces, pictures, adapters."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

from axpo.engines.transformers import TransformersEngine
from axpo.models.loading import Checkpoint
from axpo.training import pieces
from axpo.training.attention import TreeLayout
from axpo.training.objective import Objective
from axpo.training.recomputation import recompute_layers
from tests.support.engine_contract import Writer, difference, run
from tests.support.learners import CLIP_KL, caught_gradient, trainer
from tests.support.lora import adapted
from tests.support.packing import packed
from tests.support.padded_oracle import branching_group, demonstration_group
from tests.support.pieces import distance, through_pieces
from tests.support.saved_bytes import SavedBytes
from tests.support.tiny import tiny_checkpoint

WHOLE = 10_000


def recomputing(made: Callable[[], Checkpoint] = tiny_checkpoint) -> Checkpoint:
    torch.set_num_threads(1)
    checkpoint = made()
    recompute_layers(checkpoint.model)
    return checkpoint


@pytest.mark.parametrize("made", [tiny_checkpoint, lambda: adapted(vision=True)])
@pytest.mark.parametrize("budget", [WHOLE, 200, 61, 17])
def test_logprobs_and_gradient_are_those_without(made: Callable[[], Checkpoint], budget: int):
    found = []
    for checkpoint in (made(), recomputing(made)):
        forest, pixels = packed(checkpoint, [branching_group(checkpoint, 1)])
        found.append(through_pieces(checkpoint, forest, pixels, budget))
    (plain, slope), (logprobs, gradient) = found
    print(f"budget {budget}: gradient {distance(gradient, slope):.1e}")
    assert torch.equal(logprobs, plain)
    assert distance(gradient, slope) < 1e-6


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("budget", [WHOLE, 61])
def test_a_whole_update(frozen: bool, budget: int):
    """Several trees and a demonstration in one micro-batch, KL, with the vision tower or not."""
    found = []
    for checkpoint in (tiny_checkpoint(), recomputing()):
        groups = [branching_group(checkpoint, seed, f"g{seed}") for seed in range(2)]
        groups.append(demonstration_group(checkpoint, 5))
        values = {"max_tokens_per_micro_batch": budget, "freeze_vision": frozen}
        some = trainer(checkpoint, tiny_checkpoint(1), **values)
        found.append(caught_gradient(some, groups, Objective(CLIP_KL, "question_mean", kl=True)))
    (slope, figures), (gradient, metrics) = found
    assert distance(gradient, slope) < 1e-6
    for name in ("loss", "kl", "grad_norm", "tokens_packed", "chunks"):
        assert metrics[name] == pytest.approx(figures[name], rel=1e-6), name


@pytest.mark.parametrize("budget", [WHOLE, 61])
def test_it_keeps_far_less_and_nothing_is_left(budget: int):
    peaks = []
    for checkpoint in (tiny_checkpoint(), recomputing()):
        forest, pixels = packed(checkpoint, [branching_group(checkpoint, 1)])
        with SavedBytes(checkpoint.model.parameters()) as saved:
            through_pieces(checkpoint, forest, pixels, budget)
        assert saved.live == 0
        peaks.append(saved.peak)
    print(f"budget {budget}: {peaks[0]:,} bytes, recomputing {peaks[1]:,}")
    assert peaks[1] < 0.6 * peaks[0]


def test_a_second_pass_keeps_no_states_for_later_pieces(monkeypatch: pytest.MonkeyPatch):
    """Each (node, layer) of the trunk is kept once a forward pass, never from its repetition."""
    kept: list[tuple[int, int]] = []

    class Noted(dict):
        def update(self, states) -> None:  # pyright: ignore
            kept.extend(states)
            super().update(states)

    plain = pieces.tree_layout

    def noted(*args) -> TreeLayout:
        layout = plain(*args)
        layout.kept = Noted()
        return layout

    monkeypatch.setattr(pieces, "tree_layout", noted)
    counts = []
    for checkpoint in (tiny_checkpoint(), recomputing()):
        kept.clear()
        forest, pixels = packed(checkpoint, [branching_group(checkpoint, 1)])
        through_pieces(checkpoint, forest, pixels, 61)
        counts.append(len(kept))
    assert counts[0] == counts[1] > 0


def test_the_engine_beside_it_is_untouched_and_copies_are_their_own():
    checkpoint = recomputing()
    request = Writer(checkpoint, 0).request("g", (64,), max_tokens=8)
    done = run(TransformersEngine(checkpoint).generate(request))
    assert difference(tiny_checkpoint(), request, done) < 1e-5
    twin = copy.deepcopy(checkpoint.model)
    layer = twin.model.language_model.layers[0]
    assert layer.forward.args[0].__self__ is layer
