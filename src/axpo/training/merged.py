"""A forest's attention on a CPU: parts without masks, merged by their logarithms of sums.

Softmax over a query's keys can be computed over parts of them. If `lse` is the logarithm of a
part's sum of exponentials, the whole is the parts' mean by weights exp(lse), and the backward pass
of a part needs nothing but the whole's result and logarithm. In a preorder layout the parts are
rectangles: the tokens of a run of nodes see each other in causal order, and what a run shares with
the branches that leave it is seen whole by their queries, which lie side by side. So each pair of
query and key is computed once, keys and values are never copied, and no mask exists. Nodes of other
passes are seen in the same way.

The kernel is the one that SDPA takes on a CPU (ATen's `FlashAttentionKernel.cpp`). SDPA itself does
not return the logarithms. In causal order the kernel computes whole blocks of 512 keys and masks
those behind a query; a long run is therefore computed as its two halves, each in the same way, and
the rectangle between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch

KeysValues = tuple[torch.Tensor, torch.Tensor]
Part = tuple[slice, torch.Tensor, torch.Tensor, bool]
"""Queries, the keys and values that they see, and whether in causal order."""

LONGEST = 160
"""Tokens of a run that one call attends: of fewer, two calls take longer than the masked pairs."""

_FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a pass.

    `runs` are ranges of its tokens, which see each other in causal order; side by side they are the
    whole pass. `branches` holds pairs of queries and of the keys of another run that they see. The
    nodes `given` are of other passes, and are seen by the queries in `below`.
    """

    runs: tuple[slice, ...]
    branches: tuple[tuple[slice, slice], ...]
    given: tuple[int, ...]
    below: tuple[slice, ...]

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        given: Sequence[KeysValues],
        scaling: float | None,
    ) -> torch.Tensor:
        """The attention [1, H, L, D] of query [1, H, L, D] over key and value [1, H_kv, L, D] and
        the states of `given`."""
        # In 16 bits each merge converts what it merges: there halves take longer at any length.
        parts = self.halved() if query.dtype == _wide(query) else self
        states = chain.from_iterable(given)
        return _Merged.apply(parts, scaling, query, key, value, *states)  # pyright: ignore

    def halved(self) -> Parts:
        """The same pairs, with runs of at most `LONGEST` tokens."""
        pieces = [piece for run in self.runs for piece in _in_order(run)]
        short = tuple(queries for queries, keys in pieces if queries == keys)
        across = (piece for piece in pieces if piece[0] != piece[1])
        return replace(self, runs=short, branches=(*across, *self.branches))

    def over(
        self, key: torch.Tensor, value: torch.Tensor, given: Sequence[torch.Tensor]
    ) -> Iterator[Part]:
        """The parts in the order in which they are merged, over these keys and values."""
        for run in self.runs:
            yield run, key[:, :, run], value[:, :, run], True
        for queries, keys in self.branches:
            yield queries, key[:, :, keys], value[:, :, keys], False
        for queries, keys, values in zip(self.below, given[::2], given[1::2], strict=True):
            yield queries, keys, values, False


def _in_order(run: slice) -> Iterator[tuple[slice, slice]]:
    """Queries and the keys that they see, which together are a run in causal order: the same short
    run twice, or the second half's queries and the first half's keys."""
    if run.stop - run.start <= LONGEST:
        yield run, run
        return
    middle = (run.start + run.stop) // 2
    before, behind = slice(run.start, middle), slice(middle, run.stop)
    yield from _in_order(before)
    yield from _in_order(behind)
    yield behind, before


class _Merged(torch.autograd.Function):
    """Parts are summed up in float32 at least, and the sums are rounded once."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        parts: Parts,
        scaling: float | None,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *given: torch.Tensor,
    ) -> torch.Tensor:
        # In memory it lies as the queries do, so that the projection behind it needs no copy.
        out = torch.empty_like(query, dtype=_wide(query))
        lse = out.new_empty(out.shape[:3])
        for at, keys, values, causal in parts.over(key, value, given):
            found, sums = _FORWARD(query[:, :, at], keys, values, 0.0, causal, scale=scaling)
            if causal:
                out[:, :, at], lse[:, :, at] = found, sums
            else:
                share = torch.sigmoid(sums - lse[:, :, at])
                out[:, :, at].lerp_(found.to(out.dtype), share[..., None])
                lse[:, :, at] = torch.logaddexp(lse[:, :, at], sums)
        out = out.to(query.dtype)
        ctx.parts, ctx.scaling = parts, scaling
        ctx.save_for_backward(out, lse, query, key, value, *given)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = gradients
        out, lse, *states = ctx.saved_tensors
        query, key, value, *given = states
        sums = [torch.zeros_like(x, dtype=_wide(x)) for x in states]
        parts = ctx.parts.over(key, value, given), ctx.parts.over(sums[1], sums[2], sums[3:])
        for (at, *part, causal), (_, *to, _) in zip(*parts, strict=True):
            args = (query[:, :, at], *part, out[:, :, at], lse[:, :, at], 0.0, causal)
            found = _BACKWARD(gradient[:, :, at], *args, scale=ctx.scaling)
            for some, more in zip((sums[0][:, :, at], *to), found, strict=True):
                some += more
        return None, None, *(x.to(query.dtype) for x in sums)


def _wide(states: torch.Tensor) -> torch.dtype:
    return torch.promote_types(states.dtype, torch.float32)
