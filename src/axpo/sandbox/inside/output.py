"""A cell's output: text, cut in the middle if it is too long, and pictures of a limited size."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from typing import Any


class Text(io.TextIOBase):
    """A text stream that keeps the first and the last half of `limit` characters."""

    def __init__(self, limit: int) -> None:
        self.half = limit // 2
        self.head = ""
        self.tail = ""
        self.written = 0

    def writable(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        """Accept everything; characters between the two halves are only counted."""
        self.written += len(text)
        room = self.half - len(self.head)
        self.head += text[:room]
        rest = text[max(room, 0) :][-self.half :]
        self.tail += rest
        if len(self.tail) > 4 * self.half:  # It is cut seldom, so that short writes are cheap.
            self.tail = self.tail[-self.half :]
        return len(text)

    def value(self) -> str:
        """The text, with a note of what was left out; half of a surrogate pair becomes "?"."""
        tail = self.tail[-self.half :]
        left_out = self.written - len(self.head) - len(tail)
        note = f"\n... {left_out} characters left out ...\n" if left_out else ""
        return (self.head + note + tail).encode("utf-8", "replace").decode()


class Pictures:
    """The pictures that a cell shows, at most `count`.

    `to_show` is `axpo.pictures.to_show`, which returns an RGB picture within `pixels` and `side`.
    """

    def __init__(
        self, to_show: Callable[[Any, int, int], Any], count: int, pixels: int, side: int
    ) -> None:
        self.to_show, self.count, self.pixels, self.side = to_show, count, pixels, side
        self.shown: list[Any] = []
        self.left_out = 0

    def add(self, image: Any) -> None:
        """Show a PIL image, made smaller if it is too large; raises `ValueError`."""
        if len(self.shown) == self.count:
            self.left_out += 1
            return
        try:
            self.shown.append(self.to_show(image, self.pixels, self.side))
        except ValueError as error:
            raise ValueError(f"this image cannot be shown: {error}") from None

    def add_figure(self, figure: Any) -> None:
        """Show a matplotlib figure."""
        from PIL import Image

        figure.canvas.draw()
        pixels = figure.canvas.buffer_rgba()
        self.add(Image.frombytes("RGBA", pixels.shape[1::-1], pixels.tobytes()))

    def add_open_figures(self) -> None:
        """Show and close every figure that pyplot holds."""
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is None:
            return
        try:
            for number in pyplot.get_fignums():
                self.add_figure(pyplot.figure(number))
        finally:
            with contextlib.suppress(Exception):
                pyplot.close("all")

    def packed(self) -> tuple[list[dict[str, Any]], bytes]:
        """The pictures' headers and pixels, as a frame holds them."""
        headers = [{"width": image.width, "height": image.height} for image in self.shown]
        return headers, b"".join(image.tobytes() for image in self.shown)


def is_picture(value: Any) -> bool:
    """Whether a value is a PIL image; this does not import PIL."""
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(value, module.Image)


def is_figure(value: Any) -> bool:
    """Whether a value is a matplotlib figure."""
    module = sys.modules.get("matplotlib.figure")
    return module is not None and isinstance(value, module.Figure)
