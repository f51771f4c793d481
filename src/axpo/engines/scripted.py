"""An engine that samples what a script says, for tests and demonstrations.

It computes nothing and needs no model, but keeps the contract: requests are checked, stop ids
and token limits hold, and requests can be slow, fail, or be cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from axpo.engines.base import Completion, Engine, Finish, Picture, Request
from axpo.engines.checking import check_tokens, image_spans
from axpo.engines.places import Places
from axpo.engines.stats import EngineStats
from axpo.errors import EngineError, RequestError

if TYPE_CHECKING:
    import torch

Script = Callable[[Request], "Sequence[int] | Exception"]


class ScriptedEngine(Engine):
    """An `axpo.engines.base.Engine` with a `script` in the model's place.

    The script returns the ids to sample, or an exception with which the request fails. Ids after
    the first stop id or beyond `max_tokens` are not sampled; a script that ends early is followed
    by the request's first stop id. Every token has the logprob `logprob`, and the request's
    `top_logprobs` are the first of those that `top` returns (by default `logprob` alone). `delay`
    seconds (a number, or a function of the request) pass before the answer; at most `slots`
    requests run at once, by default all. Requests are checked against `vocabulary`, and their
    placeholders against `image_token` and `picture_tokens` (which returns how many placeholders a
    picture takes) if both are given. `requests` lists the requests so far.
    """

    def __init__(
        self,
        script: Script,
        *,
        logprob: float = -1.0,
        top: Callable[[Request], Sequence[float]] | None = None,
        delay: float | Callable[[Request], float] = 0.0,
        slots: int = 2**31,
        vocabulary: int = 2**31,
        image_token: int | None = None,
        picture_tokens: Callable[[Picture], int] | None = None,
        version: int = 0,
    ) -> None:
        self._script = script
        self._logprob = logprob
        self._top = top or (lambda _: (logprob,))
        self._delay = delay
        self._vocabulary = vocabulary
        self._image_token = image_token
        self._picture_tokens = picture_tokens
        self.version = version
        self._places = Places(slots)
        self._pending: set[asyncio.Future[None]] = set()
        self._closed = False
        self.requests: list[Request] = []
        self.stats = EngineStats()

    async def generate(self, request: Request) -> Completion:
        """The script's answer; raises `RequestError` or `EngineError`."""
        if self._closed:
            raise EngineError(f"request {request.id}: the engine is closed")
        check_tokens(request, self._vocabulary)
        if self._image_token is not None and self._picture_tokens is not None:
            image_spans(request, self._image_token, self._picture_tokens)
        self.requests.append(request)
        self.stats.requests += 1
        await self._wait(request)
        answer = self._script(request)
        if isinstance(answer, EngineError | RequestError):
            raise answer
        if isinstance(answer, Exception):
            raise EngineError(f"request {request.id}: {answer!r}") from answer
        return self._complete(request, answer)

    async def release(self, group: str) -> None:
        """Do nothing: nothing is kept for a group."""

    async def load_weights(self, weights: Mapping[str, torch.Tensor], version: int) -> None:
        """Take the version; raises `EngineError` while requests are in flight."""
        if self._pending:
            raise EngineError(f"weights {version}: {len(self._pending)} requests are in flight")
        self.version = version

    async def close(self) -> None:
        """Stop; pending requests raise `EngineError`."""
        self._closed = True
        for future in self._pending:
            if not future.done():
                future.set_exception(EngineError("the engine was closed"))

    async def _wait(self, request: Request) -> None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._pending.add(future)
        try:
            async with self._places.take(request.priority):
                delay = self._delay(request) if callable(self._delay) else self._delay
                timer = loop.call_later(delay, lambda: future.done() or future.set_result(None))
                try:
                    await future
                finally:
                    timer.cancel()
        finally:
            self._pending.discard(future)

    def _complete(self, request: Request, answer: Sequence[int]) -> Completion:
        sampling = request.sampling
        tokens: list[int] = []
        for token in (*answer, *sampling.stop[:1]):
            if token in sampling.banned or not 0 <= token < self._vocabulary:
                raise EngineError(
                    f"request {request.id}: the script samples id {token}, "
                    "which is banned or outside the vocabulary"
                )
            tokens.append(token)
            if token in sampling.stop or len(tokens) == sampling.max_tokens:
                break
        else:
            raise EngineError(
                f"request {request.id}: the script ended after {len(tokens)} of "
                f"{sampling.max_tokens} tokens, and there is no stop id to end with"
            )
        self.stats.sampled += len(tokens)
        stopped = tokens[-1] in sampling.stop
        highest = tuple(self._top(request)[: sampling.top_logprobs])
        return Completion(
            tokens=tuple(tokens),
            logprobs=(self._logprob,) * len(tokens),
            finish=Finish.STOP if stopped else Finish.LENGTH,
            versions=(self.version,) * len(tokens),
            top_logprobs=(highest,) * len(tokens) if highest else (),
        )
