"""The contract of every engine: token ids and pictures in, sampled ids and logprobs out.

A request carries its whole path so far; an engine keeps what it computed for earlier requests
of the same `group` and computes only what is new (the prompt and its pictures once a group, a
turn's observation on top of the turn before, a continuation from its cut). What it keeps is a
cache: dropping it changes time, never results. `tests/engine_contract.py` holds the tests that
each engine must pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from PIL import Image

from axpo.engines.stats import EngineStats

if TYPE_CHECKING:
    import torch


class EngineError(RuntimeError):
    """The engine failed (infrastructure): never the model's mistake, never scored."""


class RequestError(ValueError):
    """A request that no engine can serve; the message names the request and what is wrong."""


class Finish(StrEnum):
    """Why sampling ended."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Picture:
    """An RGB picture with its content hash (`axpo.pictures.picture_digest`)."""

    digest: str
    image: Image.Image


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample. `seed` fixes this request's draws whatever else runs beside it (in bfloat16
    logits round differently in a batch of another shape: the same draw may give another token).

    `banned` ids get probability 0 before the softmax (vision placeholders); `stop` ids end
    sampling and are returned as the last token. RL needs temperature 1, top_p 1 and top_k 0.
    `top_logprobs` asks for that many of the highest logprobs at every token.
    """

    max_tokens: int
    seed: int
    stop: tuple[int, ...]
    banned: tuple[int, ...] = ()
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    top_logprobs: int = 0

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise RequestError(f"max_tokens is {self.max_tokens}; at least 1 is needed")
        if self.temperature < 0:
            raise RequestError(f"temperature is {self.temperature}; 0 is greedy, below is invalid")
        if not 0 < self.top_p <= 1:
            raise RequestError(f"top_p is {self.top_p}; expected 0 < top_p <= 1")
        if self.top_k < 0:
            raise RequestError(f"top_k is {self.top_k}; 0 turns it off, below is invalid")
        if self.top_logprobs < 0:
            raise RequestError(f"top_logprobs is {self.top_logprobs}; expected 0 or more")


@dataclass(frozen=True, slots=True)
class Request:
    """Sample after `tokens` (placeholders expanded), `pictures` in placeholder order.

    Of the requests that wait for a place those of the highest `priority` are next, equal ones in
    the order in which they came.
    """

    id: str
    group: str
    tokens: tuple[int, ...]
    pictures: tuple[Picture, ...]
    sampling: Sampling
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """`logprobs[i]` is the log-probability (nats) of `tokens[i]` under the distribution that
    sampled it: temperature and ban applied, before top-p/top-k truncation. `top_logprobs[i]` are
    the highest of that distribution, in falling order (fewer where fewer ids may be sampled);
    empty unless asked for.

    `versions[i]` is the version of the weights that sampled `tokens[i]`: never falling, and all
    the same but where weights were loaded meanwhile. `reused` counts path tokens that were not
    computed again.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: Finish
    versions: tuple[int, ...]
    reused: int = 0
    top_logprobs: tuple[tuple[float, ...], ...] = ()


class Engine(Protocol):
    """Asynchronous; cancel a request by cancelling the task that awaits it."""

    stats: EngineStats

    @property
    def version(self) -> int:
        """Version of the weights that sample now."""
        ...

    async def generate(self, request: Request) -> Completion:
        """Sample one completion; raises `RequestError` or `EngineError`.

        What a request waits before it is sampled from is `waiting` (`axpo.clock`).
        """
        ...

    async def release(self, group: str) -> None:
        """Forget what is kept for `group`."""
        ...

    async def load_weights(self, weights: Mapping[str, torch.Tensor], version: int) -> None:
        """Sample with these weights from the next request on; everything kept is dropped."""
        ...

    async def close(self) -> None:
        """Stop; pending requests raise `EngineError`."""
        ...
