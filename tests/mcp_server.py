"""A real MCP server for the tests: `mcp_server.py` on stdio, `mcp_server.py PORT` on HTTP."""

from __future__ import annotations

import os
import sys

import anyio
from mcp.server.mcpserver import Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("tests", log_level="ERROR")
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108020000009077"
    "53de0000000c49444154789c63f8cfc0000003010100c9fe92ef0000000049454e44ae426082"
)
"""A PNG of one red pixel."""


@server.tool()
def add(a: int, b: int) -> str:
    """Add two numbers."""
    return f"{a + b} by {os.getpid()}"


@server.tool()
def look() -> list[str | Image]:
    """Show a picture."""
    return ["one pixel", Image(data=PIXEL, format="png")]


@server.tool()
def refuse() -> str:
    """Always fails."""
    raise ToolError("try something else")


@server.tool()
async def hang() -> str:
    """Never answers."""
    await anyio.sleep(600)
    return ""


if __name__ == "__main__":
    if sys.argv[1:]:
        server.run("streamable-http", port=int(sys.argv[1]))
    else:
        server.run("stdio")
