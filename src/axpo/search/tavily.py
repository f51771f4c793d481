"""Search on the web through Tavily; the key comes from the environment and stays in the client.

No text of the server and no exception of a client becomes part of an error, and the key is cut
out of results, so that the key reaches no log, error or cache.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import httpx
from pydantic import BaseModel, ValidationError

from axpo.errors import MissingError, SourceFault, UserError
from axpo.extras import require
from axpo.search.base import Hit, PageText, Results, TextSource, shortened

if TYPE_CHECKING:
    from tavily import AsyncTavilyClient

KEY = "TAVILY_API_KEY"
URL = "https://api.tavily.com"
DEPTH = "basic"
"""A search costs one credit; "advanced" would cost two."""
MAX_SNIPPET, MAX_PAGE = 2_000, 100_000
"""How many characters are kept: recorded answers serve tools that show more or less of them."""
CONNECTIONS = 32
"""How many requests are under way at once; more wait."""
START_TIMEOUT = 10.0
"""How many seconds the check of the key may take."""
TIMEOUT = 20.0
"""Seconds after which a request is given up."""

_REFUSED = "Tavily does not accept the key in TAVILY_API_KEY"


class _Found(BaseModel):
    url: str
    title: str | None = None
    content: str | None = None
    raw_content: str | None = None


class _Results(BaseModel):
    results: list[_Found]


class Tavily(TextSource):
    """Texts from Tavily's API."""

    paid = True
    identity = f"tavily:{DEPTH}"

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._http: httpx.AsyncClient | None = None
        self._client: AsyncTavilyClient | None = None

    async def start(self) -> None:
        """Check the key, which costs nothing; raises `UserError` where it is missing or refused."""
        if self._client is not None and self._loop is asyncio.get_running_loop():
            return
        key = os.environ.get(KEY, "")
        if not key:
            raise MissingError(
                f"{KEY} is not set, which tools.search.backend = 'tavily' needs: export {KEY}=..., "
                "or search an index of your own (tools.search.corpus)"
            )
        if not key.isascii() or not key.isprintable():
            raise UserError(f"{KEY} has characters that a key cannot have")
        require("tavily", 'tools.search.backend = "tavily"')
        from tavily import AsyncTavilyClient

        self._http = httpx.AsyncClient(
            base_url=URL,
            headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
            limits=httpx.Limits(max_connections=CONNECTIONS),
        )
        self._client = AsyncTavilyClient(client=self._http)
        self._loop = asyncio.get_running_loop()  # connections cannot move to another one
        try:
            status = (await self._http.get("/usage", timeout=START_TIMEOUT)).status_code
        except httpx.HTTPError:
            return  # a server that is down now may be up when the first query comes
        if status == httpx.codes.UNAUTHORIZED:
            await self.close()
            raise UserError(_REFUSED)

    async def search(self, query: str, results: int) -> Results[Hit]:
        found = await self._ask(
            lambda client: client.search(
                query, search_depth=DEPTH, max_results=results, timeout=TIMEOUT
            )
        )
        return Results([self._hit(hit) for hit in found[:results]])

    async def page(self, url: str) -> PageText | None:
        found = await self._ask(lambda client: client.extract([url], timeout=TIMEOUT))
        if not found or not found[0].raw_content:
            return None
        text = self._without_key(found[0].raw_content)
        return PageText("", url, shortened(text, MAX_PAGE))

    async def close(self) -> None:
        http, self._http, self._client = self._http, None, None
        if http is not None:
            await http.aclose()

    async def _ask(
        self, call: Callable[[AsyncTavilyClient], Awaitable[dict[str, Any]]]
    ) -> list[_Found]:
        """The checked results of one request; raises `SourceFault` for any failure."""
        if self._client is None:
            raise SourceFault("the Tavily client is not started")
        try:
            answer = await call(self._client)
        except Exception as error:
            raise _fault(error) from None
        try:
            return _Results.model_validate(answer).results
        except ValidationError:
            message = "Tavily's answer is not of the expected form"
            raise SourceFault(message, retryable=True, charged=True) from None

    def _hit(self, found: _Found) -> Hit:
        snippet = " ".join(self._without_key(found.content or "").split())
        title, url = self._without_key(found.title or ""), self._without_key(found.url)
        return Hit(title, url, shortened(snippet, MAX_SNIPPET))

    def _without_key(self, text: str) -> str:
        """`text` without the key, which a server might send back."""
        if self._http is None:
            return text
        key = self._http.headers["Authorization"].removeprefix("Bearer ")
        return text.replace(key, "[key]")


def _fault(error: Exception) -> SourceFault:
    """The fault that `error` means, without its words. Tavily bills successful requests only."""
    from tavily import errors

    if isinstance(error, errors.TimeoutError):
        return SourceFault("Tavily did not answer in time", retryable=True, charged=True)
    if isinstance(error, errors.UsageLimitExceededError):
        return SourceFault("Tavily: too many requests (429)", retryable=True)
    if isinstance(error, errors.InvalidAPIKeyError):
        return SourceFault(f"{_REFUSED} (401)")
    if isinstance(error, errors.ForbiddenError):
        return SourceFault("Tavily: the plan's limit is reached, or the request is forbidden (403)")
    if isinstance(error, errors.BadRequestError):
        return SourceFault("Tavily: bad request (400)")
    if isinstance(error, httpx.HTTPStatusError):
        status = error.response.status_code
        retryable = status >= httpx.codes.INTERNAL_SERVER_ERROR
        return SourceFault(f"Tavily answered with status {status}", retryable=retryable)
    if isinstance(error, httpx.HTTPError):
        name = type(error).__name__
        return SourceFault(f"no connection to Tavily ({name})", retryable=True, charged=True)
    if isinstance(error, ValueError):  # not JSON
        return SourceFault("Tavily's answer is not JSON", retryable=True, charged=True)
    message = f"Tavily's answer is not of the expected form ({type(error).__name__})"
    return SourceFault(message, retryable=True, charged=True)
