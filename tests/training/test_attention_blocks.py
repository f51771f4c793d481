"""A forest's attention in blocks: its mask against a dense oracle, its results against the parts.

PyTorch has no backward of it on a CPU: gradients and the compiled kernel are in `test_gpu.py`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import partial

import pytest
import torch
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from axpo.models.loading import Checkpoint
from axpo.training import attention, flex, pieces
from axpo.training.flex import BLOCK, LEAST, block_mask
from axpo.training.policy import policy_logprobs
from tests.support.forests import oracle, random_forest
from tests.support.packing import packed
from tests.support.padded_oracle import branching_group, demonstration_group
from tests.support.tiny import tiny_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return tiny_checkpoint(0)


@pytest.fixture
def always_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "in_blocks", lambda device: True)


def padded(mask: torch.Tensor, last: int) -> torch.Tensor:
    """At least `LEAST` queries and keys: queries more see the `last` keys, other keys nobody."""
    rows, columns = mask.shape
    whole = torch.zeros(max(rows, LEAST), max(columns, LEAST), dtype=torch.bool)
    whole[:rows, :columns] = mask
    whole[rows:, columns - last : columns] = True
    return whole


@pytest.mark.parametrize("seed", range(12))
def test_mask_is_the_tree(seed: int):
    """Whole forests, and passes over part of one that see their ancestors from outside."""
    rng = random.Random(seed)
    nodes = random_forest(rng, rng.randint(1, 30), rng.choice([3, 40, 200]) if seed else 3)
    chosen = list(range(len(nodes)))
    if seed % 2:
        chosen = sorted(rng.sample(chosen, rng.randint(1, len(chosen))))
    blocks = attention.blocks(nodes, chosen, torch.device("cpu"))
    last = nodes[chosen[-1]].end - nodes[chosen[-1]].start
    expected = padded(oracle(nodes, chosen, (*blocks.given, *chosen)), last)
    assert blocks.mask.seq_lengths == expected.shape
    assert expected.any(1).all()
    visible = blocks.mask.mask_mod
    zero = torch.zeros((), dtype=torch.long)
    rows, columns = (torch.arange(n) for n in expected.shape)
    assert torch.equal(visible(zero, zero, rows[:, None], columns[None]), expected)

    # The block tables: what is skipped is empty, what goes unmasked is full.
    high, wide = (-(-n // BLOCK) for n in expected.shape)
    for some, counts, index in (
        (True, blocks.mask.kv_num_blocks, blocks.mask.kv_indices),
        (False, blocks.mask.full_kv_num_blocks, blocks.mask.full_kv_indices),
    ):
        assert counts is not None and index is not None
        for i in range(high):
            for j in range(wide):
                block = expected[i * BLOCK : (i + 1) * BLOCK, j * BLOCK : (j + 1) * BLOCK]
                # A key past the end is in the block, too: it is not full.
                full = bool(block.all()) and block.shape[1] == BLOCK
                want = bool(block.any()) and not full if some else full
                assert (j in index[0, 0, i, : counts[0, 0, i]].tolist()) is want


@torch.no_grad()
@pytest.mark.usefixtures("always_blocks")
def test_blocks_equal_parts(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch):
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
    monkeypatch.setattr(attention, "in_blocks", lambda device: False)
    parts = policy_logprobs(checkpoint, forest, pixels)
    print(f"blocks {(blocks - parts).abs().max():.1e}, in pieces {(cut - parts).abs().max():.1e}")
    torch.testing.assert_close(blocks, parts, rtol=0, atol=1e-5)
    torch.testing.assert_close(cut, parts, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.usefixtures("always_blocks")
def test_short_passes_take_the_same_kernel(checkpoint: Checkpoint, monkeypatch):
    """A tree within one block, and pieces of a few tokens: padded without a trace."""
    forest, pixels = packed(checkpoint, [demonstration_group(checkpoint, 2)])
    tree, pictures = packed(checkpoint, [branching_group(checkpoint, 1)])
    assert len(forest) < BLOCK < len(tree)
    shapes = set()
    attend = flex.flex_attention

    def noted(query: torch.Tensor, key: torch.Tensor, *args: torch.Tensor, **named: object):
        shapes.add((query.shape[2], key.shape[2]))
        return attend(query, key, *args, **named)

    monkeypatch.setattr(flex, "flex_attention", noted)
    found = [policy_logprobs(checkpoint, forest, pixels)]
    found += [pieces.plain_logprobs(checkpoint, tree, pictures, 1.0, budget) for budget in (61, 1)]
    assert min(q for q, _ in shapes) == min(k for _, k in shapes) == LEAST
    monkeypatch.setattr(attention, "in_blocks", lambda device: False)
    expected = [policy_logprobs(checkpoint, forest, pixels)]
    expected += [policy_logprobs(checkpoint, tree, pictures)] * 2
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that an operation makes."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor):
                self.size = max(self.size, x.numel() * x.itemsize)
        return out


def test_the_mask_takes_a_byte_a_block_of_queries_and_key():
    queries, given = 16_384, 49_152
    with Largest() as largest:
        block_mask([given, queries], [(0, queries)] * 2, queries, torch.device("cpu"))
    assert largest.size <= (queries // BLOCK) * (given + queries)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.fx.GraphModule]]:
    """The graphs of the kernel as `flex` compiles it for a GPU, run by PyTorch on the CPU."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    attend = flex._compiled.__wrapped__()
    monkeypatch.setattr(flex, "flex_attention", attend)
    yield graphs
    torch._dynamo.reset()


