"""How sure the policy was of a span of its own tokens (arXiv 2605.28774)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from axpo.errors import TreeError
from axpo.tree import Origin, Segment


def span_confidence(segments: Sequence[Segment], start: int, end: int) -> float:
    """The mean probability that the sampling policy gave the tokens at path offsets [start, end).

    Raises `TreeError` if the span holds a token that was not sampled.
    """
    logprobs: list[float] = []
    position = 0
    for segment in segments:
        low, high = max(start, position), min(end, position + len(segment))
        if low < high:
            if segment.origin is not Origin.POLICY or not segment.logprobs:
                raise TreeError(f"segment {segment.id}: no sampled tokens at offsets {low}..{high}")
            logprobs += segment.logprobs[low - position : high - position]
        position += len(segment)
    if len(logprobs) != end - start:
        raise TreeError(f"span {start}..{end} reaches beyond the path's {position} tokens")
    return math.fsum(math.exp(p) for p in logprobs) / len(logprobs)
