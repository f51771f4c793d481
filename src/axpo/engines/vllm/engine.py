"""The vLLM engine: requests go to servers over HTTP; nothing of vLLM is imported.

The engine knows the requests in flight, the weights that servers must sample with, and the
pictures' encodings. A request's seed fixes its sample, and it is counted when its one answer is
accepted, so that asking again after a lost server loses nothing and counts nothing twice. An answer
is accepted only from weights that were due since it was asked for, which exposes a server that
somebody else has restarted.
"""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from axpo.clock import waiting
from axpo.engines.base import Completion, Engine, Picture, Request, Source
from axpo.engines.broadcast import Backend, Sender, in_buckets
from axpo.engines.checking import check_request
from axpo.engines.places import Places
from axpo.engines.stats import EngineStats
from axpo.engines.vllm.checks import Served, TrainedModel, check_alone, check_server
from axpo.engines.vllm.handover import HandOver, Weights
from axpo.engines.vllm.pool import Pool, Server
from axpo.engines.vllm.wire import UNNAMED, picture_url, read_answer, request_body
from axpo.engines.weights import Held, distinct_weights
from axpo.errors import (
    AnswerFault,
    ConfigError,
    EngineError,
    Interrupted,
    Refused,
    RequestError,
    ServerLost,
)
from axpo.models.loading import Processor
from axpo.models.lora import adapter_weights
from axpo.models.vision import as_seen
from axpo.tree import ImageSpan

ATTEMPTS = 4
"""How many times a request is tried before it is given up: it may be killing the servers."""
BACKOFF = 0.5
"""Seconds before a request with a wrong answer is asked again; they double each time."""
ENCODED = 2**28
"""The most bytes of pictures' encodings that are kept; the least recently used leave first."""
ENCODING = 2
"""How many pictures are encoded at once: one of 8K takes a gigabyte meanwhile."""


