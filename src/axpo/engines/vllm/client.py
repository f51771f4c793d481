"""One vLLM server over HTTP: its routes, and what each kind of failure means.

A request may be repeated at will: its seed fixes what is sampled, and an answer that never came
was counted nowhere. Hence every failure is sorted by who could do better: another server
(`ServerLost`), the same a moment later (`AnswerFault`), or nobody (`Refused`, `EngineError`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx

from axpo.engines.base import EngineError
from axpo.engines.vllm.wire import AnswerFault, joined

KEPT_SECONDS = 3.0
"""An idle connection is given up before the server closes it, which it does after 5."""
CONTROL_SECONDS = 600.0
"""A control call may take this long: weights of many gigabytes are read from a disk."""


GENERATE = "/inference/v1/generate"


class ServerLost(RuntimeError):
    """The server did not answer, or cannot go on."""


class Refused(RuntimeError):
    """The server cannot serve what was asked; the message is its own."""


class Client:
    """Speaks to the server at `url`; usable from one event loop after another."""

    def __init__(self, url: str, request_seconds: float, health_seconds: float) -> None:
        self.url = url.rstrip("/")
        self._request_seconds = request_seconds
        self._health_seconds = health_seconds
        self._ssl = httpx.create_ssl_context(trust_env=False)
        self._idle: list[httpx.AsyncClient] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    async def generate(
        self, body: dict[str, Any], accepted: Callable[[], None] | None = None
    ) -> Any:
        """The parsed answer; cancelling this closes the connection, which aborts the request.

        The answer to a body with `stream` comes in parts; `accepted` is called at the first.
        """
        if accepted is None:
            return await self._call("POST", GENERATE, self._request_seconds, json=body)
        return await self._stream(body, accepted)

    async def healthy(self) -> bool:
        """Whether the server says in time that it is well."""
        try:
            async with self._connection() as http:
                response = await http.get("/health", timeout=self._health_seconds)
        except httpx.TransportError:
            return False
        return response.status_code == 200

    async def rpc(self, method: str, *arguments: str) -> list[Any]:
        """What each worker returns from a method of axpo's extension."""
        body = {"method": method, "args": list(arguments)}
        answer = await self._call("POST", "/collective_rpc", CONTROL_SECONDS, json=body)
        return answer["results"]

    async def version(self) -> str:
        """vLLM's version."""
        answer = await self._call("GET", "/version", self._health_seconds)
        return str(answer["version"])

    async def routes(self) -> set[str]:
        """Paths that the server serves."""
        return set((await self._call("GET", "/openapi.json", self._health_seconds))["paths"])

    async def model(self) -> str:
        """The name that the server serves its model under."""
        answer = await self._call("GET", "/v1/models", self._health_seconds)
        return str(answer["data"][0]["id"])

    async def weights(self) -> str:
        """The name of the weights that the server samples with."""
        answer = await self._call("GET", "/weight_info", self._health_seconds)
        return str(answer["weight_version"])

    async def join(self, info: dict[str, Any]) -> None:
        """Have the workers join a process group (`axpo.engines.vllm.broadcast`)."""
        body = {"init_info": info}
        await self._call("POST", "/init_weight_transfer_engine", CONTROL_SECONDS, json=body)

    async def load(
        self,
        update: dict[str, Any],
        name: str,
        keep: bool,
        beside: Callable[[Awaitable[Any]], Awaitable[None]] | None = None,
    ) -> None:
        """Sample with the weights that `update` tells of, called `name`, from now on.

        `beside` awaits the update itself, and sends what it is about. Pausing drops the prefix,
        picture and encoder caches, which the old weights filled. With `keep` requests in flight
        go on from their tokens, whose keys and values are computed again; else they are aborted.
        """
        seconds, mode = CONTROL_SECONDS, "keep" if keep else "abort"
        await self._call("POST", "/pause", seconds, params={"mode": mode})
        await self._call("POST", "/start_weight_update", seconds)
        updated = self._call("POST", "/update_weights", seconds, json={"update_info": update})
        await (updated if beside is None else beside(updated))
        await self._call("POST", "/finish_weight_update", seconds, json={"weight_version": name})
        await self._call("POST", "/resume", seconds)

    async def close(self) -> None:
        """Close the connections."""
        idle, self._idle = self._idle, []
        if self._loop is asyncio.get_running_loop():
            for http in idle:
                await http.aclose()

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[httpx.AsyncClient]:
        """A client for one request at a time, the last one used that is idle, or a new one.

        A shared client looks at each of its connections several times a request: with hundreds at
        once that is most of a request's cost. Connections belong to one event loop.
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
            base_url=self.url, limits=limits, verify=self._ssl, trust_env=False
        )

    async def _call(self, method: str, route: str, seconds: float, **content: Any) -> Any:
        timeout = httpx.Timeout(seconds, connect=self._health_seconds, pool=None)
        try:
            async with self._connection() as http:
                response = await http.request(method, route, timeout=timeout, **content)
        except httpx.ReadTimeout as error:
            raise ServerLost(f"{route}: no answer within {seconds:g} s") from error
        except httpx.TransportError as error:
            raise ServerLost(f"{route}: {error!r}") from error
        self._check(route, response)
        try:
            return response.json()
        except ValueError as error:
            raise AnswerFault(f"{route}: not JSON: {response.text[:200]!r}") from error

    async def _stream(self, body: dict[str, Any], accepted: Callable[[], None]) -> Any:
        seconds = self._request_seconds
        timeout = httpx.Timeout(None, connect=self._health_seconds)
        parts: list[str] = []
        try:
            async with (
                asyncio.timeout(seconds),
                self._connection() as http,
                http.stream("POST", GENERATE, timeout=timeout, json=body) as response,
            ):
                if response.status_code != 200:
                    await response.aread()
                    self._check(GENERATE, response)
                async for line in response.aiter_lines():
                    if line.startswith("data: "):
                        accepted()
                        parts.append(line.removeprefix("data: "))
        except TimeoutError as error:
            raise ServerLost(f"{GENERATE}: no answer within {seconds:g} s") from error
        except httpx.TransportError as error:
            raise ServerLost(f"{GENERATE}: {error!r}") from error
        return joined(parts)

    def _check(self, route: str, response: httpx.Response) -> None:
        """Raise what a status other than 200 means."""
        status, text = response.status_code, response.text
        if status == 400:
            raise Refused(text[:500])
        if status in (408, 429) or status >= 500:
            raise AnswerFault(f"{route}: {status} {text[:300]}")
        if status != 200:
            raise EngineError(f"{self.url}{route}: {status} {text[:300]}")
