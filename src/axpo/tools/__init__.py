"""Tools that an agent can call.

What a tool is (`base`), how a function becomes one (`function`) and a server's do (`mcp`), how a
call is run (`runner`) with its limits and figures (`toolbox`), and built-ins. `TOOLS` maps the
name that recipes and models use to what makes the tool; a recipe names others as "module:name".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cached_property

from axpo.config import ToolsSettings
from axpo.tools.base import Tool
from axpo.tools.function import tool
from axpo.tools.loading import load_tool
from axpo.tools.python import Bounds, PythonTool
from axpo.tools.python.limits import TOTAL
from axpo.tools.search.image import ImageSearchTool
from axpo.tools.search.settings import image_tool, web_tools
from axpo.tools.search.web import WebExtractorTool, WebSearchTool
from axpo.tools.zoom import ZoomTool

__all__ = ["TOOLS", "make_tools", "tool"]


class Makings:
    """What tools are made of: the recipe's settings, and what several tools share."""

    def __init__(self, settings: ToolsSettings, max_seconds: float) -> None:
        self.settings = settings
        self.code = Bounds(total=min(TOTAL, max_seconds / 2))

    @cached_property
    def web(self) -> dict[str, Tool]:
        """The tools that share a search backend."""
        return web_tools(self.settings.search)


TOOLS: dict[str, Callable[[Makings], Tool]] = {
    ZoomTool.name: lambda _: ZoomTool(),
    PythonTool.name: lambda of: PythonTool(
        of.settings.python.level, of.settings.python.packages, of.code
    ),
    WebSearchTool.name: lambda of: of.web[WebSearchTool.name],
    WebExtractorTool.name: lambda of: of.web[WebExtractorTool.name],
    ImageSearchTool.name: lambda of: image_tool(of.settings.search),
}


def make_tools(
    names: Iterable[str], settings: ToolsSettings | None = None, max_seconds: float = math.inf
) -> dict[str, Tool]:
    """Tools by their own names, in order; raises `ValueError` that says what is valid.

    `max_seconds` is a trajectory's time.
    """
    makings = Makings(settings or ToolsSettings(), max_seconds)
    tools: dict[str, Tool] = {}
    for name in names:
        if ":" in name:
            found = load_tool(name)
        elif name in TOOLS:
            found = TOOLS[name](makings)
        else:
            raise ValueError(
                f"unknown tool {name!r}; there are {', '.join(TOOLS)}, or module:name of your own"
            )
        if found.name in tools:
            raise ValueError(f"{name!r}: there is a tool {found.name!r} already")
        tools[found.name] = found
    return tools
