"""`web_search` and `web_extractor`: what a model may ask of a search backend, and what it reads.

Names and arguments are those of Qwen-Agent's tools of the same names, which the family knows: one
string each. A page is opened by a tool of its own and not by an argument of the search, so that
each has one required argument and no call can be half of both.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, StrictStr

from axpo.config import LimitSettings
from axpo.tools.arguments import parse_arguments, shorten
from axpo.tools.base import ModelError, Observation, ToolContext
from axpo.tools.search.base import Backend, cache_figures, shortened

MAX_QUERY = 400
"""Characters of a query; Tavily takes no more."""
MAX_URL = 2000
MAX_TITLE = 200
TIMEOUT = 30.0
LIMITS = LimitSettings(retries=2)
NOTHING = "No results."


def function(name: str, description: str, argument: str, kind: str, meaning: str) -> dict[str, Any]:
    """A function of one required argument in OpenAI's format."""
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": {argument: {"type": kind, "description": meaning}},
                "required": [argument],
            },
        },
    }


class SearchArguments(BaseModel):
    """Arguments of `web_search`, checked without coercion."""

    model_config = ConfigDict(extra="forbid")

    query: StrictStr = Field(description="a string")


class PageArguments(BaseModel):
    """Arguments of `web_extractor`, checked without coercion."""

    model_config = ConfigDict(extra="forbid")

    url: StrictStr = Field(description="a string")


class WebSearchTool:
    """`web_search(query)`: at most `results` numbered results with title, url and snippet.

    A snippet is cut to `snippet` characters.
    """

    name = "web_search"
    spec = function(name, "Search for information.", "query", "string", "What to search for.")
    timeout = TIMEOUT
    limits = LIMITS

    def __init__(self, backend: Backend, results: int, snippet: int) -> None:
        self.backend = backend
        self._results = results
        self._snippet = snippet

    @property
    def figures(self) -> dict[str, float]:
        """What the cache of answers counts of this tool's calls."""
        return cache_figures(self.backend, "search")

    async def start(self) -> None:
        await self.backend.start()

    async def __call__(self, arguments: dict[str, Any], context: ToolContext) -> Observation:
        query = _argument("query", parse_arguments(SearchArguments, arguments).query, MAX_QUERY)
        found = await self.backend.search(query, self._results)
        lines = [(it.title, it.url, shortened(it.snippet, self._snippet)) for it in found.items]
        return Observation(numbered(lines), cached=found.cached)

    async def close(self) -> None:
        await self.backend.close()


class WebExtractorTool:
    """`web_extractor(url)`: the beginning of a result's page, `characters` at most."""

    name = "web_extractor"
    spec = function(name, "Read the page of a search result.", "url", "string", "The page's url.")
    timeout = TIMEOUT
    limits = LIMITS

    def __init__(self, backend: Backend, characters: int) -> None:
        self.backend = backend
        self._characters = characters

    @property
    def figures(self) -> dict[str, float]:
        """What the cache of answers counts of this tool's calls."""
        return cache_figures(self.backend, "page")

    async def start(self) -> None:
        await self.backend.start()

    async def __call__(self, arguments: dict[str, Any], context: ToolContext) -> Observation:
        url = _argument("url", parse_arguments(PageArguments, arguments).url, MAX_URL)
        page = await self.backend.page(url)
        if page is None:
            raise ModelError(f"url is {shorten(url)}: expected the url of a search result")
        title = f"{shortened(page.title, MAX_TITLE)}\n\n" if page.title else ""
        return Observation(title + shortened(page.text, self._characters), cached=page.cached)

    async def close(self) -> None:
        await self.backend.close()


def numbered(results: list[tuple[str, str, str]]) -> str:
    """Title, url and text of each result as a model reads them, best first."""
    shown: list[str] = []
    for rank, (title, url, text) in enumerate(results, 1):
        head = f"[{rank}] {shortened(title, MAX_TITLE)}".rstrip()
        shown.append("\n".join(line for line in (head, url, text) if line))
    return "\n\n".join(shown) or NOTHING


def _argument(field: str, value: str, characters: int) -> str:
    """A model's string without what is no character; raises `ModelError` where nothing is left."""
    text = value.encode("utf-8", "ignore").decode().strip()
    if not text:
        raise ModelError(f"{field} is {shorten(value)}: expected some text")
    if len(text) > characters:
        raise ModelError(f"{field} has {len(text)} characters: expected at most {characters}")
    return text
