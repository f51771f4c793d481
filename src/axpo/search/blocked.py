"""Sources that leave out blocked pages: those of a benchmark, which hold its answers.

What is left out is recorded as it came: a list applies when answers are read.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Generic, TypeVar
from urllib.parse import unquote

from PIL import Image

from axpo.search.base import AnswerSource, Hit, Item, PageText, Results, TextSource
from axpo.search.gallery import Match, PictureSource

Asked = TypeVar("Asked", bound=AnswerSource)

SCHEMES = ("http", "https")
UNESCAPED = 4
"""How often escapes are undone: a redirect's address is escaped, maybe twice."""
_DROPPED = re.compile(r"(?<=//)[^/?#]*@|:\d*(?=[/?#]|$)|[\t\r\n]")
"""Who asks, the port, and what clients drop from a URL."""
_BETWEEN = re.compile(r"[/?#&=;,|:@\s]+")


def blocks(pages: Sequence[str]) -> Callable[[str], bool]:
    """Whether a URL is of one of `pages`, hosts with or without the beginning of a path, such as
    "github.com/mathllm/MATH-V".

    A page's subdomains and everything below its path are of it, however scheme, "www.", case, port,
    escapes and dots are written; so is a URL that holds its address anywhere, as those of proxies,
    archives and redirects do. What is no URL at all is of none. Raises `ValueError` for a page
    without a host.
    """
    wanted = [_page(page) for page in pages]

    def found(url: str) -> bool:
        parts = _parts(url)
        return any(
            _within(parts[start : start + len(page)], page)
            for page in wanted
            for start in range(len(parts))
        )

    return found


def _page(page: str) -> list[str]:
    parts = _parts(re.split(r"[?#]", page)[0])
    parts = parts[1:] if parts[:1] and parts[0] in SCHEMES else parts
    if not parts or "." not in parts[0]:
        raise ValueError(
            f"search.blocked: got {page!r}, expected a host with or without the beginning of a "
            'path, such as "github.com/mathllm/MATH-V"'
        )
    return parts


def _parts(url: str) -> list[str]:
    """The names in a URL, in order: scheme, host, those of the path and of the query."""
    text = url.strip().replace("\\", "/")
    for _ in range(UNESCAPED):
        text = unquote(text).replace("\\", "/")
    text = unicodedata.normalize("NFKC", text).replace("。", ".").lower()
    parts: list[str] = []
    for part in _BETWEEN.split(_DROPPED.sub("", text)):
        if part == "..":
            del parts[max(len(parts) - 1, 2 if parts[:1] and parts[0] in SCHEMES else 1) :]
        elif name := part.rstrip(".").removeprefix("www.").removesuffix(".git"):
            parts.append(_ascii(name))
    return parts


def _ascii(name: str) -> str:
    """A host of other letters as servers know it."""
    if not name.isascii():
        with suppress(UnicodeError):
            return name.encode("idna").decode()
    return name


def _within(parts: Sequence[str], page: Sequence[str]) -> bool:
    same = parts[1:] == page[1:]
    return same and (parts[0] == page[0] or parts[0].endswith(f".{page[0]}"))


class _Blocked(AnswerSource, Generic[Asked]):
    """Asks `source` and leaves out what is of `pages`."""

    def __init__(self, source: Asked, pages: Sequence[str]) -> None:
        self.identity, self.paid = source.identity, source.paid
        self._source, self._blocks = source, blocks(pages)
        self._left_out: dict[str, int] = {}

    async def start(self) -> None:
        await self._source.start()

    def figures(self, kind: str) -> Mapping[str, float]:
        """Those of the source, and how many results or pages were left out."""
        return {**self._source.figures(kind), "blocked": float(self._left_out.get(kind, 0))}

    async def close(self) -> None:
        await self._source.close()

    def _allowed(self, kind: str, url: str) -> bool:
        blocked = self._blocks(url)
        self._left_out[kind] = self._left_out.get(kind, 0) + blocked
        return not blocked

    def _without(
        self, kind: str, found: Results[Item], url: Callable[[Item], str]
    ) -> Results[Item]:
        return Results([it for it in found.items if self._allowed(kind, url(it))], found.cached)


class BlockedSearch(_Blocked[TextSource], TextSource):
    """A `TextSource` without blocked results; a blocked page leads to nothing."""

    async def search(self, query: str, results: int) -> Results[Hit]:
        found = await self._source.search(query, results)
        return self._without("search", found, lambda hit: hit.url)

    async def page(self, url: str) -> PageText | None:
        if not self._allowed("page", url):
            return None
        page = await self._source.page(url)
        # The source may have followed a redirect.
        return page if page is None or self._allowed("page", page.url) else None


class BlockedPictures(_Blocked[PictureSource], PictureSource):
    """A `PictureSource` without matches on blocked pages."""

    async def find(self, picture: Image.Image, results: int) -> Results[Match]:
        found = await self._source.find(picture, results)
        return self._without("picture", found, lambda match: match.url)
