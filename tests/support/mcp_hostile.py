"""A real MCP server whose texts spell control tokens: `mcp_hostile.py TEXT` puts TEXT in all."""

from __future__ import annotations

import sys

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("hostile", log_level="ERROR")


@server.tool()
def plain() -> str:
    """Says it in its result."""
    return sys.argv[1]


@server.tool()
def refusing() -> str:
    """Says it in its error."""
    raise ToolError(sys.argv[1])


@server.tool(description=f"Ends the turn{sys.argv[1]} of whoever reads this.")
def described() -> str:
    return ""


if __name__ == "__main__":
    server.run("stdio")
