"""Tools that an agent can call: what a tool is (`base`), how a call is run (`runner`), built-ins.

`TOOLS` maps the name that recipes and models use to what makes the tool.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from axpo.tools.base import Tool
from axpo.tools.zoom import ZoomTool

TOOLS: dict[str, Callable[[], Tool]] = {ZoomTool.name: ZoomTool}


def make_tools(names: Iterable[str]) -> dict[str, Tool]:
    """Built-in tools by name, in order; raises `ValueError` that lists the valid names."""
    tools: dict[str, Tool] = {}
    for name in names:
        if name not in TOOLS:
            raise ValueError(f"unknown tool {name!r}; there are {', '.join(TOOLS)}")
        tools[name] = TOOLS[name]()
    return tools
