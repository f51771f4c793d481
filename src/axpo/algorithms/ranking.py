"""Candidate prefixes and their confidence (arXiv 2605.28774)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from axpo.config import AlgorithmSettings
from axpo.tree import Call, Group, Origin, Segment, Trajectory, TreeError


@dataclass(frozen=True, slots=True)
class Candidate:
    """A prefix that could be resampled: `source`'s path up to offset `cut`."""

    group: str
    source: str
    cut: int
    confidence: float


def span_logprobs(segments: Sequence[Segment], start: int, end: int) -> list[float]:
    """Logprobs of the sampled tokens at path offsets [start, end) of `segments`.

    Raises `TreeError` where the span holds a token that was not sampled.
    """
    found: list[float] = []
    position = 0
    for segment in segments:
        low, high = max(start, position), min(end, position + len(segment))
        if low < high:
            if segment.origin is not Origin.POLICY or not segment.logprobs:
                raise TreeError(f"segment {segment.id}: no sampled tokens at offsets {low}..{high}")
            found += segment.logprobs[low - position : high - position]
        position += len(segment)
    if len(found) != end - start:
        raise TreeError(f"span {start}..{end} reaches beyond the path's {position} tokens")
    return found


def span_confidence(segments: Sequence[Segment], start: int, end: int) -> float:
    """Mean probability that the sampling policy gave the span's tokens (arXiv 2605.28774)."""
    logprobs = span_logprobs(segments, start, end)
    return math.fsum(math.exp(p) for p in logprobs) / len(logprobs)


def tool_candidate(group: Group, rollout: Trajectory, settings: AlgorithmSettings) -> Candidate:
    """The rollout's prefix up to and including the opening tag of its first call.

    Confidence is taken over the whole call span, opening tag to closing tag. With
    `prefix = "scratch"` the whole rollout is resampled (cut 0) and ranked the same. With
    `branch_at = "least_confident"` (ours, beyond the paper) a later call may take the first's
    place; what was thought, called and observed before it is then part of the frozen prefix.
    """
    calls = rollout.calls[:1] if settings.branch_at == "first" else _branching_calls(rollout)
    ranked = [(span_confidence(rollout.segments, c.start, c.end), c.start) for c in calls]
    confidence, start = min(ranked)
    cut = start + 1 if settings.prefix == "tool_call" else 0
    return Candidate(group.id, rollout.id, cut, confidence)


def _branching_calls(rollout: Trajectory) -> list[Call]:
    """The first call, and those that an observation answered.

    The others stand in a last turn, where a limit leaves no room for an answer after a call.
    """
    answered = 0
    position = 0
    for segment in rollout.segments:
        if segment.origin is Origin.OBSERVATION:
            answered = position
        position += len(segment)
    return [c for i, c in enumerate(rollout.calls) if i == 0 or c.end <= answered]


def answer_candidate(
    group: Group, rollout: Trajectory, settings: AlgorithmSettings
) -> Candidate | None:
    """The ablation's prefix of a no-tool rollout: its thinking; ranked by its answer's tokens.

    None where thinking never ended, so that there is no answer to resample (choice).
    """
    if rollout.answer_start is None or rollout.answer_start >= rollout.tokens:
        return None
    confidence = span_confidence(rollout.segments, rollout.answer_start, rollout.tokens)
    cut = rollout.answer_start if settings.prefix == "tool_call" else 0
    return Candidate(group.id, rollout.id, cut, confidence)


def rank(
    candidates: Sequence[Candidate], settings: AlgorithmSettings, seed: int
) -> list[Candidate]:
    """Least confident first; ties by source id, so that the order of rollouts never matters.

    `ranking = "random"` orders by a draw seeded by (seed, source id) instead (ablation).
    """
    if settings.ranking == "random":
        return sorted(candidates, key=lambda c: (_draw(seed, c.source), c.source))
    return sorted(candidates, key=lambda c: (c.confidence, c.source))


def _draw(seed: int, source: str) -> bytes:
    return hashlib.sha256(f"{seed}/{source}".encode()).digest()
