"""A real MCP server for the tests: `mcp_server.py` on stdio, `mcp_server.py PORT` on HTTP."""

from __future__ import annotations

import base64
import io
import os
import sys

import anyio
from mcp.server.mcpserver import Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import (
    AudioContent,
    BlobResourceContents,
    CallToolResult,
    EmbeddedResource,
    ResourceLink,
    TextResourceContents,
)
from PIL import Image as Picture

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
def parts() -> CallToolResult:
    """A text file, a link, a picture in a resource, and a sound."""
    blob = base64.b64encode(PIXEL).decode()
    file = TextResourceContents(uri="file:///a.txt", text="of a file")
    picture = BlobResourceContents(uri="file:///a.png", blob=blob, mime_type="image/png")
    return CallToolResult(
        content=[
            EmbeddedResource(resource=file),
            ResourceLink(uri="file:///b.txt", name="b"),
            EmbeddedResource(resource=picture),
            AudioContent(data="", mime_type="audio/wav"),
        ]
    )


@server.tool()
def structured() -> CallToolResult:
    """A structured result alone."""
    return CallToolResult(content=[], structured_content={"temperature": 21.5, "where": "Köln"})


@server.tool()
def drawing(kind: str) -> list[Image]:
    """A transparent picture, a format that is not opened, or one too long and thin."""
    data = io.BytesIO()
    if kind == "clear":
        Picture.new("RGBA", (2, 2), (0, 0, 0, 0)).save(data, "PNG")
    elif kind == "foreign":
        Picture.new("RGB", (2, 2)).save(data, "PPM")
    else:
        Picture.new("RGB", (500, 1)).save(data, "PNG")
    return [Image(data=data.getvalue(), format="png")]


@server.tool()
def echo(text: str) -> str:
    """Says it."""
    return text


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
