"""Limits on how many calls of a tool run at once and how often, and on how much is shown."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Protocol

from axpo.clock import waiting
from axpo.config import LimitSettings
from axpo.errors import InfraError, ModelError
from axpo.pictures import PictureError, as_rgb, check_shape, is_turned, shrunk
from axpo.tools.base import Observation, View


class Tokens(Protocol):
    """A tokenizer, which turns text into token ids and back, to count text as the model does."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class Gate:
    """A limit on how many calls run at once and how often; it belongs to one event loop.

    A call gives its place back at its deadline at the latest, so every call gets one in the end.
    The wait has no limit, because it would make only those trajectories fail that use tools.
    """

    def __init__(self, limits: LimitSettings) -> None:
        self._places = asyncio.Semaphore(limits.concurrency)
        self._rate = limits.calls_per_second
        self._turn = asyncio.Lock()
        self._burst = max(1.0, self._rate or 0.0)
        self._tokens = self._burst
        self._filled = time.monotonic()

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Hold a place, once the rate allows a call; the wait for both counts as `waiting`."""
        with waiting():
            await self._places.acquire()
        try:
            await self.pace()
            yield
        finally:
            self._places.release()

    async def pace(self) -> None:
        """Wait for this attempt's turn under the limit of calls per second (a token bucket)."""
        if self._rate is None:
            return
        with waiting():
            async with self._turn:
                while (short := 1 - self._fill(self._rate)) > 0:
                    await asyncio.sleep(short / self._rate)
                self._tokens -= 1

    def _fill(self, rate: float) -> float:
        now = time.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._filled) * rate)
        self._filled = now
        return self._tokens


async def capped(
    observation: Observation, limits: LimitSettings, tokens: Tokens | None
) -> Observation:
    """`observation` within the limits; without `tokens` its text is measured in characters only.

    Raises `ModelError` for a picture whose shape no model accepts, because the call's arguments
    decide its shape (choice), and `InfraError` for a picture that cannot be shown.
    """
    text = readable(observation.text, limits, tokens)
    views: list[View] = []
    for number, view in enumerate(observation.views):
        name = f"picture {number} of the result"
        try:
            check_shape(*view.image.size)
        except PictureError as error:
            raise ModelError(f"{name} is {error}") from error
        if not _is_ready(view, limits.max_pixels):
            try:
                # This runs in a thread, because it can take a second.
                view = await asyncio.to_thread(shown, view, limits.max_pixels)
            except PictureError as error:
                raise InfraError(f"{name}: {error}") from error
        views.append(view)
    return replace(observation, text=text, views=tuple(views))


def readable(text: str, limits: LimitSettings, tokens: Tokens | None) -> str:
    """`text` within the limits, and without halves of surrogate pairs, which tokenizers refuse."""
    text = cut_characters(text.encode("utf-8", "replace").decode(), limits.max_characters)
    return cut_tokens(text, limits.max_tokens, tokens) if tokens is not None and text else text


def shown(view: View, max_pixels: int) -> View:
    """`view` in RGB with at most `max_pixels`; its original keeps its size.

    Raises `PictureError`.
    """
    if view.original is view.image:
        whole = View.whole(view.image)
    elif is_turned(view.original):
        raise PictureError("its original is turned by EXIF; use ImageOps.exif_transpose first")
    else:
        whole = View(as_rgb(view.image), as_rgb(view.original), view.box)
    return replace(whole, image=shrunk(whole.image, max_pixels))


def _is_ready(view: View, max_pixels: int) -> bool:
    image, original = view.image, view.original
    plain = all(p.mode == "RGB" and not p.has_transparency_data for p in (image, original))
    return plain and image.width * image.height <= max_pixels and not is_turned(original)


def cut_characters(text: str, limit: int) -> str:
    """The beginning and the end of `text`, and a note between them of how much was left out; all
    together take at most `limit` characters."""
    if len(text) <= limit:
        return text
    keep = max(0, limit - len(_left_out(len(text), "characters")))
    tail = keep // 2
    note = _left_out(len(text) - keep, "characters")
    return text[: keep - tail] + note + text[len(text) - tail :]


def cut_tokens(text: str, limit: int, tokens: Tokens) -> str:
    """`text` cut as by `cut_characters`, but to `limit` tokens; split characters are left out."""
    ids = tokens.encode(text)
    if len(ids) <= limit:
        return text
    keep = max(0, limit - len(tokens.encode(_left_out(len(ids), "tokens"))))
    tail = keep // 2
    head = tokens.decode(ids[: keep - tail]).rstrip("\ufffd")
    end = tokens.decode(ids[len(ids) - tail :]).lstrip("\ufffd")
    return head + _left_out(len(ids) - keep, "tokens") + end


def _left_out(count: int, unit: str) -> str:
    return f"\n[... {count} {unit} left out ...]\n"
