"""Decoding that reads prompts once a group: the attention, what is shared, and the engine's use."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from copy import deepcopy

import pytest
import torch
from torch import nn

from axpo.engines import transformers as engine_module
from axpo.engines.base import Request
from axpo.engines.sharing import Shared, can_share, shared_attention, shared_prompts
from axpo.engines.slots import Slot
from axpo.engines.transformers import TransformersEngine
from axpo.models.families import family_of
from axpo.models.loading import Checkpoint
from axpo.tree import ImageSpan
from tests.support.engine_contract import Writer, difference, run


def attended(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: Sequence[int]
) -> torch.Tensor:
    """Each row and head by itself, in float64, over the row's own length."""
    rows, heads, _, size = query.shape
    out = torch.zeros(rows, 1, heads, size, dtype=torch.float64)
    for row, length in enumerate(lengths):
        for head in range(heads):
            at = head * key.shape[1] // heads
            keys, values = key[row, at, :length].double(), value[row, at, :length].double()
            weights = (keys @ query[row, head, 0].double() / size**0.5).softmax(0)
            out[row, 0, head] = weights @ values
    return out


def test_attention_equals_that_of_every_row_by_itself() -> None:
    """Groups whose rows lie apart, one of a single row, ragged lengths, 6 heads on 2 of keys."""
    torch.manual_seed(0)
    groups, lengths, shared = ((3, 0), (1, 5, 2), (4,)), [9, 30, 14, 12, 8, 21], 7
    query = torch.randn(6, 6, 1, 16)
    key, value = (torch.randn(6, 2, 32, 16) for _ in range(2))
    for first, *others in groups:
        for memory in (key, value):
            memory[others, :, :shared] = memory[first, :, :shared]
    hidden = torch.arange(30) >= torch.tensor(lengths)[:, None]
    mask = torch.zeros(6, 1, 1, 30)
    mask.masked_fill_(hidden[:, None, None], float("-inf"))

    def sharing(length: int) -> torch.Tensor:
        seen = (key[:, :, :30], value[:, :, :30])
        found, _ = shared_attention(nn.Module(), query, *seen, mask, 0.25, Shared(length, groups))
        return found

    expected = attended(query, key, value, lengths)
    assert (sharing(shared) - expected).abs().max() < 2e-6
    # Negative control: one token that is not alike.
    assert (sharing(shared + 1) - expected).abs().max() > 1e-2


class TestSharedPrompts:
    def slots(self, *contents: tuple[str, list[int], int]) -> list[Slot]:
        """Of group, tokens and how many more were sampled."""
        return [
            Slot(row, group, tokens, (), len(tokens) + more)
            for row, (group, tokens, more) in enumerate(contents)
        ]

    def test_the_length_that_saves_most(self) -> None:
        long, short = list(range(100)), list(range(200, 220))
        slots = self.slots(
            ("a", [*long, 1], 3), ("b", [*short, 1], 90), ("a", [*long, 2], 0), ("b", short, 85)
        )
        # At 100 two rows read one row's keys; at 19 four rows would read those of two. A row's last
        # token is never counted, and b's rows are groups of one.
        assert shared_prompts(slots) == Shared(100, ((0, 2), (1,), (3,)))
        assert shared_prompts(slots[:3]) == Shared(100, ((0, 2), (1,)))

    def test_no_row_is_shorter(self) -> None:
        slots = self.slots(("a", list(range(50)), 0), ("a", list(range(50)), 4), ("b", [7] * 9, 21))
        assert shared_prompts(slots) == Shared(30, ((0, 1), (2,)))

    def test_nothing_where_little_is_saved(self) -> None:
        tokens = list(range(41))
        pair = ("a", tokens, 9), ("a", tokens, 9)
        assert shared_prompts(self.slots(*pair)) == Shared(40, ((0, 1),))
        others = [(f"b{i}", tokens, 9) for i in range(3)]
        assert shared_prompts(self.slots(*pair, *others)) is None  # 40 of 250 keys
        assert shared_prompts(self.slots(*others)) is None
        assert shared_prompts(self.slots(pair[0], ("a", [0, 9, 9], 30))) is None

    def test_other_pictures_are_not_alike(self) -> None:
        tokens = [*range(30), *[9] * 20, 5, 6]
        a, b = (Slot(i, "g", tokens, (ImageSpan(name, 30, 20),), 60) for i, name in enumerate("ab"))
        assert shared_prompts([a, b]) == Shared(30, ((0, 1),))
        b.spans = a.spans
        assert shared_prompts([a, b]) == Shared(51, ((0, 1),))


def test_rollouts_of_two_turns_share_their_prompt(
    checkpoint: Checkpoint, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nearly all steps of three ragged groups share, and every logprob is a fresh pass's."""
    found: list[Shared | None] = []

    def watched(slots: Sequence[Slot]) -> Shared | None:
        found.append(shared_prompts(slots))
        return found[-1]

    monkeypatch.setattr(engine_module, "shared_prompts", watched)

    async def rollout(engine: TransformersEngine, first: Request, size: int) -> None:
        done = await engine.generate(first)
        assert difference(checkpoint, first, done) < 1e-5
        second = writer.follow(first, done, (size,), max_tokens=14)
        after = await engine.generate(second)
        assert difference(checkpoint, second, after) < 1e-5

    async def main() -> None:
        engine = TransformersEngine(checkpoint)
        prompts = [writer.request(f"g{i}", (64, 48 + 16 * i)) for i in range(3)]
        sizes = range(6, 14)
        rollouts = [
            rollout(engine, request, (48, 64)[i % 2])
            for prompt in prompts
            for i, size in enumerate(sizes)
            for request in writer.again(prompt, 1, max_tokens=size, stop=())
        ]
        await asyncio.gather(*rollouts)

    attention = family_of(checkpoint.model.config).decoder(checkpoint.model).config
    before = attention._attn_implementation
    run(main())
    assert attention._attn_implementation == before
    assert sum(shared is not None for shared in found) > 0.7 * len(found)
    assert any(shared and {len(group) for group in shared.groups} == {8} for shared in found)


def test_only_float32_is_shared(checkpoint: Checkpoint) -> None:
    assert can_share(checkpoint.model)
    assert not can_share(deepcopy(checkpoint.model).bfloat16())
