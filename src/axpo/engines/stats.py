"""What an engine counts, for metrics and for tests that prove that work is shared."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class EngineStats:
    """Counters since the engine was made; tokens unless said otherwise.

    `prefilled` and `decoded` were computed, `reused` were not. `pictures` went through the
    vision tower; `evictions` are kept sequences that made room for others.
    """

    requests: int = 0
    reused: int = 0
    prefilled: int = 0
    decoded: int = 0
    sampled: int = 0
    pictures: int = 0
    prefill_calls: int = 0
    decode_calls: int = 0
    evictions: int = 0
