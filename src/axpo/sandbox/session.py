"""The parent's side of a session: it sends cells and checks the answers.

The model's code can tamper with the other side, so every length, field and picture of an answer is
checked before it is used, and anything wrong ends the session. Between cells the child is stopped,
so that nothing that a cell started goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from axpo.pictures import PictureError, as_rgb, check_shape
from axpo.sandbox import folders
from axpo.sandbox.environment import named_in
from axpo.sandbox.errors import SandboxFault
from axpo.sandbox.inside import wire
from axpo.sandbox.limits import SessionBounds
from axpo.sandbox.server import Child, End, ForkServer

WATCH = 0.1
"""Seconds between two checks of a session's folder while a cell runs."""
ESCAPED = 12
"""The most bytes of JSON that one character of text takes (two escaped surrogates)."""
OVERHEAD = 4096
"""The most bytes of JSON beside the text."""


class Stop(Enum):
    """Why a session ended in the middle of a cell, if the code caused it."""

    TIME = "time"
    FOLDER = "folder"
    ANSWER = "answer"
    DIED = "died"


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    width: int = Field(ge=1)
    height: int = Field(ge=1)


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    id: int
    text: str
    pictures: list[_Header]
    interrupted: bool


@dataclass(frozen=True, slots=True)
class Result:
    """What a cell showed; `stop` is set if the session has ended, and `detail` says more."""

    text: str = ""
    images: tuple[Image.Image, ...] = ()
    interrupted: bool = False
    stop: Stop | None = None
    detail: str = ""


class BadAnswer(Exception):
    """An answer that the notebook would not have sent."""


