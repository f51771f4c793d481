"""A judge's API (OpenAI's chat completions) over HTTP, with retries and deadlines.

No exception of the client becomes part of an error, and the key is cut out of what a server says,
so that the key reaches no log, error or file.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import stamina
from pydantic import BaseModel, Field, ValidationError

from axpo.config import JudgeSettings
from axpo.config.secrets import masked_text
from axpo.errors import SourceFault

WAIT, WAIT_MAX = 0.5, 30.0
"""Seconds before the first retry and before any, unless the server names others (Retry-After)."""
# Retries are counted; without a handler each would be printed.
logging.getLogger("stamina").addHandler(logging.NullHandler())
_AGAIN = {408, 409, 425, 429}


class _Message(BaseModel):
    content: str | None = None


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
    """A judge's reply as it came, and why it ended ("length" where it was cut off)."""

    text: str
    finish: str | None = None
    usage: Usage = Usage()


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


class _Busy(SourceFault):
    """The server asks to wait `after` seconds."""

    def __init__(self, message: str, after: float) -> None:
        super().__init__(message, retryable=True)
        self.after = after


class ChatClient:
    """Asks one model at one address; belongs to one event loop at a time."""

    def __init__(self, settings: JudgeSettings, key: str | None) -> None:
        self.stats = ClientStats()
        self._key = key
        if settings.url is not None:
            self.connect(settings.url)
        self._settings = settings
        self._http: httpx.AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def connect(self, url: str) -> None:
        """Ask the API at `url` from now on."""
        address = httpx.URL(url)
        self._address = address.copy_with(path=f"{address.path.rstrip('/')}/chat/completions")
        self._shown = masked_text(url)

    async def ask(self, body: Mapping[str, Any]) -> Reply:
        """The reply to a request; raises `SourceFault`."""
        settings, billed, message = self._settings, 0, ""
        content = await asyncio.to_thread(_encoded, body)  # with pictures it is large
        attempts = stamina.retry_context(
            on=_worth_another,
            attempts=1 + settings.retries,
            timeout=None,  # the deadline holds for all of them
            wait_initial=WAIT,
            wait_max=WAIT_MAX,
        )
        try:
            async with asyncio.timeout(settings.deadline):
                async for attempt in attempts:
                    with attempt:
                        billed += 1
                        try:
                            return await self._post(content)
                        except SourceFault as fault:
                            billed -= not fault.charged
                            raise
        except TimeoutError:
            message = f"{self._shown}: no answer in {settings.deadline:g} s"
        except SourceFault as fault:
            message = str(fault)
        self.stats.failures += 1
        raise SourceFault(message, charged=billed > 0)

    async def close(self) -> None:
        """End the connections; those of an event loop that is over have ended with it."""
        http, self._http = self._http, None
        if http is not None and self._loop is asyncio.get_running_loop():
            await http.aclose()

    async def _post(self, content: bytes) -> Reply:
        self.stats.requests += 1
        began, seconds = time.perf_counter(), self._settings.timeout
        try:
            async with asyncio.timeout(seconds):  # httpx's own are for each read
                response = await self._connected().post(self._address, content=content)
        except TimeoutError:
            raise self._fault(f"no answer in {seconds:g} s", charged=True) from None
        except httpx.ConnectError:
            raise self._fault("no connection") from None
        except httpx.HTTPError as error:
            raise self._fault(
                f"lost the connection ({type(error).__name__})", charged=True
            ) from None
        finally:
            self.stats.seconds += time.perf_counter() - began
        if response.status_code != httpx.codes.OK:
            raise self._refused(response)
        try:
            read = _Completion.model_validate_json(response.content)
        except ValidationError:
            raise self._fault("an answer that is no chat completion", charged=True) from None
        usage = read.usage or Usage()
        self.stats.prompt_tokens += usage.prompt_tokens
        self.stats.reply_tokens += usage.completion_tokens
        self.stats.cost += usage.cost
        choice = read.choices[0]
        return Reply(text=choice.message.content or "", finish=choice.finish_reason, usage=usage)

    def _fault(self, message: str, charged: bool = False) -> SourceFault:
        return SourceFault(f"{self._shown}: {message}", retryable=True, charged=charged)

    def _refused(self, response: httpx.Response) -> SourceFault:
        """What a status other than 200 means; servers bill none of them."""
        status = response.status_code
        said = " ".join(response.text[:300].split())
        if self._key:
            said = said.replace(self._key, "[key]")
        message = f"{self._shown}: status {status} {said}".strip()
        if status not in _AGAIN and status < httpx.codes.INTERNAL_SERVER_ERROR:
            return SourceFault(message)
        after = response.headers.get("retry-after", "")
        if after.isascii() and after.isdigit():
            return _Busy(message, float(after))
        return SourceFault(message, retryable=True)

    def _connected(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        if self._http is None or self._loop is not loop:  # connections cannot move to another one
            count = self._settings.concurrency
            self._loop = loop
            headers = {"Content-Type": "application/json"}
            if self._key:
                headers["Authorization"] = f"Bearer {self._key}"
            self._http = httpx.AsyncClient(
                headers=headers,
                limits=httpx.Limits(max_connections=count, max_keepalive_connections=count),
                timeout=None,
            )
        return self._http


def _encoded(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body).encode()


def _worth_another(error: Exception) -> bool | float:
    """Whether to try again, or after how many seconds."""
    if isinstance(error, _Busy):
        return max(error.after, WAIT)
    return isinstance(error, SourceFault) and error.retryable
