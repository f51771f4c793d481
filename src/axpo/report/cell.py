"""The live view in a notebook: what a terminal shows, drawn into the cell and over itself."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from typing import Any

from rich.console import Console, RenderableType

WIDTH = 100
EVERY = 0.5
"""Seconds between two drawings."""
FORMAT = '<pre style="white-space: pre; line-height: 1.2; margin: 0">{code}</pre>'


def page(what: RenderableType) -> str:
    """The HTML of what a terminal would show."""
    console = Console(
        record=True, file=io.StringIO(), width=WIDTH, force_jupyter=False, force_terminal=True
    )
    console.print(what)
    return console.export_html(inline_styles=True, code_format=FORMAT)


class NotebookCell:
    """Draws what `render` gives until it is stopped; it is used as `rich.live.Live` is.

    With `transient` the drawing goes away at the end.
    """

    def __init__(self, render: Callable[[], RenderableType]) -> None:
        self._render = render
        self._shown: Any = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._draw, daemon=True)
        self.transient = False

    def start(self, refresh: bool = False) -> None:
        """Begin to draw."""
        from IPython.display import HTML, display  # pyright: ignore[reportMissingImports]

        self._shown = display(HTML(page(self._render())), display_id=True)
        self._thread.start()

    def refresh(self) -> None:
        """Draw now."""
        from IPython.display import HTML  # pyright: ignore[reportMissingImports]

        self._shown.update(HTML(page(self._render())))

    def stop(self) -> None:
        """Draw what is there at the end."""
        from IPython.display import HTML  # pyright: ignore[reportMissingImports]

        self._done.set()
        self._thread.join()
        self._shown.update(HTML("" if self.transient else page(self._render())))

    def _draw(self) -> None:
        while not self._done.wait(EVERY):
            self.refresh()