class Session:
    """A child process, its folder and its connection; `open` makes one."""

    def __init__(self, child: Child, folder: Path, bounds: SessionBounds) -> None:
        self.child, self.folder, self.bounds = child, folder, bounds
        self.sent = 0  # The number of pictures that the child has.
        self.cells = 0
        self.lost = False
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter | None = None

    @classmethod
    async def open(cls, server: ForkServer, folder: Path, code: str = "") -> Session:
        """Start a session in the new folder `folder`; raises `SandboxFault`.

        The packages that its first cell, `code`, names are already imported.
        """
        folder.mkdir(mode=0o700)
        session: Session | None = None
        try:
            async with asyncio.timeout(server.bounds.start):
                child = await server.spawn(folder, named_in(code))
                session = cls(child, folder, server.bounds)
                await session._greet()
        except BaseException as error:
            if session is not None:
                session.kill()
            folders.remove(folder)
            if isinstance(error, TimeoutError):
                raise SandboxFault("a Python session did not start in time") from None
            raise
        return session

    async def _greet(self) -> None:
        limit = 1 << 20  # The reader takes so many bytes before it makes the child wait.
        streams = asyncio.open_connection(sock=self.child.connection, limit=limit)
        self._reader, self._writer = await streams
        try:
            size, _ = wire.LENGTHS.unpack(await self._reader.readexactly(wire.LENGTHS.size))
            first = await self._reader.readexactly(min(size, OVERHEAD))
        except (asyncio.IncompleteReadError, ConnectionError):
            raise SandboxFault("a Python session ended while it started") from None
        if first != b'{"ready": true}':
            raise SandboxFault(f"a Python session could not be confined: {first.decode()}")
        self.child.signal(signal.SIGSTOP)

    async def run(self, code: str, pictures: Sequence[Image.Image], seconds: float) -> Result:
        """Run one cell with the pictures that are new to the child; interrupt it after `seconds`.

        Raises `SandboxFault`.
        """
        finished = False
        self.cells += 1
        exchange = asyncio.ensure_future(self._exchange(self._request(code, pictures)))
        watch = asyncio.ensure_future(self._watch())
        self.child.signal(signal.SIGCONT)
        try:
            result = await self._outcome(exchange, watch, seconds)
            finished = result.stop is None
            return result
        finally:
            for task in (exchange, watch):
                task.cancel()
            with contextlib.suppress(BaseException):
                await asyncio.gather(exchange, watch, return_exceptions=True)
            if finished:
                self.child.signal(signal.SIGSTOP)
            else:
                self.kill()

    def _request(self, code: str, pictures: Sequence[Image.Image]) -> bytes:
        """The request for a cell, with the pictures that the child does not have yet."""
        images = [as_rgb(picture) for picture in pictures]
        headers = [{"width": image.width, "height": image.height} for image in images]
        message = {"id": self.cells, "code": code, "first": self.sent, "pictures": headers}
        self.sent += len(images)
        return wire.pack(message, b"".join(image.tobytes() for image in images))

    async def _outcome(
        self, exchange: asyncio.Future[Result], watch: asyncio.Future[None], seconds: float
    ) -> Result:
        first = asyncio.FIRST_COMPLETED
        await asyncio.wait({exchange, watch}, timeout=seconds, return_when=first)
        if not exchange.done() and not watch.done():
            self.child.signal(signal.SIGINT)
            await asyncio.wait({exchange, watch}, timeout=self.bounds.grace, return_when=first)
        if watch.done():
            return Result(stop=Stop.FOLDER)
        if not exchange.done():
            return Result(stop=Stop.TIME)
        try:
            result = exchange.result()
        except BadAnswer as error:
            return Result(stop=Stop.ANSWER, detail=str(error))
        except (asyncio.IncompleteReadError, ConnectionError):
            return Result(stop=Stop.DIED, detail=await self._cause())
        return Result(stop=Stop.FOLDER) if self._look() else result

    async def _watch(self) -> None:
        """Return when the folder holds too much."""
        while True:
            await asyncio.sleep(WATCH)
            look = asyncio.ensure_future(asyncio.to_thread(self._look))
            try:
                full = await asyncio.shield(look)
            except asyncio.CancelledError:
                await look  # It lets the child go on, so the child must be stopped after it.
                raise
            if full:
                return

    def _look(self) -> bool:
        """Whether the folder holds too much. The child is stopped meanwhile, because otherwise code
        could move its files to folders that were already counted."""
        self.child.signal(signal.SIGSTOP)
        try:
            return folders.overfull(self.folder, self.bounds.folder, self.bounds.entries)
        finally:
            self.child.signal(signal.SIGCONT)

    async def _exchange(self, request: bytes) -> Result:
        assert self._writer is not None  # `open` has set it.
        self._writer.write(request)
        await self._writer.drain()
        lengths = await self._reader.readexactly(wire.LENGTHS.size)
        size, pixels = wire.LENGTHS.unpack(lengths)
        bounds = self.bounds
        if size > ESCAPED * (bounds.characters + OVERHEAD):
            raise BadAnswer(f"{size} bytes of text")
        if pixels > bounds.pictures * bounds.pixels * wire.CHANNELS:
            raise BadAnswer(f"{pixels} bytes of pictures")
        answer = _parse(await self._reader.readexactly(size))
        if answer.id != self.cells:
            raise BadAnswer(f"cell {answer.id} answered instead of {self.cells}")
        images = _images(answer.pictures, await self._reader.readexactly(pixels), bounds)
        return Result(answer.text[: bounds.characters + 200], images, answer.interrupted)

    async def _cause(self) -> str:
        """How the code itself ended the child; raises `SandboxFault` if something else did."""
        try:
            async with asyncio.timeout(self.bounds.grace):
                end: End = await asyncio.shield(self.child.end)
        except TimeoutError:
            self.child.signal(signal.SIGKILL)
            return "closed its connection"
        if end.status is None:
            raise SandboxFault("the Python sandbox's fork server has ended")
        code = os.waitstatus_to_exitcode(end.status)
        spent = code in (-signal.SIGXCPU, -signal.SIGKILL) and end.cpu >= self.bounds.cpu
        if spent:
            return f"used up its {self.bounds.cpu} s of processor time"
        if code == -signal.SIGKILL:  # A session cannot do this to itself.
            raise SandboxFault("a Python session was killed from outside")
        return f"ended with {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"

    def kill(self) -> None:
        """End the child; its variables and files are lost."""
        self.lost = True
        if self._writer is not None:
            self._writer.transport.abort()
        self.child.close()

    async def end(self) -> None:
        """Kill the child, wait until it is gone, and remove its folder."""
        self.kill()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.bounds.start):
                await asyncio.shield(self.child.end)
        await asyncio.to_thread(folders.remove, self.folder)


def _parse(text: bytes) -> _Answer:
    try:
        return _Answer.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        raise BadAnswer(f"{problem['loc']}: {problem['msg']}") from None


def _images(
    headers: list[_Header], pixels: bytes, bounds: SessionBounds
) -> tuple[Image.Image, ...]:
    """The pictures of an answer; nothing is decoded, and sizes must fit the bytes exactly."""
    if len(headers) > bounds.pictures:
        raise BadAnswer(f"{len(headers)} pictures")
    images: list[Image.Image] = []
    start = 0
    for header in headers:
        width, height = header.width, header.height
        if width * height > bounds.pixels or max(width, height) > bounds.side:
            raise BadAnswer(f"a picture of {width} x {height} pixels")
        try:
            check_shape(width, height)
        except PictureError as error:
            raise BadAnswer(f"a picture of {error}") from error
        end = start + width * height * wire.CHANNELS
        if end > len(pixels):
            raise BadAnswer("a picture without its pixels")
        images.append(Image.frombytes("RGB", (width, height), pixels[start:end]))
        start = end
    if start != len(pixels):
        raise BadAnswer("pixels without a picture")
    return tuple(images)