class VllmEngine(Engine):
    """An engine that samples with `servers` of the `model` that is trained; of a processor alone,
    with servers of whatever model that reads its ids, which get no weights and `slots` requests at
    once each.

    Weights (only the adapters, if there are any: the servers have the rest) are written into
    `folder`, which the servers must see under the same path, or broadcast by a process group of
    `backend`. `room` is the number of tokens that a path may hold after its prompt. `in_flight`
    says what happens to requests in flight when new weights come: they "keep" their tokens and go
    on from them, "restart" with the same seed, or "finish" first; by default there must be none.
    `stats.pictures` counts pictures that a server took; times are not known here. The first request
    or update raises `ConfigError` if a server does not fit.
    """

    def __init__(
        self,
        model: TrainedModel | Processor,
        servers: Sequence[Server],
        folder: Path,
        *,
        room: int = 0,
        slots: int = 256,
        in_flight: Literal["keep", "restart", "finish"] | None = None,
        recovery_seconds: float = 600.0,
        backend: Backend | None = None,
    ) -> None:
        self._trained = model if isinstance(model, TrainedModel) else None
        self._processor = model.processor if isinstance(model, TrainedModel) else model
        self._room, self._slots = room, slots
        self._in_flight = in_flight
        self.stats = EngineStats()
        self._pool = Pool(servers, self._prepare, self.stats, recovery_seconds)
        self._hand = HandOver(folder, backend, in_flight == "keep", self._pool.lose)
        self._sender = Sender()
        self._run = uuid.uuid4().hex[:12]
        self._ids, self._given = itertools.count(), itertools.count()
        self.served_share: float | None = None
        """`axpo.models.lora.served_share` of the weights published last. None without adapters,
        because servers then get the same bytes with which the trainer's forward computes."""
        self._served: Served | None = None
        self._weights: Weights | None = None
        self._handed_over = [(UNNAMED, 0)]
        self._update: asyncio.Event | None = None
        self._asking: set[asyncio.Task[Completion]] = set()
        self._ready: asyncio.Task[None] | None = None
        self._pending: set[asyncio.Task[Completion]] = set()
        self._encoded: OrderedDict[str, str] = OrderedDict()
        self._encoded_bytes = 0
        self._encoder = ThreadPoolExecutor(ENCODING, "encoding pictures")
        self._closed = False

    @property
    def gauges(self) -> dict[str, float]:
        """How many servers answer, and how many are lost and not yet back."""
        up = sum(server.up for server in self._pool.servers)
        return {"servers_up": up, "servers_down": len(self._pool.servers) - up}

    async def serves(self) -> str | None:
        """The name of the model at running servers that get no weights, and where they have it from
        if that is not the name."""
        await self._start()
        served = self._served
        if served is None or self._trained or self._pool.servers[0].process is not None:
            return None
        return served.model if served.root == served.model else f"{served.model} ({served.root})"

    async def generate(self, request: Request) -> Completion:
        """Sample one completion; raises `RequestError` or `EngineError`."""
        if self._closed:
            raise EngineError(f"request {request.id}: the engine is closed")
        spans = check_request(request, self._processor)
        work = asyncio.ensure_future(self._serve(request, spans))
        self._pending.add(work)
        try:
            await asyncio.wait({work})
        finally:
            self._pending.discard(work)
            work.cancel()
        if work.cancelled():
            raise EngineError(f"request {request.id}: the engine was closed")
        return work.result()

    async def probe(self, request: Request) -> dict[str, Completion]:
        """The answer to `request` of each server that is up, by its address; it is not counted.

        A server that cannot answer is lost or left out.
        """
        await self._start()
        spans = check_request(request, self._processor)
        found: dict[str, Completion] = {}

        async def one(server: Server) -> None:
            try:
                found[server.client.url] = await self._ask(server, request, spans)
            except (ServerLost, AnswerFault) as error:
                await self._pool.suspect(server, str(error))

        await asyncio.gather(*(one(server) for server in self._pool.servers if server.up))
        return found

    async def release(self, group: str) -> None:
        """Forget which server serves `group`; the server's cache makes room by itself."""
        self._pool.release(group)

    async def load_weights(self, weights: Mapping[str, torch.Tensor], version: int) -> None:
        """Sample with `weights` (a state dict of the model) from now on; all caches are dropped.

        New requests wait until it is done. Raises `EngineError` if no server takes the weights, or
        if requests are in flight and `in_flight` is None; and `ValueError` for names or shapes that
        do not fit, with nothing changed.
        """
        trained = self._loading(version)
        own = _handed(trained, weights)
        if self._hand.backend is not None:  # The trainer's own may change before one comes back.
            own = await asyncio.to_thread(_copied, own)
        lora = trained.lora
        scale = None if lora is None else lora.alpha / lora.rank
        await self.load_from(Held(own, scale, self._sender), version)

    async def load_from(self, source: Source, version: int) -> None:
        """`load_weights` for weights that several processes may hold together.

        Errors of `source` are raised; servers then sample with the weights from before.
        """
        trained = self._loading(version)
        await self._start()
        lora = trained.lora
        told = {} if lora is None else {"lora": {"rank": lora.rank, "alpha": lora.alpha}}
        name = f"{self._run}/{next(self._given)}-{version}"
        buckets = in_buckets(_handed(trained, trained.tensors))
        weights, before = Weights(name, source, buckets, told), self._weights
        try:
            await self._hand.write(weights)
            async with self._paused():
                self._weights = weights
                self._handed_over.append((name, version))
                self._pool.retry_lost()
                up = [server for server in self._pool.servers if server.up]
                try:
                    await self._hand.give(up, weights)
                except BaseException:
                    self._weights = before
                    self._handed_over.pop()
                    raise
                self.version, self.served_share = version, weights.handed.served_share
        finally:
            self._hand.forget(self._run, self._weights)
        await self._pool.acquire("")  # If all servers were lost, this waits for one.
        self._pool.release("")

    async def close(self) -> None:
        """Stop, and end the servers started here; pending requests raise `EngineError`."""
        self._closed = True
        for work in self._pending:
            work.cancel()
        self._pool.stop()
        self._encoder.shutdown(wait=False, cancel_futures=True)
        for server in self._pool.servers:
            await server.client.close()
        self._hand.forget(self._run, None)

    def _loading(self, version: int) -> TrainedModel:
        """The model whose weights `version` may now be loaded."""
        if self._trained is None:
            raise EngineError(f"weights {version}: the servers have a model of their own")
        if self._pending and self._in_flight is None:
            raise EngineError(
                f"weights {version}: {len(self._pending)} requests are in flight; await or cancel "
                "them first"
            )
        return self._trained

    @asynccontextmanager
    async def _paused(self) -> AsyncIterator[None]:
        """Within the context servers get no request; those in flight end as `in_flight` says."""
        self._update = asyncio.Event()
        try:
            if self._in_flight == "restart":
                self._pool.interrupt()
            if self._in_flight != "keep" and self._asking:
                await asyncio.wait(self._asking)
            yield
        finally:
            self._update.set()
            self._update = None

    # ------------------------------------------------------------------ one request

    async def _serve(self, request: Request, spans: Sequence[ImageSpan]) -> Completion:
        """Ask servers until one answers."""
        await self._start()
        if self._weights is None:
            self._check_untouched()
        failures: list[str] = []
        while len(failures) < ATTEMPTS:
            with waiting():
                server = await self._pool.acquire(request.group)
            server.asked += 1
            try:
                async with server.places.take(request.priority):
                    if not server.up:  # It was lost before the request was sent.
                        continue
                    ask = asyncio.ensure_future(self._ask(server, request, spans))
                    self._asking.add(ask)
                    ask.add_done_callback(self._asking.discard)
                    return self._count(request, await ask)
            except Interrupted:
                if self._update is not None:
                    with waiting():
                        await self._update.wait()
            except ServerLost as error:
                failures.append(f"{server.client.url}: {error}")
                await self._pool.suspect(server, str(error))
            except AnswerFault as error:
                failures.append(f"{server.client.url}: {error}")
                await self._pool.suspect(server, str(error))
                with waiting():
                    await asyncio.sleep(BACKOFF * 2 ** len(failures))
            except Refused as error:
                raise RequestError(f"request {request.id}: {server.client.url}: {error}") from error
            finally:
                server.asked -= 1
        raise EngineError(f"request {request.id}: given up: {'; '.join(failures)}")

    async def _ask(
        self, server: Server, request: Request, spans: Sequence[ImageSpan]
    ) -> Completion:
        """The server's answer; a picture is sent once, with the first request that shows it."""
        if len(request.tokens) >= server.context:
            raise EngineError(
                f"request {request.id}: {len(request.tokens)} tokens, {server.client.url} has a "
                f"context of {server.context}: start it with a larger --max-model-len"
            )
        shown = {p.digest for p in request.pictures}
        for attempt in range(ATTEMPTS):
            while others := [server.coming[digest] for digest in shown if digest in server.coming]:
                with waiting():
                    await others[0].wait()
            if self._update is not None:
                raise Interrupted
            oldest = len(self._handed_over) - 1  # It is read after the wait for pictures.
            known = {d: server.known[d] for d in shown if d in server.known}
            new = shown if attempt == ATTEMPTS - 1 else shown - known.keys()
            try:
                answer = await self._send(server, request, spans, new)
            except Refused as error:
                if "data is not provided" not in str(error) or new == shown:
                    raise
                for digest, id in known.items():  # The server's cache has dropped some.
                    if server.known.get(digest) == id:  # Nobody has brought it again meanwhile.
                        del server.known[digest]
            else:
                return self._accept(server, request, answer, oldest)
        raise AssertionError("the last attempt brings every picture")

    async def _send(
        self, server: Server, request: Request, spans: Sequence[ImageSpan], new: set[str]
    ) -> Any:
        """The server's answer to `request`, which is sent with those of its pictures in `new`."""
        assert self._served is not None
        id, model = f"{self._run}-{next(self._ids)}-{request.id}", self._served.model
        if self._trained is None:  # Plain servers refuse priorities; `places` keeps the order.
            request = replace(request, priority=0)
        if not new:
            none = [None] * len(request.pictures)
            body = request_body(request, id, model, spans, none)
            return await self._pool.ask(server, body, lambda: None)
        over = asyncio.Event()
        server.coming |= dict.fromkeys(new, over)

        def end() -> None:
            over.set()
            server.coming = {d: event for d, event in server.coming.items() if event is not over}

        def accepted() -> None:
            if not over.is_set():
                self.stats.pictures += len(new)
                server.known |= dict.fromkeys(new, id)
                end()

        try:
            urls = [await self._url(p) if p.digest in new else None for p in request.pictures]
            if self._update is not None:  # It began while pictures were encoded.
                raise Interrupted
            self.stats.picture_bytes += sum(len(url) for url in urls if url)
            body = request_body(request, id, model, spans, urls)
            return await self._pool.ask(server, body, accepted)
        finally:
            end()

    def _accept(self, server: Server, request: Request, answer: Any, oldest: int) -> Completion:
        """The completion; raises `ServerLost` if it was sampled by other weights than those that
        `_handed_over` holds from index `oldest` on."""
        read = read_answer(request, answer, self._processor.vocabulary)
        due = dict(self._handed_over[oldest:])
        if wrong := set(read.weights) - set(due):
            reason = f"it sampled with the weights {min(wrong)!r}, expected {' or '.join(due)!r}"
            self._pool.lose(server, reason)
            raise ServerLost(reason)
        return replace(read.completion, versions=tuple(due[name] for name in read.weights))

    async def _url(self, picture: Picture) -> str:
        url = self._encoded.get(picture.digest)
        if url is None:
            loop = asyncio.get_running_loop()
            url = await loop.run_in_executor(self._encoder, self._encode, picture.image)
            if picture.digest not in self._encoded:  # for another server, meanwhile
                self._encoded_bytes += len(url)
                self._encoded[picture.digest] = url
        self._encoded.move_to_end(picture.digest)
        while self._encoded_bytes > ENCODED and len(self._encoded) > 1:
            self._encoded_bytes -= len(self._encoded.popitem(last=False)[1])
        return url

    def _encode(self, image: Image.Image) -> str:
        # vLLM's processor resamples in another way than the trainer's.
        return picture_url(as_seen(self._processor.image_processor, image))

    def _count(self, request: Request, completion: Completion) -> Completion:
        stats = self.stats
        stats.requests += 1
        stats.reused += completion.reused
        stats.prefilled += len(request.tokens) - completion.reused
        stats.decoded += len(completion.tokens) - 1  # The prefill gives the first one.
        stats.sampled += len(completion.tokens)
        return completion

    # ------------------------------------------------------------------ servers and weights

    async def _start(self) -> None:
        """Check every server once per event loop; raises `ConfigError` if one does not fit."""
        if self._pool.attach() or self._ready is None:
            self._ready = asyncio.ensure_future(self._check_all())
        await asyncio.shield(self._ready)

    async def _check_all(self) -> None:
        up = [server for server in self._pool.servers if server.up and server.weights is None]
        for server in up:
            if not await server.client.healthy():
                raise ConfigError(
                    f"engine.urls: no healthy server at {server.client.url}; start it with "
                    "`axpo serve`"
                )
        await asyncio.gather(*(self._prepare(server) for server in up))

    def _check_untouched(self) -> None:
        """Raise `ConfigError` if a server no longer has the weights that it started with."""
        for server in self._pool.servers:
            if server.up and server.weights != UNNAMED:
                raise ConfigError(
                    f"{server.client.url} samples with weights of another run "
                    f"({server.weights!r}), not with the checkpoint's: start it anew"
                )

    async def _prepare(self, server: Server) -> None:
        """Check a server and give it the weights that are due."""
        if self._trained is None:
            served = await check_alone(server.client, self._processor, self._room, self._slots)
        else:
            served = await check_server(server.client, self._trained, self._room)
        other = self._served or served
        if (served.model, served.root) != (other.model, other.root):
            raise ConfigError(
                f"{server.client.url} serves {served.model!r} ({served.root}), another server or "
                f"this one before {other.model!r} ({other.root}): they need the same model under "
                "one --served-model-name"
            )
        self._served, server.places = served, Places(served.places)
        server.weights = None if server.torn else served.weights
        server.context = served.context
        while self._weights is not None and server.weights != self._weights.name:
            if self._update is not None:  # They are being given to the others.
                await self._update.wait()
            else:
                await self._hand.again(server, self._weights)


def _handed(trained: TrainedModel, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What servers get of `weights`, a state dict of the model: its adapters, if it has some."""
    distinct = distinct_weights(trained.tensors, weights)
    return distinct if trained.lora is None else adapter_weights(distinct)


def _copied(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: weight.detach().to("cpu", copy=True) for name, weight in weights.items()}
