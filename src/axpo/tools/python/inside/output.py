"""What a cell shows: text kept from both ends of a flood, and pictures made small enough."""

from __future__ import annotations

import contextlib
import io
import sys
from typing import Any

from . import wire


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
        """Everything is accepted; what is between the two halves is only counted."""
        self.written += len(text)
        room = self.half - len(self.head)
        self.head += text[:room]
        rest = text[max(room, 0) :][-self.half :]
        self.tail += rest
        if len(self.tail) > 4 * self.half:  # seldom, so that many short writes stay cheap
            self.tail = self.tail[-self.half :]
        return len(text)

    def value(self) -> str:
        """The text, with a note of what was left out."""
        tail = self.tail[-self.half :]
        left_out = self.written - len(self.head) - len(tail)
        note = f"\n... {left_out} characters left out ...\n" if left_out else ""
        return self.head + note + tail


class Pictures:
    """The pictures that a cell shows, at most `count`, each of at most `pixels`."""

    def __init__(self, count: int, pixels: int, sides: int) -> None:
        self.count, self.pixels, self.sides = count, pixels, sides
        self.shown: list[Any] = []
        self.left_out = 0

    def add(self, image: Any) -> None:
        """Show a PIL image, made smaller where it is too large."""
        if len(self.shown) == self.count:
            self.left_out += 1
            return
        image = image.convert(image.mode if image.mode in wire.CHANNELS else "RGB")
        width, height = image.size
        if not width or not height:
            raise ValueError(f"an image of {width} x {height} pixels cannot be shown")
        factor = min(1.0, (self.pixels / (width * height)) ** 0.5, self.sides / max(width, height))
        if factor < 1:
            size = (max(1, int(width * factor)), max(1, int(height * factor)))
            image = image.resize(size)
        self.shown.append(image)

    def add_figure(self, figure: Any) -> None:
        """Show a matplotlib figure."""
        from PIL import Image

        figure.canvas.draw()
        pixels = figure.canvas.buffer_rgba()
        self.add(Image.frombytes("RGBA", pixels.shape[1::-1], pixels.tobytes()).convert("RGB"))

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
        """Headers and pixels, as a frame carries them."""
        headers = [
            {"mode": image.mode, "width": image.width, "height": image.height}
            for image in self.shown
        ]
        return headers, b"".join(image.tobytes() for image in self.shown)


def is_picture(value: Any) -> bool:
    """Whether a value is a PIL image; PIL need not have been imported."""
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(value, module.Image)


def is_figure(value: Any) -> bool:
    """Whether a value is a matplotlib figure."""
    module = sys.modules.get("matplotlib.figure")
    return module is not None and isinstance(value, module.Figure)
