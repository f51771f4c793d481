"""A request on its way through the in-process engine."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from axpo.clock import Wait
from axpo.engines.base import Completion, Finish, Request
from axpo.engines.checking import check_request
from axpo.engines.runner import Prefill
from axpo.engines.slots import Slot
from axpo.errors import EngineError
from axpo.models.loading import Processor
from axpo.models.positions import rope_positions
from axpo.models.vision import Pixels
from axpo.tree import ImageSpan


@dataclass(slots=True, eq=False)
class Job:
    """A checked request with its positions [3, length], its random generator and its sample so far.

    `wait` is over as soon as the job has a row. `room` is the number of tokens that the model's
    positions leave for the sample.
    """

    request: Request
    tokens: list[int]
    spans: tuple[ImageSpan, ...]
    pixels: tuple[Pixels, ...]
    positions: torch.Tensor
    next_position: int
    random: random.Random
    future: asyncio.Future[Completion]
    wait: Wait
    room: int
    slot: Slot | None = None
    reused: int = 0
    sampled: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[tuple[float, ...]] = field(default_factory=list)

    @property
    def pending(self) -> int:
        """The number of the request's tokens that are left to compute."""
        return len(self.tokens) - self.reused

    def new_pictures(self) -> dict[str, Pixels]:
        """The pictures, by digest, whose placeholders are among the pending tokens."""
        pairs = zip(self.spans, self.pixels, strict=True)
        return {span.digest: pixels for span, pixels in pairs if span.start >= self.reused}

    def piece(self) -> Prefill:
        """The pending tokens as one row of a prefill."""
        start = self.reused
        pictures = tuple(span.digest for span in self.spans if span.start >= start)
        return Prefill(self.tokens[start:], start, self.positions[:, start:], pictures)

    def record(self, token: int, logprob: float) -> bool:
        """Add a sampled token; return whether it is the last."""
        self.sampled.append(token)
        self.logprobs.append(logprob)
        sampling = self.request.sampling
        over = token in sampling.stop or len(self.sampled) >= min(sampling.max_tokens, self.room)
        return over or not self.finite

    @property
    def beyond(self) -> bool:
        """Whether the sample ended because the model has no more positions."""
        sampling = self.request.sampling
        stopped = self.sampled[-1] in sampling.stop
        return not stopped and self.room <= len(self.sampled) < sampling.max_tokens

    def record_top(self, highest: Sequence[float]) -> None:
        """Keep as many of the `highest` logprobs at the next token as the request asks for."""
        if count := self.request.sampling.top_logprobs:
            self.top_logprobs.append(tuple(p for p in highest[:count] if p > -math.inf))

    @property
    def finite(self) -> bool:
        """Whether the last logprob is finite, which it is not if the weights have diverged."""
        return math.isfinite(self.logprobs[-1])

    def completion(self, version: int) -> Completion:
        stopped = self.sampled[-1] in self.request.sampling.stop
        return Completion(
            tokens=tuple(self.sampled),
            logprobs=tuple(self.logprobs),
            finish=Finish.STOP if stopped else Finish.LENGTH,
            versions=(version,) * len(self.sampled),
            reused=self.reused,
            top_logprobs=tuple(self.top_logprobs),
        )


def accept(
    request: Request,
    processor: Processor,
    future: asyncio.Future[Completion],
    wait: Wait,
) -> Job:
    """Check `request` against the model and prepare it; raises `RequestError`, and `EngineError`
    if it leaves no position to sample at."""
    spans = check_request(request, processor)
    positions = processor.config.get_text_config().max_position_embeddings
    room = positions - len(request.tokens)
    if room < 1:
        raise EngineError(f"request {request.id}: {too_long(len(request.tokens), positions)}")
    pixels = tuple(processor.pixels(p.digest, p.image) for p in request.pictures)
    grids = [picture.grid for picture in pixels]
    places, following = rope_positions(
        len(request.tokens), zip(spans, grids, strict=True), 0, processor.merge_size
    )
    draws = random.Random(request.sampling.seed)
    tokens = list(request.tokens)
    return Job(request, tokens, spans, pixels, places, following, draws, future, wait, room)


def too_long(tokens: int, positions: int) -> str:
    """That a path of so many tokens has used up the model's positions, and what to do."""
    return (
        f"{tokens} tokens, and the model has {positions} positions: leave this question out, show "
        "smaller pictures, or lower rollout.max_tokens"
    )


def prefill_batches(jobs: Sequence[Job], max_tokens: int) -> Iterator[tuple[int, list[Job]]]:
    """The (offset, jobs) of each prefill call; `jobs` are sorted by their pending tokens.

    A call holds consecutive jobs of at most `max_tokens`, padding included (a longer row has a call
    of its own), and no row that would make most of the others padding.
    """
    first = 0
    for i in range(1, len(jobs) + 1):
        if i < len(jobs):
            longest, shortest = jobs[i].pending, jobs[first].pending
            if (i + 1 - first) * longest <= max_tokens and longest <= 2 * shortest + 8:
                continue
        yield first, list(jobs[first:i])
        first = i
