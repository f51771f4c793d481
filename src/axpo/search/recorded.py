"""Sources whose answers are recorded and replayed: `cache` in front of a search or a gallery.

A replay needs nothing but the file: the source behind it is never started.
"""

from __future__ import annotations

import asyncio
import json
import unicodedata
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Generic, TypeVar

from PIL import Image
from pydantic import TypeAdapter

from axpo.errors import NotRecordedError
from axpo.pictures import picture_digest
from axpo.recorded.cache import AnswerCache, Key
from axpo.search.base import AnswerSource, Hit, Item, PageText, Results, TextSource
from axpo.search.gallery import Match, PictureSource

Asked = TypeVar("Asked", bound=AnswerSource)

_HITS = TypeAdapter(list[Hit])
_PAGE = TypeAdapter(tuple[str, str, str] | None)
_MATCHES = TypeAdapter(list[Match])


class _Recorded(AnswerSource, Generic[Asked]):
    """Asks `source` only for what `cache` does not hold."""

    def __init__(self, source: Asked, cache: AnswerCache) -> None:
        self.identity = source.identity
        self.cache = cache
        self._source = source

    async def start(self) -> None:
        if self.cache.mode == "record":
            await self._source.start()

    def figures(self, kind: str) -> dict[str, float]:
        """What the cache counts of one kind of calls."""
        return self.cache.figures(kind)

    async def close(self) -> None:
        await self.cache.close()
        await self._source.close()

    async def _listed(
        self,
        kind: str,
        question: str,
        results: int,
        ask: Callable[[], Awaitable[Results[Item]]],
        form: TypeAdapter[list[Item]],
    ) -> Results[Item]:
        """At most `results` answers, recorded or new; none where a replay has no record."""

        async def asked() -> list[Any]:
            return form.dump_python((await ask()).items)

        key = Key(self.identity, kind, question, json.dumps({"results": results}))
        try:
            found = await self.cache.answer(key, asked, self._source.paid, form)
        except NotRecordedError:
            return Results([])
        return Results(found.value, found.cached)


class RecordedSearch(_Recorded[TextSource], TextSource):
    """A `TextSource` that asks another only for what `cache` does not hold.

    Queries that differ only in case and spaces have one answer (choice).
    """

    async def search(self, query: str, results: int) -> Results[Hit]:
        question = " ".join(unicodedata.normalize("NFC", query).casefold().split())
        ask = partial(self._source.search, query, results)
        return await self._listed("search", question, results, ask, _HITS)

    async def page(self, url: str) -> PageText | None:
        async def ask() -> list[str] | None:
            page = await self._source.page(url)
            return None if page is None else [page.title, page.url, page.text]

        key = Key(self.identity, "page", url, "{}")
        try:
            found = await self.cache.answer(key, ask, self._source.paid, _PAGE)
        except NotRecordedError:
            return None
        return None if found.value is None else PageText(*found.value, cached=found.cached)


class RecordedPictures(_Recorded[PictureSource], PictureSource):
    """A `PictureSource` that asks another only for pictures whose hash `cache` does not hold."""

    async def find(self, picture: Image.Image, results: int) -> Results[Match]:
        digest = await asyncio.to_thread(picture_digest, picture)
        ask = partial(self._source.find, picture, results)
        return await self._listed("picture", digest, results, ask, _MATCHES)
