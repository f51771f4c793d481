"""Runs a notebook's cells: state persists, the last expression is shown, errors become text.

Everything here shares a process with the model's code, which may tamper with it; therefore the
parent checks every answer.
"""

from __future__ import annotations

import ast
import contextlib
import linecache
import mmap
import os
import random
import signal
import sys
import tempfile
import traceback
import types
from pathlib import Path
from typing import Any

from . import wire
from .output import Pictures, Text, is_figure, is_picture

RESERVE = 16 << 20
"""Bytes of address space that are freed after a cell, so that there is room for an answer if the
cell ran out of memory."""
FRAMES = 6
"""The most lines of the model's own code that a traceback shows; the innermost is last."""


class Notebook:
    """One session: its variables and its connection to the parent."""

    def __init__(
        self, connection: int, folder: Path, pictures: dict[str, Any], characters: int
    ) -> None:
        self.connection = connection
        self.limits = pictures
        self.characters = characters
        self.cell = 0
        self.running = self.interrupted = False
        self.pictures = Pictures(**pictures)
        module = types.ModuleType("__main__")
        sys.modules["__main__"] = module
        self.variables = module.__dict__
        self.variables["show"] = self.show
        os.environ.update(HOME=str(folder), TMPDIR=str(folder))
        tempfile.tempdir = str(folder)
        signal.signal(signal.SIGINT, self._interrupt)
        sys.path[:] = [path for path in sys.path if path]
        self._prepare_packages()

    def _prepare_packages(self) -> None:
        """Give every session the same random numbers, and prevent windows from being opened."""
        random.seed(0)
        if numpy := sys.modules.get("numpy"):
            numpy.random.seed(0)
        if image := sys.modules.get("PIL.Image"):
            image.Image.show = lambda picture, *_, **__: self.show(picture)
        if pyplot := sys.modules.get("matplotlib.pyplot"):
            # Open figures are shown when the cell ends.
            vars(pyplot)["show"] = lambda *_, **__: None

    def _interrupt(self, *_: object) -> None:
        if self.running:
            self.interrupted = True
            raise KeyboardInterrupt

    def show(self, image: Any) -> None:
        """Return a picture to the model: a PIL image, a numpy array or a matplotlib figure."""
        if is_figure(image):
            self.pictures.add_figure(image)
        elif is_picture(image):
            self.pictures.add(image)
        else:
            from PIL import Image

            self.pictures.add(Image.fromarray(image))

    def serve(self) -> None:
        """Answer cells until the parent closes the connection."""
        while True:
            request, pixels = wire.read(self.connection)
            self._receive(request["pictures"], request["first"], pixels)
            del pixels
            text, pictures = self._run(request["code"])
            headers, blob = pictures.packed()
            answer = {
                "id": request["id"],
                "text": text,
                "pictures": headers,
                "interrupted": self.interrupted,
            }
            wire.write(self.connection, wire.pack(answer, blob))

    def _receive(self, headers: list[dict[str, Any]], first: int, pixels: bytes) -> None:
        if not headers:
            return
        from PIL import Image

        start = 0
        for index, header in enumerate(headers, first):
            size = header["width"], header["height"]
            end = start + size[0] * size[1] * wire.CHANNELS
            image = Image.frombytes("RGB", size, pixels[start:end])
            self.variables[f"image_{index}"] = image
            start = end

    def _run(self, code: str) -> tuple[str, Pictures]:
        """Run one cell; anything that it raises becomes text."""
        self.cell += 1
        self.interrupted = False
        text, self.pictures = Text(self.characters), Pictures(**self.limits)
        reserve: mmap.mmap | None = None
        try:
            with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
                reserve = mmap.mmap(-1, RESERVE)
                try:
                    self.running = True
                    self._execute(code, f"<cell {self.cell}>", text)
                finally:
                    self.running = False
        except BaseException as error:
            if reserve is not None:
                reserve.close()
            if not self.interrupted:
                with contextlib.suppress(BaseException):
                    text.write(trim(error))
        if reserve is not None:
            reserve.close()
        shown = text.value()
        if self.pictures.left_out:
            note = f"{self.pictures.left_out} more pictures left out"
            shown = f"{shown}\n{note}" if shown else note
        return shown, self.pictures

    def _execute(self, code: str, name: str, text: Text) -> None:
        linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
        tree = ast.parse(code, name)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, name, "exec"), self.variables)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), name, "eval"), self.variables)
            if is_picture(value) or is_figure(value):
                self.show(value)
                if is_figure(value) and (pyplot := sys.modules.get("matplotlib.pyplot")):
                    pyplot.close(value)  # Otherwise it would be shown again below.
            elif value is not None:
                text.write(repr(value))
        self.pictures.add_open_figures()


def trim(error: BaseException) -> str:
    """The traceback of `error`, with only the model's own lines."""
    report = traceback.TracebackException.from_exception(error, compact=True)
    link: traceback.TracebackException | None = report
    while link is not None:
        own = [frame for frame in link.stack if frame.filename.startswith("<cell ")]
        link.stack = traceback.StackSummary.from_list(own[-FRAMES:])
        link = link.__cause__ or link.__context__
    return "".join(report.format())
