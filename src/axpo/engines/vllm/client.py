"""One vLLM server over HTTP: its routes, and the meaning of each kind of failure.

A request may be repeated: its seed fixes what is sampled, and an answer that never came was not
counted. The type of a failure says who may succeed with it: another server (`ServerLost`), the same
server a moment later (`AnswerFault`), or nobody (`Refused`, `EngineError`).
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from typing import Any, TypeVar

import httpx
import orjson

from axpo.clock import Clock, waiting
from axpo.engines.vllm.wire import NONSENSE, joined, shown
from axpo.errors import AnswerFault, EngineError, Refused, ServerLost

KEPT_SECONDS = 3.0
"""Seconds after which an idle connection is dropped; the server would close it after 5 seconds."""
CONTROL_SECONDS = 600.0
"""Seconds that a control call may take: weights of many gigabytes are read from a disk."""
ANSWER_BYTES = 2**26
"""The most bytes of an answer: ten times 40,960 tokens of about 150 bytes each."""
GENERATE = "/inference/v1/generate"

T = TypeVar("T")


class Client:
    """A client of the server at `url`; it can be used on one event loop after another."""

    def __init__(self, url: str, request_seconds: float, health_seconds: float) -> None:
        self.url = url.rstrip("/")
        self._request_seconds = request_seconds
        self._health_seconds = health_seconds
        self._ssl = httpx.create_ssl_context(trust_env=False)
        self._idle: list[httpx.AsyncClient] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._clocks: set[Clock] = set()
        self._heard = 0.0

    def at(self, url: str) -> Client:
        """A client like this one of the server at `url`."""
        return Client(url, self._request_seconds, self._health_seconds)

    @property
    def silent(self) -> bool:
        """Whether requests wait here and none has received anything for most of `request_seconds`.

        It must be known before that time is over, because then other requests take the places.
        """
        return bool(self._clocks) and time.monotonic() - self._heard > 0.75 * self._request_seconds

    async def generate(self, body: dict[str, Any], accepted: Callable[[], None]) -> Any:
        """The server's answer; cancelling this closes the connection, which aborts the request.

        `accepted` is called when the server has the first token. Until then the request is in the
        server's queue (`waiting`); from then on the server may take `request_seconds` for each part
        of the answer, weight updates not counted.
        """
        if not self._clocks:
            self._hear()
        clock, parts = Clock(self._request_seconds), list[str]()
        content, headers = orjson.dumps(body), {"Content-Type": "application/json"}
        try:
            async with clock:
                self._clocks.add(clock)
                with waiting(clock) as wait:
                    async with self._stream(
                        "POST", GENERATE, content=content, headers=headers
                    ) as response:
                        async for line in _lines(GENERATE, response):
                            if line.startswith("data: "):
                                self._hear()
                                wait.over()
                                clock.again()
                                accepted()
                                parts.append(line.removeprefix("data: "))
        except TimeoutError as error:
            seconds = self._request_seconds
            raise ServerLost(f"{GENERATE}: no more of an answer within {seconds:g} s") from error
        finally:
            self._clocks.discard(clock)
        return joined(parts)

    async def healthy(self) -> bool:
        """Whether the server says in time that it is well."""
        seconds = self._health_seconds  # This limits the whole; httpx's limits are for each read.
        try:
            async with (
                asyncio.timeout(seconds),
                self._connection() as http,
                http.stream("GET", "/health", timeout=seconds) as response,
            ):
                return response.status_code == 200
        except (httpx.TransportError, TimeoutError):
            return False

    async def rpc(self, method: str, *arguments: str) -> list[Any]:
        """The results of a method of axpo's extension, one per worker."""
        body = {"method": method, "args": list(arguments)}
        seconds = CONTROL_SECONDS
        return await self._ask(
            "POST", "/collective_rpc", seconds, lambda answer: list(answer["results"]), json=body
        )

    async def version(self) -> str:
        """vLLM's version."""
        return await self._get("/version", lambda answer: str(answer["version"]))

    async def routes(self) -> set[str]:
        """The paths that the server serves."""
        return await self._get("/openapi.json", lambda answer: set(answer["paths"]))

    async def models(self) -> dict[str, str]:
        """The name that the server serves its model under, then those of its adapters, and where it
        has each from."""
        return await self._get(
            "/v1/models",
            lambda answer: {str(model["id"]): str(model["root"]) for model in answer["data"]},
        )

    async def tokenize(self, text: str) -> tuple[list[int], int]:
        """The ids of `text` by the server's tokenizer, and how many tokens its context holds."""
        body = {"prompt": text, "add_special_tokens": False}
        return await self._ask(
            "POST", "/tokenize", self._health_seconds,
            lambda answer: ([int(id) for id in answer["tokens"]], int(answer["max_model_len"])),
            json=body,
        )  # fmt: skip

    async def weights(self) -> str:
        """The name of the weights that the server samples with."""
        return await self._get("/weight_info", lambda answer: str(answer["weight_version"]))

    async def join(self, info: dict[str, Any]) -> None:
        """Have the workers join a process group (`axpo.engines.broadcast`)."""
        body = {"init_info": info}
        await self._call("POST", "/init_weight_transfer_engine", CONTROL_SECONDS, json=body)

    async def load(
        self,
        update: dict[str, Any],
        name: str,
        keep: bool,
        beside: Callable[[Awaitable[Any]], Awaitable[None]] | None = None,
    ) -> None:
        """Let the server sample from now on with the weights that `update` describes as `name`.

        `beside` awaits the update and meanwhile sends the weights. Pausing drops the prefix,
        picture and encoder caches, which the old weights filled. With `keep` requests in flight
        go on from their tokens, whose keys and values are computed again; otherwise they are
        aborted.
        """
        seconds, mode = CONTROL_SECONDS, "keep" if keep else "abort"
        with ExitStack() as standing:
            for clock in self._clocks:
                standing.enter_context(waiting(clock))
            self._heard = math.inf
            standing.callback(self._hear)
            await self._call("POST", "/pause", seconds, params={"mode": mode})
            await self._call("POST", "/start_weight_update", seconds)
            updated = self._call("POST", "/update_weights", seconds, json={"update_info": update})
            await (updated if beside is None else beside(updated))
            named = {"weight_version": name}
            await self._call("POST", "/finish_weight_update", seconds, json=named)
            await self._call("POST", "/resume", seconds)

    async def close(self) -> None:
        """Close the connections."""
        idle, self._idle = self._idle, []
        if self._loop is asyncio.get_running_loop():
            for http in idle:
                await http.aclose()

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[httpx.AsyncClient]:
        """A client for one request at a time: the last used idle one, or a new one.

        A shared client would look at each of its connections several times per request, which is
        most of a request's cost with hundreds at once. Connections belong to one event loop.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._idle = loop, []
        http = self._idle.pop() if self._idle else self._connect()
        try:
            yield http
        finally:
            if self._loop is loop:
                self._idle.append(http)

    def _connect(self) -> httpx.AsyncClient:
        limits = httpx.Limits(keepalive_expiry=KEPT_SECONDS)
        return httpx.AsyncClient(
            base_url=self.url,
            limits=limits,
            verify=self._ssl,
            trust_env=False,
            headers={"Accept-Encoding": "identity"},
        )

    async def _get(self, route: str, read: Callable[[Any], T]) -> T:
        return await self._ask("GET", route, self._health_seconds, read)

    async def _ask(
        self, method: str, route: str, seconds: float, read: Callable[[Any], T], **content: Any
    ) -> T:
        """What `read` makes of the answer; raises `AnswerFault` if it cannot read it."""
        answer = await self._call(method, route, seconds, **content)
        try:
            return read(answer)
        except NONSENSE as error:
            raise AnswerFault(
                f"{route}: an answer that makes no sense ({error!r}): {shown(answer)}"
            ) from error

    async def _call(self, method: str, route: str, seconds: float, **content: Any) -> Any:
        """The parsed answer, complete within `seconds` (httpx's own limits are for each read)."""
        try:
            async with asyncio.timeout(seconds), self._stream(method, route, **content) as response:
                text = await _text(route, response)
        except TimeoutError as error:
            raise ServerLost(f"{route}: no answer within {seconds:g} s") from error
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise AnswerFault(f"{route}: not JSON: {text[:200]!r}") from error

    @asynccontextmanager
    async def _stream(
        self, method: str, route: str, **content: Any
    ) -> AsyncIterator[httpx.Response]:
        """A response of status 200, whose body is still to be read; other statuses raise errors."""
        timeout = httpx.Timeout(None, connect=self._health_seconds)
        try:
            async with (
                self._connection() as http,
                http.stream(method, route, timeout=timeout, **content) as response,
            ):
                if (status := response.status_code) != 200:
                    text = await _text(route, response)
                    if status == 400:
                        raise Refused(text[:500])
                    if status in (408, 429) or status >= 500:
                        raise AnswerFault(f"{route}: {status} {text[:300]}")
                    raise EngineError(f"{self.url}{route}: {status} {text[:300]}")
                yield response
        except httpx.TransportError as error:
            raise ServerLost(f"{route}: {error!r}") from error

    def _hear(self) -> None:
        self._heard = time.monotonic()


async def _chunks(route: str, response: httpx.Response) -> AsyncIterator[bytes]:
    """The body as it comes.

    Raises `AnswerFault` if it is compressed, which was not asked for (a few bytes may stand for
    gigabytes), or larger than `ANSWER_BYTES`.
    """
    if (encoding := response.headers.get("content-encoding", "identity")) != "identity":
        raise AnswerFault(f"{route}: an answer with content-encoding {encoding!r:.40}")
    size = 0
    async for chunk in response.aiter_raw():
        size += len(chunk)
        if size > ANSWER_BYTES:
            raise AnswerFault(f"{route}: an answer of more than {ANSWER_BYTES} bytes")
        yield chunk


async def _text(route: str, response: httpx.Response) -> str:
    return b"".join([chunk async for chunk in _chunks(route, response)]).decode(errors="replace")


async def _lines(route: str, response: httpx.Response) -> AsyncIterator[str]:
    begun: list[bytes] = []
    async for chunk in _chunks(route, response):
        first, *others = chunk.split(b"\n")
        begun.append(first)
        for other in others:
            yield b"".join(begun).decode(errors="replace").rstrip("\r")
            begun = [other]
    yield b"".join(begun).decode(errors="replace")