def one_pass(given: int, own: Sequence[int], dtype: torch.dtype = torch.float32) -> float:
    """Largest error of a pass over two nodes in a row behind `given` keys."""
    queries, keys = sum(own), given + sum(own)
    sizes, spans = [given, *own], [(0, queries), (0, queries), (own[0], queries)]
    mask = block_mask(sizes, spans, queries, torch.device("cpu"))
    query = torch.randn(1, 4, queries, 16, dtype=dtype)
    key, value = torch.randn(2, 1, 2, keys, 16, dtype=dtype)
    with torch.no_grad():
        found = flex.forest_attention(query, key, value, mask, 0.25)
    visible = torch.ones(queries, keys, dtype=torch.bool).tril(given)
    expected = scaled_dot_product_attention(
        query, key, value, attn_mask=visible, scale=0.25, enable_gqa=True
    )
    return (found - expected).abs().max().item()


def test_one_compilation_serves_all_forests(compiled: list[torch.fx.GraphModule]):
    """Lengths, trees and outside keys change; code does not (the first three calls settle it)."""
    rng = random.Random(0)
    for _ in range(12):
        own = [rng.choice([1, 5, rng.randint(100, 600)]) for _ in range(2)]
        assert one_pass(rng.choice([0, 100, 700]), own) < 1e-5
    assert len(compiled) <= 3


def test_no_pass_falls_back_to_what_writes_all_scores_out(
    compiled: list[torch.fx.GraphModule], monkeypatch: pytest.MonkeyPatch
):
    """At the limit of compilations torch would go on uncompiled; here it raises."""
    monkeypatch.setattr(flex, "COMPILATIONS", 1)
    monkeypatch.setattr(flex, "flex_attention", flex_attention)
    monkeypatch.setattr(flex, "flex_attention", flex._compiled.__wrapped__())
    one_pass(100, (200, 100))
    with pytest.raises(FailOnRecompileLimitHit):
        one_pass(100, (200, 100), torch.float64)
    assert len(compiled) == 1


def test_a_switched_off_compiler_is_refused():
    with (
        torch._dynamo.config.patch(disable=True),
        pytest.raises(RuntimeError, match="TORCHDYNAMO_DISABLE"),
    ):
        flex._compiled.__wrapped__()


def test_only_a_gpu_takes_blocks():
    assert attention.in_blocks(torch.device("cuda"))
    assert not attention.in_blocks(torch.device("cpu"))
