"""This module makes the built-in tools from the settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from axpo.config import SearchSettings, ToolsSettings
from axpo.errors import UserError
from axpo.recorded.cache import AnswerCache
from axpo.search.base import TextSource
from axpo.search.blocked import BlockedPictures, BlockedSearch
from axpo.search.corpus import Corpus
from axpo.search.gallery import Gallery, PictureSource
from axpo.search.recorded import RecordedPictures, RecordedSearch
from axpo.search.tavily import Tavily
from axpo.tools.base import Tool
from axpo.tools.image_search import ImageSearchTool
from axpo.tools.python import TOTAL, PythonTool
from axpo.tools.web_extractor import WebExtractorTool
from axpo.tools.web_search import WebSearchTool
from axpo.tools.zoom import ZoomTool

TOOLS = tuple(
    made.name for made in (ZoomTool, PythonTool, WebSearchTool, WebExtractorTool, ImageSearchTool)
)
"""The names of the built-in tools."""
SEARCHES = (WebSearchTool.name, WebExtractorTool.name, ImageSearchTool.name)
"""Those among them that show pages, which `tools.search.blocked` leaves out."""


def built_in(
    name: str, settings: ToolsSettings, max_seconds: float, web: Callable[[], TextSource]
) -> Tool:
    """The built-in tool `name`; `web` returns the backend that the web tools share.

    Raises `ValueError` for another name and `UserError` if a setting is missing.
    """
    search = settings.search
    match name:
        case ZoomTool.name:
            return ZoomTool()
        case PythonTool.name:
            python = settings.python
            return PythonTool(python.level, python.packages, total=min(TOTAL, max_seconds / 2))
        case WebSearchTool.name:
            return WebSearchTool(web(), search.results, search.snippet)
        case WebExtractorTool.name:
            return WebExtractorTool(web(), search.page)
        case ImageSearchTool.name:
            return ImageSearchTool(_pictures(search), search.results, search.snippet)
    raise ValueError(
        f"unknown tool {name!r}; there are {', '.join(TOOLS)}, or module:name of your own"
    )


def web_backend(settings: SearchSettings) -> TextSource:
    """The source of `web_search` and `web_extractor`; raises `UserError` if one is unset."""
    backend: TextSource
    if settings.backend == "tavily":
        backend = Tavily()
    elif settings.corpus is None:
        raise UserError("search.corpus: web_search needs an index; make one with `axpo index`")
    else:
        backend = Corpus(Path(settings.corpus), settings.snippet)
    if settings.cache is not None:
        backend = RecordedSearch(backend, _cache(settings))
    return BlockedSearch(backend, settings.blocked) if settings.blocked else backend


def _pictures(settings: SearchSettings) -> PictureSource:
    if settings.gallery is None:
        raise UserError("search.gallery: image_search needs one; `axpo index FOLDER --pictures`")
    pictures: PictureSource = Gallery(Path(settings.gallery))
    if settings.cache is not None:
        pictures = RecordedPictures(pictures, _cache(settings))
    return BlockedPictures(pictures, settings.blocked) if settings.blocked else pictures


def _cache(settings: SearchSettings) -> AnswerCache:
    assert settings.cache is not None
    return AnswerCache(Path(settings.cache), settings.mode, settings.budget)
