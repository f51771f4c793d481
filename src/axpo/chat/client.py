"""OpenAI's chat completions over HTTP, at one address or several, with retries and deadlines.

No exception of the client becomes part of an error, and the key is cut out of what a server says,
so that the key reaches no log, error or file.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import httpx
import stamina
from pydantic import BaseModel, Field, ValidationError

from axpo.config.secrets import masked_text
from axpo.errors import ConfigError, MissingError, SourceFault

WAIT, WAIT_MAX = 0.5, 30.0
"""Seconds before the first retry and before any, unless the server names others (Retry-After)."""
AVOIDED = 10.0
"""Seconds for which an address that failed is asked only where all others failed, too (choice)."""
# Retries are counted; without a handler each would be printed.
logging.getLogger("stamina").addHandler(logging.NullHandler())
_AGAIN = {408, 409, 425, 429}
_BROKEN = {"error", "abort"}
"""Reasons with which servers (OpenRouter, vLLM) end answers that failed half-way."""


class _Message(BaseModel, extra="allow"):
    tool_calls: list[dict[str, Any]] | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class Usage(BaseModel):
    """What a call took, as far as the server says."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    usage: Usage | None = None


class Reply(BaseModel):
    """A reply's text, why it ended ("length" where it was cut off), and its whole `message`."""

    text: str
    finish: str | None = None
    usage: Usage = Usage()
    message: dict[str, Any] = Field(default_factory=dict[str, Any])


@dataclass(slots=True)
class ClientStats:
    """Figures since the start: requests sent, questions that no request answered, seconds of
    requests (summed: they overlap), tokens, and the cost where the server says it."""

    requests: int = 0
    failures: int = 0
    seconds: float = 0.0
    prompt_tokens: int = 0
    reply_tokens: int = 0
    cost: float = 0.0


class Declined(SourceFault):
    """A status other than 200, and the `body` that came with it; the server may ask to wait `after`
    seconds."""

    def __init__(
        self, message: str, status: int, body: bytes, *, retryable: bool, after: float | None
    ) -> None:
        super().__init__(message, retryable=retryable)
        self.status, self.body, self.after = status, body, after


@dataclass(slots=True)
class _Address:
    """Where requests go, how many are under way there, and until when it is avoided."""

    url: httpx.URL
    shown: str
    busy: int = 0
    until: float = 0.0

    @classmethod
    def of(cls, url: str) -> _Address:
        base = httpx.URL(url)
        path = f"{base.path.rstrip('/')}/chat/completions"
        return cls(base.copy_with(path=path), masked_text(url))


def api_key(name: str | None, setting: str) -> str | None:
    """The key in the environment variable `name`; None where `setting` names none.

    Raises `MissingError` where it is not set.
    """
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        raise MissingError(
            f"{setting}: the environment variable {name} is not set; export {name}=..."
        )
    if not key.isascii() or not key.isprintable():
        raise ConfigError(f"{setting}: {name} has characters that a key cannot have")
    return key


