"""Sources that leave out blocked pages: those of a benchmark, which hold its answers.

What is left out is recorded as it came: a list applies when answers are read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Generic, TypeVar
from urllib.parse import unquote, urlsplit

from PIL import Image

from axpo.search.base import AnswerSource, Hit, Item, PageText, Results, TextSource
from axpo.search.gallery import Match, PictureSource

Asked = TypeVar("Asked", bound=AnswerSource)


def blocks(pages: Sequence[str]) -> Callable[[str], bool]:
    """Whether a URL is of one of `pages`, hosts with or without the beginning of a path, such as
    "github.com/mathllm/MATH-V".

    A page's subdomains and everything below its path are of it, however scheme, case, port and
    escapes are written; so is a URL that holds its address, as those of proxies, archives and
    redirects do.
    """
    wanted = [_plain(page) for page in pages]

    def found(url: str) -> bool:
        text = _plain(url)
        places = [text.lstrip("/"), *text.split("://")[1:]]
        return any(_within(place, page) for place in places for page in wanted)

    return found


def _plain(url: str) -> str:
    text = url.strip()
    for _ in range(3):  # a redirect's address is escaped, maybe twice
        text = unquote(text)
    host = urlsplit(text if "//" in text else f"//{text}").netloc
    if host and not host.isascii():
        with suppress(UnicodeError):
            text = text.replace(host, host.encode("idna").decode(), 1)
    return text.lower()


def _within(place: str, page: str) -> bool:
    host, _, path = place.replace("?", "/").replace("#", "/").partition("/")
    host = host.rpartition("@")[2].partition(":")[0].rstrip(".")
    wanted, _, below = page.partition("/")
    if host != wanted and not host.endswith(f".{wanted}"):
        return False
    kept, asked = ([part for part in text.split("/") if part] for text in (below, path))
    return asked[: len(kept)] == kept


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
