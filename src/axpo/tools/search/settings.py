"""From settings to search tools."""

from __future__ import annotations

from pathlib import Path

from axpo.config import SearchSettings, UserError
from axpo.tools.base import Tool
from axpo.tools.search.base import Backend
from axpo.tools.search.cache import AnswerCache
from axpo.tools.search.corpus import Corpus
from axpo.tools.search.gallery import Gallery, Pictures
from axpo.tools.search.image import ImageSearchTool
from axpo.tools.search.recorded import RecordedPictures, RecordedSearch
from axpo.tools.search.tavily import Tavily
from axpo.tools.search.web import WebExtractorTool, WebSearchTool


def web_tools(settings: SearchSettings) -> dict[str, Tool]:
    """`web_search` and `web_extractor` over one backend; raises `UserError` for what is missing."""
    backend: Backend
    if settings.backend == "tavily":
        backend = Tavily()
    elif settings.corpus is None:
        raise UserError("search.corpus: web_search needs an index; make one with `axpo index`")
    else:
        backend = Corpus(Path(settings.corpus), settings.snippet)
    if settings.cache is not None:
        backend = RecordedSearch(backend, _cache(settings))
    search = WebSearchTool(backend, settings.results, settings.snippet)
    extractor = WebExtractorTool(backend, settings.page)
    return {search.name: search, extractor.name: extractor}


def image_tool(settings: SearchSettings) -> ImageSearchTool:
    """`image_search` over the gallery; raises `UserError` where there is none."""
    if settings.gallery is None:
        raise UserError("search.gallery: image_search needs one; `axpo index FOLDER --pictures`")
    pictures: Pictures = Gallery(Path(settings.gallery))
    if settings.cache is not None:
        pictures = RecordedPictures(pictures, _cache(settings))
    return ImageSearchTool(pictures, settings.results, settings.snippet)


def _cache(settings: SearchSettings) -> AnswerCache:
    assert settings.cache is not None
    return AnswerCache(Path(settings.cache), settings.mode, settings.budget)