class ChatClient:
    """Asks a model at one address, or at several of which the least busy is next; belongs to one
    event loop at a time.

    A request is sent up to `1 + retries` times, each for `timeout` seconds at most, all of them
    and the waits between them for `deadline`. As many as `connections` are kept open.
    """

    def __init__(
        self,
        urls: Sequence[str],
        key: str | None,
        *,
        retries: int,
        timeout: float,
        deadline: float,
        connections: int,
    ) -> None:
        self.stats = ClientStats()
        self._key = key
        self._addresses = [_Address.of(url) for url in urls]
        self._retries, self._timeout, self._deadline = retries, timeout, deadline
        self._connections = connections
        self._http: httpx.AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def connect(self, url: str) -> None:
        """Ask the API at `url` from now on."""
        self._addresses = [_Address.of(url)]

    async def ask(self, body: Mapping[str, Any]) -> Reply:
        """The reply to a request; raises `SourceFault`."""
        billed = 0
        content = await asyncio.to_thread(_encoded, body)  # with pictures it is large
        attempts = stamina.retry_context(
            on=self._worth_another,
            attempts=1 + self._retries,
            timeout=None,  # the deadline holds for all of them
            wait_initial=WAIT,
            wait_max=WAIT_MAX,
        )
        shown = ", ".join(address.shown for address in self._addresses)
        fault = SourceFault(f"{shown}: no answer in {self._deadline:g} s")
        try:
            async with asyncio.timeout(self._deadline):
                async for attempt in attempts:
                    with attempt:
                        billed += 1
                        try:
                            return await self._post(content)
                        except SourceFault as found:
                            billed -= not found.charged
                            raise
        except TimeoutError:
            pass
        except SourceFault as found:
            fault = found
        self.stats.failures += 1
        fault.charged = billed > 0
        raise fault from None

    async def close(self) -> None:
        """End the connections; those of an event loop that is over have ended with it."""
        http, self._http = self._http, None
        if http is not None and self._loop is asyncio.get_running_loop():
            await http.aclose()

    async def _post(self, content: bytes) -> Reply:
        now = time.monotonic()
        address = min(self._addresses, key=lambda address: (address.until > now, address.busy))
        self.stats.requests += 1
        address.busy += 1
        try:
            reply = await self._sent(address, content)
        except SourceFault as fault:
            if fault.retryable:
                after = fault.after if isinstance(fault, Declined) else None
                address.until = time.monotonic() + (AVOIDED if after is None else after)
            raise
        finally:
            address.busy -= 1
            self.stats.seconds += time.monotonic() - now
        self.stats.prompt_tokens += reply.usage.prompt_tokens
        self.stats.reply_tokens += reply.usage.completion_tokens
        self.stats.cost += reply.usage.cost
        return reply

    async def _sent(self, address: _Address, content: bytes) -> Reply:
        def fault(message: str, charged: bool = True) -> SourceFault:
            return SourceFault(f"{address.shown}: {message}", retryable=True, charged=charged)

        try:
            async with asyncio.timeout(self._timeout):  # httpx's own are for each read
                response = await self._connected().post(address.url, content=content)
        except TimeoutError:
            raise fault(f"no answer in {self._timeout:g} s") from None
        except httpx.ConnectError:
            raise fault("no connection", charged=False) from None
        except httpx.HTTPError as error:
            raise fault(f"lost the connection ({type(error).__name__})") from None
        if response.status_code != httpx.codes.OK:
            raise self._declined(address, response)
        try:
            read = _Completion.model_validate_json(response.content)
        except ValidationError:
            raise fault("an answer that is no chat completion") from None
        choice = read.choices[0]
        if choice.finish_reason in _BROKEN:
            raise fault(f"an answer that ended as {choice.finish_reason!r}")
        message = choice.message.model_dump(exclude_unset=True)
        return Reply(
            text=text_of(message.get("content")),
            finish=choice.finish_reason,
            usage=read.usage or Usage(),
            message=message,
        )

    def _declined(self, address: _Address, response: httpx.Response) -> Declined:
        """What a status other than 200 means; servers bill none of them."""
        status = response.status_code
        said = " ".join(response.text[:300].split())
        if self._key:
            said = said.replace(self._key, "[key]")
        message = f"{address.shown}: status {status} {said}".strip()
        again = status in _AGAIN or status >= httpx.codes.INTERNAL_SERVER_ERROR
        after = response.headers.get("retry-after", "")
        seconds = float(after) if again and after.isascii() and after.isdigit() else None
        return Declined(message, status, response.content, retryable=again, after=seconds)

    def _worth_another(self, error: Exception) -> bool | float:
        """Whether to try again, or after how many seconds."""
        if not isinstance(error, SourceFault) or not error.retryable:
            return False
        if not isinstance(error, Declined) or error.after is None:
            return True
        now = time.monotonic()
        return max(WAIT, min(address.until for address in self._addresses) - now)

    def _connected(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        if self._http is None or self._loop is not loop:  # connections cannot move to another one
            count = self._connections
            self._loop = loop
            headers = {"Content-Type": "application/json"}
            if self._key:
                headers["Authorization"] = f"Bearer {self._key}"
            self._http = httpx.AsyncClient(
                headers=headers,
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=count),
                timeout=None,
            )
        return self._http


def _encoded(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body).encode()


def text_of(content: Any) -> str:
    """The text of a message's content, which is a text or a list of parts."""
    if isinstance(content, list):
        parts = cast("list[Any]", content)
        return "".join(text_of(part.get("text")) for part in parts if isinstance(part, dict))
    return content if isinstance(content, str) else ""
