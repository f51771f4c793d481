"""The simulator of many ranks says what real ranks do: passes, idle ones, shares and bytes."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from axpo.folder import RunFolder
from axpo.store import save_groups
from axpo.training.batches import prepare
from axpo.training.objective import Objective
from benchmarks.__main__ import main
from benchmarks.cluster import GATHERED, HELD, SMALL, Processes
from benchmarks.cluster_simulator import (
    DISTRIBUTIONS,
    TREES,
    Figures,
    Weights,
    made_group,
    recorded,
    simulate,
)
from benchmarks.models import Shape
from tests.support.tiny import tiny_checkpoint

UNEVEN = replace(
    SMALL,
    shapes=tuple(Shape(16, mean, rollouts=2, continuations=1) for mean in (24, 90, 12, 40, 60)),
    kl=True,
)
"""Five trees of very different sizes, four of them in pieces, with a reference."""


@pytest.mark.parametrize("ranks", [2, 4])
def test_simulated_ranks_do_what_real_ones_do(ranks: int):
    policy = UNEVEN.checkpoint()
    groups = UNEVEN.groups(policy)
    prepared = prepare(policy.processor, groups, Objective(kl=True))
    policy.model.requires_grad_(True)
    weights = Weights.of(policy.model, ranks)
    with Processes(ranks, UNEVEN) as processes:
        for layers in (GATHERED, HELD):
            found = processes.update(layers)
            simulated = simulate(
                groups, prepared, ranks, UNEVEN.budget, layers == HELD, True, weights, bytes_each=4
            )
            for part in found:
                assert part["chunks"] == simulated.trained
                assert part["passes_idle"] == simulated.idle
                assert part["imbalance"] == pytest.approx(simulated.imbalance)
                assert part["gathered"] == simulated.gathered
                assert part["reduced"] == simulated.reduced
            assert (simulated.idle == 0) == (layers == HELD)


def test_made_trees_have_about_the_size_that_they_are_said_to_have():
    rng = random.Random(0)
    for lengths in DISTRIBUTIONS.values():
        small = replace(lengths, tokens=lengths.tokens // 10, prompt=lengths.prompt // 10)
        groups = [made_group("g", small, rng) for _ in range(100)]
        work = prepare(tiny_checkpoint().processor, groups, Objective())
        mean = sum(len(some.tree) for some in work) / len(work)
        assert mean == pytest.approx(small.tokens, rel=0.1)


def test_recorded_trees_are_dealt_out_by_their_sizes(tmp_path: Path):
    """They have pictures; what the last step has too many of is left out."""
    policy = SMALL.checkpoint()
    original, folder = SMALL.groups(policy), RunFolder(tmp_path)
    assert any(group.pictures for group in original)
    folder.trees(0).parent.mkdir()
    for step in range(4):
        groups = [replace(g, id=f"{step}-{n}-{g.id}") for n in range(9) for g in original]
        save_groups(folder.trees(step), groups, folder.pictures)
    updates = recorded(tmp_path)
    assert [len(update) for update in updates] == [TREES] * (4 * 9 * len(original) // TREES)
    sizes = [len(some.tree) for some in prepare(policy.processor, original, Objective())]
    found = prepare(policy.processor, updates[0], Objective())
    assert [len(some.tree) for some in found] == [sizes[i % len(sizes)] for i in range(TREES)]


def test_one_rank_moves_nothing_and_waits_for_nobody():
    policy = SMALL.checkpoint()
    groups = SMALL.groups(policy)
    prepared = prepare(policy.processor, groups, Objective())
    policy.model.requires_grad_(True)
    found = simulate(groups, prepared, 1, SMALL.budget, weights=Weights.of(policy.model, 1))
    assert found == Figures(found.passes, found.trained, 0, found.filled, found.trunk, 1.0, 0, 0)
    assert found.trunk > 0


def test_ranks_and_their_simulation_stand_on_the_page(tmp_path: Path):
    out, page = tmp_path / "p.json", tmp_path / "p.md"
    names = "cluster", "cluster_simulator"
    main(["--quick", *names, "--out", str(out), "--page", str(page)])
    found = json.loads(out.read_text())["cluster"]["rows"]
    assert [row["case"] for row in found] == [
        {"ranks": 2, "layers": layers} for layers in (GATHERED, HELD)
    ]
    for row in found:
        assert row["ours"]["loss"] == pytest.approx(row["theirs"]["loss"], abs=1e-6)
    text = page.read_text()
    assert "| one process |  | 1 | 1 |" in text
    assert "| 12K | 64 |" in text
