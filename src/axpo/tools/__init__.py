"""Tools that an agent can call.

What a tool is (`base`), how a function becomes one (`function`) and a server's do (`mcp`), how a
call is run (`runner`) with its limits and figures (`toolbox`). Each built-in tool is a file of its
own, made by `built_in`; a recipe names it by its name, and others as "module:name".
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache, partial

from axpo.config import ToolsSettings
from axpo.tools.base import Tool
from axpo.tools.built_in import TOOLS, built_in, web_backend
from axpo.tools.function import tool
from axpo.tools.loading import load_tool

__all__ = ["TOOLS", "Tool", "make_tools", "tool"]


def make_tools(
    names: Iterable[str], settings: ToolsSettings | None = None, max_seconds: float = math.inf
) -> dict[str, Tool]:
    """Tools by their own names, in order; raises `ValueError` that says what is valid.

    `max_seconds` is a trajectory's time.
    """
    settings = settings or ToolsSettings()
    web = cache(partial(web_backend, settings.search))
    tools: dict[str, Tool] = {}
    for name in names:
        if ":" in name:
            made = load_tool(name, settings.own)
        else:
            made = built_in(name, settings, max_seconds, web)
        if made.name in tools:
            raise ValueError(f"{name!r}: there is a tool {made.name!r} already")
        tools[made.name] = made
    return tools
