"""The counts of an engine, for metrics and for tests which prove that work is shared."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class EngineStats:
    """Counters since the engine was made; they count tokens unless said otherwise.

    `prefilled` and `decoded` tokens were computed, `reused` ones were not. `pictures` counts those
    that went through the vision tower, and `evictions` kept sequences that made room for others.
    The wall seconds of vision tower, prefill and decoding do not overlap and include sampling and
    bookkeeping. `picture_bytes` counts the bytes of encoded pictures that were sent to servers, and
    `servers_lost` the servers that had to be given up or brought back.
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
    picture_bytes: int = 0
    servers_lost: int = 0
    seconds_vision: float = 0.0
    seconds_prefill: float = 0.0
    seconds_decode: float = 0.0
