"""Peers of the packed tree: one loss and one gradient, each by its own passes; the table.

Nothing here measures time.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from axpo.costs.flops import forward_flops
from axpo.models.families import family_of
from benchmarks import peers, update_profile
from benchmarks.flops import packed_work
from benchmarks.harness import Row
from benchmarks.peers import TINY, tree_bench
from benchmarks.peers.depth_first import DepthFirst, Popping
from benchmarks.peers.grouper import group_a_prefix, missing, one_group
from benchmarks.peers.side import children
from benchmarks.peers.tree_bench import (
    DEPTH_FIRST,
    EACH,
    ONE,
    PADDED,
    PIECES,
    SEQUENCES,
    Bench,
    bench,
)
from benchmarks.targets import targets_of
from benchmarks.training_step import PACKED, ParityError, differences
from benchmarks.update_profile import (
    ATTENTION,
    COPIES,
    OTHERS,
    PICTURES,
    PRODUCTS,
    floor_by_kind,
    kind_of,
    seconds_by_kind,
)
from benchmarks.update_tables import peers_table, update_profile_table

WITHOUT = {ONE, EACH} if missing() else set()
"""The sides that need a package that is not here."""
PEERS = {ONE, EACH, SEQUENCES, DEPTH_FIRST, PADDED, PIECES} - WITHOUT


@pytest.fixture(scope="module")
def tiny() -> Bench:
    """Two sources with two continuations each, with crops; the third rollout is a leaf."""
    torch.set_num_threads(1)
    return bench(TINY)


def found(made: Bench) -> dict[str, dict[str, float]]:
    sides = made.sides()
    return differences(sides.pop(PACKED), sides)


def test_all_sides_have_one_loss_and_one_gradient(tiny: Bench):
    differing = found(tiny)
    print(differing)
    assert set(differing) == PEERS
    assert all(error < 1e-5 for some in differing.values() for error in some.values())


def test_they_have_it_without_pictures_too():
    made = bench(replace(TINY, image_tokens=0, turns=0, words=40, sources=1, rollouts=2))
    assert {ONE, SEQUENCES, DEPTH_FIRST} - WITHOUT < set(found(made))


@pytest.mark.parametrize("name", [ONE, SEQUENCES, DEPTH_FIRST])
def test_a_peer_that_attends_otherwise_is_noticed(
    tiny: Bench, name: str, monkeypatch: pytest.MonkeyPatch
):
    if name in WITHOUT:
        pytest.skip("prefix_grouper is not installed")
    peer, sides = tiny.peers[name], tiny.sides()
    hidden = peer.hidden
    # Keys of which one is not what it should be.
    monkeypatch.setattr(peer, "hidden", lambda at, *args: hidden(at.clamp(min=1), *args))
    with pytest.raises(ParityError, match=f"{name} differ by"):
        differences(sides[PACKED], {name: (peer.trainer.optimizer, peer.update)})


def test_depth_first_needs_what_descendants_leave(tiny: Bench, monkeypatch: pytest.MonkeyPatch):
    backward = Popping.backward
    monkeypatch.setattr(Popping, "backward", lambda self, loss, _: backward(self, loss, False))
    sides = tiny.sides()
    with pytest.raises(ParityError):
        differences(sides[PACKED], {DEPTH_FIRST: sides[DEPTH_FIRST]})


def test_depth_first_in_blocks_has_the_same_gradient(tiny: Bench):
    peer = tiny.peers[DEPTH_FIRST]
    small = DepthFirst(peer.trainer, peer.task, block=5)
    assert len(small.blocks[0]) == -(-len(tiny.group.prompt) // 5)
    differing = differences(
        tiny.sides()[PACKED], {"blocks": (peer.trainer.optimizer, small.update)}
    )
    assert max(differing["blocks"].values()) < 1e-5


def test_depth_first_holds_one_path(tiny: Bench):
    """Every node is pushed before and popped after all that is below it, leaves only popped."""
    peer = tiny.peers[DEPTH_FIRST]
    assert isinstance(peer, DepthFirst)
    below = children(tiny.tree)
    on_stack: list[int] = []
    popped: list[int] = []
    number = {block.start: i for i, (block,) in enumerate(peer.blocks)}
    for block, push in peer.visits():
        node = number[block.start]
        if push:
            on_stack.append(node)
            assert below[node]
        else:
            if below[node]:
                assert on_stack.pop() == node
            assert set(below[node]) <= set(popped)
            assert tiny.tree.nodes[node].parent == (on_stack[-1] if on_stack else -1)
            popped.append(node)
    assert sorted(popped) == list(range(len(below)))


def test_groups_of_a_tree(tiny: Bench):
    """The prompt, two frozen prefixes with two leaves each, and a leaf."""
    nodes = tiny.tree.nodes
    assert [node.parent for node in nodes] == [-1, 0, 1, 1, 0, 4, 4, 0]
    sizes = [node.end - node.start for node in nodes]
    prompt = len(tiny.group.prompt)
    [flat] = one_group(tiny.tree)
    assert len(flat.prefix) == prompt == sizes[0]
    assert flat.lengths == [
        sizes[1] + sizes[2], sizes[1] + sizes[3], sizes[4] + sizes[5], sizes[4] + sizes[6], sizes[7]
    ]  # fmt: skip
    assert flat.before()[[0, prompt, prompt + 1]].tolist() == [-1, prompt - 1, prompt]
    each = group_a_prefix(tiny.tree)
    assert [len(some.prefix) for some in each] == [prompt, prompt + sizes[1], prompt + sizes[4]]
    assert [some.lengths for some in each] == [[sizes[7]], sizes[2:4], sizes[5:7]]


def test_work_by_hand(tiny: Bench):
    """A chain of causal pairs for each run; every trained token is predicted once."""
    sizes = [node.end - node.start for node in tiny.tree.nodes]
    floor = packed_work(tiny.tree, ())
    paths = [(0, 1, 2), (0, 1, 3), (0, 4, 5), (0, 4, 6), (0, 7)]
    lengths = [sum(sizes[i] for i in path) for path in paths]
    packed = tiny.peers[SEQUENCES].work()
    assert packed.tokens == sum(lengths)
    assert packed.pairs == sum(n * (n + 1) // 2 for n in lengths)
    deep = tiny.peers[DEPTH_FIRST]
    assert deep.work() == floor
    inner = [sizes[0], sizes[1], sizes[4]]
    assert deep.again().tokens == sum(inner)
    assert deep.again().pairs == inner[0] * (inner[0] + 1) // 2 + sum(
        n * inner[0] + n * (n + 1) // 2 for n in inner[1:]
    )
    repeated = {ONE: sizes[1] + sizes[4], EACH: 2 * sizes[0]}
    for name in {ONE, EACH} - WITHOUT:
        assert tiny.peers[name].work().tokens == floor.tokens + repeated[name]


def test_rows_and_their_table():
    rows = list(peers.run(quick=True))
    if missing():
        assert rows.pop(0)["skipped"] == missing()
    assert {row["way"] for row in rows} == PEERS
    for row in rows:
        assert 0 < row["share"] < 1
        assert row["ratio_flops"] >= 1
        assert row["memory_ratio"] > 0
    page = peers_table(rows)
    lines = page[page.index("All figures:") + 2 :]
    assert len(lines) == 2 + len(rows)
    assert all(line.count("|") == lines[0].count("|") for line in lines)
    summary = page[4]  # the one tree's line
    assert all(f"{row['ratio_cpu']['median']:.2f} [" in summary for row in rows if _shown(row))
    if not WITHOUT:
        first = rows[0]
        assert first["against"] == "PrefixGrouper"
        assert [str(t) for t in targets_of(first)] == [
            "memory <= 0.8",
            "share of the floor >= 0.65",
        ]
        faster, slower = (row["ratio_cpu"]["median"] for row in rows[:2])
        assert faster <= slower
        assert f"PrefixGrouper ({first['way']})" in lines[2]


def _shown(row: Row) -> bool:
    return row["against"] not in (ONE, EACH)


def test_where_an_updates_time_goes():
    rows = list(update_profile.run(quick=True))
    assert rows[0]["case"]["way"] == PACKED
    assert rows[-1]["case"]["way"] == PICTURES
    assert len(rows) == (2 if WITHOUT else 3)
    assert all(row["case"]["way"] in {ONE, EACH} for row in rows[1:-1])
    for row in rows:
        ours = row["ours"]
        assert all(ours[kind] > 0 for kind in (ATTENTION, PRODUCTS, COPIES, OTHERS))
    lines = update_profile_table(rows)
    assert len(lines) == 2 + len(rows)
    assert all(line.count("|") == lines[0].count("|") for line in lines)


def test_a_steps_seconds_are_its_operators():
    square = torch.randn(200, 200)
    found = seconds_by_kind(lambda: square @ square, whole=100.0)
    assert found[PRODUCTS] > 0
    assert found[ATTENTION] == found[COPIES] == 0
    assert sum(found.values()) == pytest.approx(100.0)


def test_the_floor_by_hand(tiny: Bench):
    """Two layers with queries of 256; four operations a pair and width, three times in training."""
    floor, work = floor_by_kind(tiny, 1.0), packed_work(tiny.tree, ())
    config = tiny.packed.checkpoint.model.config
    assert floor[ATTENTION] == 3 * 2 * 4 * 256 * work.pairs
    whole = 3 * forward_flops(family_of(config).dimensions(config), work)
    assert floor[ATTENTION] + floor[PRODUCTS] == whole


def test_operators_by_kind():
    for name, kind in {
        "aten::_scaled_dot_product_flash_attention_for_cpu_backward": ATTENTION,
        "aten::addmm": PRODUCTS,
        "aten::copy_": COPIES,
        "aten::silu": OTHERS,
    }.items():
        assert kind_of(name) == kind


def test_a_missing_package_is_said_and_left_out(monkeypatch: pytest.MonkeyPatch):
    for module in (peers, tree_bench):
        monkeypatch.setattr(module, "missing", lambda: "not installed")
    skipped, *rows = peers.run(quick=True)
    assert skipped == {"benchmark": "peers", "against": "PrefixGrouper", "skipped": "not installed"}
    assert {row["against"] for row in rows} == {SEQUENCES, DEPTH_FIRST, PADDED, PIECES}
