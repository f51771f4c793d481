"""A forest's attention in blocks: its mask against a dense oracle, its results against the runs.

PyTorch has no backward of it on a CPU: gradients and the compiled kernel are in `test_gpu.py`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention

from axpo.models.loading import Checkpoint
from axpo.training import attention, pieces
from axpo.training.flex import BLOCK, block_mask
from axpo.training.packing import PackedNode
from axpo.training.policy import policy_logprobs
from padded_oracle import branching_group, demonstration_group
from test_packing import packed
from tiny import tiny_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return tiny_checkpoint(0)


@pytest.fixture
def always_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "in_blocks", lambda device, queries: True)


def random_forest(rng: random.Random, count: int, longest: int) -> list[PackedNode]:
    """`count` nodes in preorder, a few of them roots."""
    nodes: list[PackedNode] = []
    path: list[int] = []
    for i in range(count):
        path = path[: rng.randrange(len(path) + 1) if rng.random() < 0.9 else 0]
        start = nodes[-1].end if nodes else 0
        end = start + rng.randint(1, longest)
        nodes.append(PackedNode(start, end, path[-1] if path else -1))
        path.append(i)
    return nodes


def tokens_of(nodes: Sequence[PackedNode], some: Sequence[int]) -> list[tuple[int, int]]:
    """(node, layout place) of each token of `some` nodes."""
    return [(i, t) for i in some for t in range(nodes[i].start, nodes[i].end)]


def oracle(
    nodes: Sequence[PackedNode], queries: Sequence[int], keys: Sequence[int]
) -> torch.Tensor:
    """Dense mask [queries, keys]: a token sees its path up to itself."""
    paths = []
    for i in range(len(nodes)):
        parent = nodes[i].parent
        paths.append({i} | (paths[parent] if parent >= 0 else set()))
    columns = tokens_of(nodes, keys)
    rows = [
        [key in paths[query] and place <= at for key, place in columns]
        for query, at in tokens_of(nodes, queries)
    ]
    return torch.tensor(rows)


@pytest.mark.parametrize("seed", range(12))
def test_mask_is_the_tree(seed: int):
    """Whole forests, and passes over part of one that see their ancestors from outside."""
    rng = random.Random(seed)
    nodes = random_forest(rng, rng.randint(1, 30), rng.choice([3, 40, 200]) if seed else 3)
    chosen = list(range(len(nodes)))
    if seed % 2:
        chosen = sorted(rng.sample(chosen, rng.randint(1, len(chosen))))
    place = {node: i for i, node in enumerate(chosen)}
    blocks = attention._blocks(nodes, place, torch.device("cpu"))
    expected = oracle(nodes, chosen, (*blocks.given, *chosen))
    assert expected.any(1).all()
    visible = blocks.mask.mask_mod
    zero = torch.zeros((), dtype=torch.long)
    rows, columns = (torch.arange(n) for n in expected.shape)
    assert torch.equal(visible(zero, zero, rows[:, None], columns[None]), expected)

    # The block tables: what is skipped is empty, what goes unmasked is full.
    high, wide = (-(-n // BLOCK) for n in expected.shape)
    for partial, counts, index in (
        (True, blocks.mask.kv_num_blocks, blocks.mask.kv_indices),
        (False, blocks.mask.full_kv_num_blocks, blocks.mask.full_kv_indices),
    ):
        assert counts is not None and index is not None
        for i in range(high):
            for j in range(wide):
                block = expected[i * BLOCK : (i + 1) * BLOCK, j * BLOCK : (j + 1) * BLOCK]
                # A key past the end is in the block, too: it is not full.
                full = bool(block.all()) and block.shape[1] == BLOCK
                want = bool(block.any()) and not full if partial else full
                assert (j in index[0, 0, i, : counts[0, 0, i]].tolist()) is want


@torch.no_grad()
@pytest.mark.usefixtures("always_blocks")
def test_blocks_equal_runs(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch):
    forest, pixels = packed(
        checkpoint,
        [
            branching_group(checkpoint, 1, "a"),
            demonstration_group(checkpoint, 2, "d"),
            branching_group(checkpoint, 3, "b"),
        ],
    )
    assert len(forest) > 3 * BLOCK
    blocks = policy_logprobs(checkpoint, forest, pixels)
    cut = pieces.plain_logprobs(checkpoint, forest, pixels, 1.0, budget=BLOCK)
    monkeypatch.setattr(attention, "in_blocks", lambda device, queries: False)
    runs = policy_logprobs(checkpoint, forest, pixels)
    print(f"blocks {(blocks - runs).abs().max():.1e}, in pieces {(cut - runs).abs().max():.1e}")
    torch.testing.assert_close(blocks, runs, rtol=0, atol=1e-5)
    torch.testing.assert_close(cut, runs, rtol=0, atol=1e-5)


def test_one_compilation_serves_all_forests():
    """Lengths, trees and outside keys change; code does not (the first two calls settle it)."""
    compiled = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        compiled.append(graph)
        return graph.forward

    torch._dynamo.reset()
    attend = torch.compile(flex_attention, dynamic=True, backend=backend)
    rng = random.Random(0)
    for _ in range(12):
        given, own = rng.choice([0, 100, 700]), [rng.randint(100, 600) for _ in range(2)]
        queries, keys = sum(own), given + sum(own)
        sizes, spans = [given, *own], [(0, queries), (0, queries), (own[0], queries)]
        mask = block_mask(sizes, spans, queries, torch.device("cpu"))
        query = torch.randn(1, 4, queries, 16)
        key, value = torch.randn(2, 1, 2, keys, 16)
        with torch.no_grad():
            found = attend(query, key, value, block_mask=mask, scale=0.25, enable_gqa=True)
        visible = torch.ones(queries, keys, dtype=torch.bool).tril(given)
        expected = scaled_dot_product_attention(
            query, key, value, attn_mask=visible, scale=0.25, enable_gqa=True
        )
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert len(compiled) <= 2
    torch._dynamo.reset()


def test_only_a_gpu_takes_blocks():
    assert attention.in_blocks(torch.device("cuda"), BLOCK + 1)
    assert not attention.in_blocks(torch.device("cuda"), BLOCK)
    assert not attention.in_blocks(torch.device("cpu"), 10 * BLOCK)
