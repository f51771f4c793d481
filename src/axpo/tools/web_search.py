"""`web_search` asks a search backend and shows the model its results.

Name and argument (one string) are those of Qwen-Agent's tool, which the model family knows. Another
tool (`web_extractor`) opens a page, instead of a second argument here: so each tool has one
required argument, and no call can be half a search and half a visit.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, StrictStr

from axpo.config import LimitSettings
from axpo.search.base import TextSource, shortened
from axpo.tools.arguments import Arguments, function, parse_arguments, text_argument
from axpo.tools.base import Observation, ToolContext
from axpo.tools.searching import SearchTool, numbered

MAX_QUERY = 400
"""The most characters of a query; Tavily accepts no more."""


class SearchArguments(Arguments):
    """The arguments of `web_search`, checked without coercion."""

    query: StrictStr = Field(description="a string")


class WebSearchTool(SearchTool[TextSource]):
    """`web_search(query)` returns at most `results` numbered results: title, url and snippet.

    A snippet is cut to `snippet` characters.
    """

    name = "web_search"
    spec = function(name, "Search for information.", "query", "string", "What to search for.")
    limits = LimitSettings(retries=2)
    kind = "search"

    def __init__(self, backend: TextSource, results: int, snippet: int) -> None:
        super().__init__(backend)
        self._results, self._snippet = results, snippet

    async def _answer(self, arguments: dict[str, Any], context: ToolContext) -> Observation:
        query = text_argument("query", parse_arguments(SearchArguments, arguments).query, MAX_QUERY)
        found = await self.source.search(query, self._results)
        lines = [(it.title, it.url, shortened(it.snippet, self._snippet)) for it in found.items]
        return Observation(numbered(lines), cached=found.cached)
