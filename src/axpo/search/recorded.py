"""Backends whose answers are recorded and replayed: `cache` in front of a search or a gallery.

In replay nothing but the file is needed: the backend behind it is never started.
"""

from __future__ import annotations

import asyncio
import json
import unicodedata
from dataclasses import asdict
from typing import Any

from PIL import Image
from pydantic import TypeAdapter

from axpo.pictures import picture_digest
from axpo.search.base import Backend, Hit, Page, Results
from axpo.search.cache import AnswerCache, Key, NotRecordedError
from axpo.search.gallery import Match, Pictures

_HITS = TypeAdapter(list[Hit])
_PAGE = TypeAdapter(tuple[str, str, str] | None)
_MATCHES = TypeAdapter(list[Match])


class RecordedSearch(Backend):
    """A `Backend` that asks `backend` only for what `cache` does not hold.

    Queries that differ in case and spaces alone have one answer (choice).
    """

    def __init__(self, backend: Backend, cache: AnswerCache) -> None:
        self.identity = backend.identity
        self._backend = backend
        self.cache = cache

    async def start(self) -> None:
        if self.cache.mode == "record":
            await self._backend.start()

    def figures(self, kind: str) -> dict[str, float]:
        """What the cache counts of "search" or "page" calls."""
        return self.cache.figures(kind)

    async def search(self, query: str, results: int) -> Results[Hit]:
        async def ask() -> list[dict[str, Any]]:
            return [asdict(hit) for hit in (await self._backend.search(query, results)).items]

        question = " ".join(unicodedata.normalize("NFC", query).casefold().split())
        key = Key(self.identity, "search", question, json.dumps({"results": results}))
        try:
            found = await self.cache.answer(key, ask, self._backend.paid, _HITS)
        except NotRecordedError:
            return Results([])
        return Results(found.value, found.cached)

    async def page(self, url: str) -> Page | None:
        async def ask() -> list[str] | None:
            page = await self._backend.page(url)
            return None if page is None else [page.title, page.url, page.text]

        key = Key(self.identity, "page", url, "{}")
        try:
            found = await self.cache.answer(key, ask, self._backend.paid, _PAGE)
        except NotRecordedError:
            return None
        return None if found.value is None else Page(*found.value, cached=found.cached)

    async def close(self) -> None:
        await self.cache.close()
        await self._backend.close()


class RecordedPictures(Pictures):
    """`Pictures` that asks `pictures` only for what `cache` does not hold, by a picture's hash."""

    def __init__(self, pictures: Pictures, cache: AnswerCache) -> None:
        self.identity = pictures.identity
        self._pictures = pictures
        self.cache = cache

    async def start(self) -> None:
        if self.cache.mode == "record":
            await self._pictures.start()

    def figures(self, kind: str) -> dict[str, float]:
        """What the cache counts of "picture" calls."""
        return self.cache.figures(kind)

    async def find(self, picture: Image.Image, results: int) -> Results[Match]:
        async def ask() -> list[dict[str, Any]]:
            return [asdict(match) for match in (await self._pictures.find(picture, results)).items]

        digest = await asyncio.to_thread(picture_digest, picture)
        key = Key(self.identity, "picture", digest, json.dumps({"results": results}))
        try:
            found = await self.cache.answer(key, ask, self._pictures.paid, _MATCHES)
        except NotRecordedError:
            return Results([])
        return Results(found.value, found.cached)

    async def close(self) -> None:
        await self.cache.close()
        await self._pictures.close()
