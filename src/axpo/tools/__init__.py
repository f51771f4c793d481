"""Tools that an agent can call.

- `base`: what a tool is; `function`: a Python function as a tool; `mcp`: an MCP server's tools
- `runner`: how a call is run; `toolbox`: its limits and figures
- `built_in`: makes the built-in tools, each of which has a file of its own; `loading`: a user's own

A recipe names a built-in tool by its name, and any other as "module:name".
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
    """The tools that a recipe calls `names`, by their own names and in order.

    `max_seconds` is a trajectory's time. Raises `ValueError`, which says what is valid.
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
