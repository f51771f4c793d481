"""What is counted of long trees in pieces is what training makes of them."""

from __future__ import annotations

import pytest
import torch

from axpo.costs import memory
from axpo.models.head import LOGITS_AT_ONCE
from axpo.models.loading import Checkpoint
from axpo.models.shapes import published
from axpo.training.pieces import plan
from axpo.training.ranks import Kind
from axpo.tree import Group
from benchmarks.long_trees import PATH, QUARTER, TREES, WHOLE, Cut, counted, longest, measured
from benchmarks.models import training_checkpoint, training_group
from benchmarks.targets import targets_of
from benchmarks.training_step import packed_layout
from benchmarks.update_tables import long_trees_table

SMALL = 128


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    torch.set_num_threads(1)
    made = training_checkpoint()
    made.model.requires_grad_(True)
    return made


@pytest.fixture(scope="module")
def nested(checkpoint: Checkpoint) -> Group:
    return training_group(checkpoint, TREES[1].shorter(SMALL))


@pytest.mark.parametrize("budget", [10_000, 160, 80, 40, 17])
def test_the_trunk_is_what_training_computes_twice(
    checkpoint: Checkpoint, nested: Group, budget: int
):
    tree = packed_layout(checkpoint, nested)
    parts, kinds = Cut.of(tree, budget), plan(tree, budget)
    assert len(parts.pieces) == kinds.count(Kind.TRAIN)
    assert len(parts.trunk()) == kinds.count(Kind.TRUNK)


def test_computed_twice_by_hand(checkpoint: Checkpoint, nested: Group):
    """Pieces of a whole path hold the prompt, the frozen starts and nothing else twice."""
    tree = packed_layout(checkpoint, nested)
    parts = Cut.of(tree, longest(nested)[1])
    prompt, frozen = len(nested.prompt), [branch.cut for branch in nested.branches]
    again = parts.again((64,))
    assert again.pictures == (64,)
    assert prompt < again.tokens <= prompt + sum(frozen)
    trunk = [tree.nodes[i].end - tree.nodes[i].start for i in parts.trunk()[1:]]
    assert again.pairs == prompt * (prompt + 1) // 2 + sum(
        n * prompt + n * (n + 1) // 2 for n in trunk
    )


def test_the_longest_path_alone(checkpoint: Checkpoint, nested: Group):
    alone, length = longest(nested)
    paths = [sum(map(len, nested.path(t))) for t in nested.trajectories()]
    assert length == max(paths)
    tree = packed_layout(checkpoint, alone)
    assert len(tree) == length
    assert len(tree.nodes) == 2


def test_bytes_of_one_pass_and_of_a_piece_by_hand(checkpoint: Checkpoint, nested: Group):
    """One pass holds nothing above; the last piece its path's keys and values twice, and its own
    beside their copy."""
    config, tree = published("qwen3-vl-8b"), packed_layout(checkpoint, nested)
    text = config.text_config
    whole = Cut.of(tree, len(tree))
    logits = memory.logits(text, tree.index.numel(), LOGITS_AT_ONCE)
    assert whole.bytes(config, 2, recompute=False) == logits + memory.text_activations(
        text, tokens=len(tree), keys=len(tree), size=2, recompute=False
    )
    parts = Cut.of(tree, 64)
    last = Cut(parts.tree, parts.pieces[-1:])
    [piece] = last.pieces
    above, own = parts.tokens(parts.above(piece)), piece.end - piece.start
    assert piece.trunk == ()
    assert last.bytes(config, 2, recompute=False) == (
        memory.text_activations(text, tokens=own, keys=above + own, size=2, recompute=False)
        + memory.keys_values(text, 2 * above + own, 2)
        + memory.logits(text, piece.trained.numel(), 2**60)
    )


def test_counted_trees_have_the_size_that_they_are_said_to_have():
    """And pieces of the longest path take no more memory than that path and a fifth."""
    for long, tokens in zip(TREES, (60_000, 100_000), strict=True):
        rows = {(row["case"]["model"], row["case"]["room"]): row for row in counted(long)}
        for (model, room), row in rows.items():
            assert row["case"]["tokens"] == pytest.approx(tokens, rel=0.06)
            assert row["case"]["path"] == pytest.approx(18_000, rel=0.06)
            if room == PATH:
                [target] = targets_of(row)
                assert target.met(row) == ("checkpointing" not in model)


def test_measured_memory_falls_with_the_room_of_a_piece(checkpoint: Checkpoint):
    rows = {row["case"]["room"]: row for row in measured(TREES[0], SMALL, "tiny", checkpoint)}
    peaks = [row["ours"]["peak_gib"] for row in rows.values()]
    assert peaks == sorted(peaks, reverse=True)
    assert (
        rows[WHOLE]["ratio_flops"] == 1 < rows[PATH]["ratio_flops"] < rows[QUARTER]["ratio_flops"]
    )
    assert all(0 < row["ours"]["share"] < 1 for row in rows.values())
    lines = long_trees_table(list(rows.values()))
    assert len(lines) == 2 + len(rows)
