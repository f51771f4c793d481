"""`web_extractor` reads the page behind a result of `web_search`.

Name and argument are those of Qwen-Agent's tool, which the model family knows.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, StrictStr

from axpo.config import LimitSettings
from axpo.errors import ModelError
from axpo.search.base import TextSource, shortened
from axpo.tools.arguments import Arguments, function, parse_arguments, shorten, text_argument
from axpo.tools.base import Observation, ToolContext
from axpo.tools.searching import MAX_TITLE, SearchTool

MAX_URL = 2000
"""The most characters of a url."""


class PageArguments(Arguments):
    """The arguments of `web_extractor`, checked without coercion."""

    url: StrictStr = Field(description="a string")


class WebExtractorTool(SearchTool[TextSource]):
    """`web_extractor(url)` returns the first `characters` of a result's page."""

    name = "web_extractor"
    spec = function(name, "Read the page of a search result.", "url", "string", "The page's url.")
    limits = LimitSettings(retries=2)
    kind = "page"

    def __init__(self, backend: TextSource, characters: int) -> None:
        super().__init__(backend)
        self._characters = characters

    async def _answer(self, arguments: dict[str, Any], context: ToolContext) -> Observation:
        url = text_argument("url", parse_arguments(PageArguments, arguments).url, MAX_URL)
        page = await self.source.page(url)
        if page is None:
            raise ModelError(f"url is {shorten(url)}: expected the url of a search result")
        title = f"{shortened(page.title, MAX_TITLE)}\n\n" if page.title else ""
        return Observation(title + shortened(page.text, self._characters), cached=page.cached)
