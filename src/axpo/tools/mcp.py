"""The tools of an MCP server, by the official SDK. A server is a process that is started (stdio) or
an address (HTTP).

A separate task holds the connection, because the SDK requires that the same task opens and closes
it. When the server dies, the calls in flight fail as infrastructure faults, and the next call
starts it again. The more often it dies in a row, the longer it stays down; meanwhile every call
fails at once. A call is never repeated: it may have had an effect before the server died.

An error that the server reports about a tool is shown to the model, because the protocol does not
say whose fault it is (choice). The server checks the arguments.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import os
import tempfile
import time
from pathlib import Path
from typing import IO, Any

from mcp import Client, MCPError, StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    METHOD_NOT_FOUND,
    CallToolResult,
    ContentBlock,
    TextResourceContents,
)
from mcp.types import Tool as ServerTool

from axpo import stopping
from axpo.config import McpSettings
from axpo.errors import InfraError, ModelError, UserError
from axpo.pictures import PictureError, read_picture
from axpo.tools.base import Observation, Tool, ToolContext, View
from axpo.tools.function import as_observation

STOP_SECONDS = 8.0
"""Seconds that we wait for a server to stop; the SDK kills it before."""
BACKOFF, BACKOFF_MAX = 1.0, 60.0
"""Seconds without a new attempt after the second failure in a row, which double up to a maximum."""
ALIVE_SECONDS = 2.0
"""Seconds within which a server must list its tools to count as alive."""
ANSWERED = (INTERNAL_ERROR, METHOD_NOT_FOUND)
"""Codes of errors after which the connection can still serve other calls."""


class McpTool(Tool):
    """One tool of a server."""

    def __init__(self, server: McpServer, tool: ServerTool) -> None:
        self.name = server.settings.prefix + tool.name
        self.timeout = server.settings.timeout
        self.spec: dict[str, Any] = {
            "type": "function",
            "function": {
                "name": self.name,
                "description": tool.description or "",
                "parameters": tool.input_schema,
            },
        }
        self._server = server
        self._name = tool.name

    async def start(self) -> None:
        """Connect to the server; raises `UserError`."""
        try:
            await self._server.connected()
        except InfraError as error:
            raise UserError(str(error)) from error

    async def close(self) -> None:
        """Stop the server's process, or close the connection to its address."""
        await self._server.close()

    async def __call__(self, arguments: dict[str, Any], context: ToolContext) -> Observation:
        result = await self._server.call(self._name, arguments)
        observation = await asyncio.to_thread(_observation, result)
        if result.is_error:
            raise ModelError(observation.text or "the tool failed")
        return observation


class McpServer:
    """A connection that all calls share; it is made again after it was lost."""

    def __init__(self, settings: McpSettings) -> None:
        self.settings = settings
        self._connection: asyncio.Task[Client] | None = None
        self._holder: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._failures = 0
        self._not_before = 0.0

    async def call(self, name: str, arguments: dict[str, Any]) -> CallToolResult:
        """Call the server's tool `name`.

        Raises `ModelError` for wrong arguments, and `InfraError` if the server is down, gives an
        unreadable answer or dies during the call.
        """
        client = await self.connected()
        try:
            result = await client.call_tool(name, arguments)
        except MCPError as error:
            if error.code == INVALID_PARAMS:
                raise ModelError(str(error)) from error
            if error.code not in ANSWERED:
                self._lost(client)
            raise InfraError(f"{self._who} failed: {error}") from error
        except Exception as error:
            # One unreadable answer is no reason to end the other calls in flight.
            if not await _answers(client):
                self._lost(client)
            raise InfraError(f"{self._who} failed: {_reason(error)}") from error
        self._failures = 0
        return result

    async def connected(self) -> Client:
        """The connection, which is made if there is none; raises `InfraError`."""
        connection = self._connection
        if connection is None or not _usable(connection):
            if (wait := self._not_before - time.monotonic()) > 0:
                raise InfraError(f"{self._who} is down; it is tried again in {wait:.0f} s")
            connection = self._connection = asyncio.create_task(self._connect())
        return await asyncio.shield(connection)

    async def close(self) -> None:
        """Stop the server; a later call starts it again."""
        connection, self._connection = self._connection, None
        if connection is not None and not connection.done():
            connection.cancel()
            await asyncio.wait({connection})
        await self._stopped()

    @property
    def _who(self) -> str:
        return f"MCP server {self.settings.address}"

    async def _connect(self) -> Client:
        await self._stopped()
        self._stop = asyncio.Event()
        ready: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
        self._holder = asyncio.create_task(self._hold(ready, self._stop))
        try:
            async with asyncio.timeout(self.settings.start_seconds):
                return await ready
        except BaseException as error:
            self._holder.cancel()
            if not isinstance(error, Exception):
                raise
            self._failed()
            raise InfraError(f"{self._who} does not start: {str(error) or 'no answer'}") from error

    async def _hold(self, ready: asyncio.Future[Client], stop: asyncio.Event) -> None:
        """Open the connection, keep it until `stop` is set, and close it."""
        try:
            with Path(os.devnull).open("w") as nowhere:
                async with _client(self.settings, nowhere) as client:
                    if not ready.done():
                        ready.set_result(client)
                    await stop.wait()
        except Exception as error:
            if not ready.done():
                ready.set_exception(InfraError(_reason(error)))

    def _lost(self, client: Client) -> None:
        """Drop a connection that failed, unless another call has already done so."""
        connection = self._connection
        if connection is None or not connection.done() or not _usable(connection):
            return
        if connection.result() is client:
            self._connection = None
            self._stop.set()
            self._failed()

    def _failed(self) -> None:
        self._failures += 1
        if self._failures > 1:
            wait = min(BACKOFF * 2 ** (self._failures - 2), BACKOFF_MAX)
            self._not_before = time.monotonic() + wait

    async def _stopped(self) -> None:
        """Wait until the last connection's process is gone."""
        holder, self._holder = self._holder, None
        if holder is not None and not holder.done():
            self._stop.set()
            await asyncio.wait({holder}, timeout=STOP_SECONDS)
            holder.cancel()


async def _answers(client: Client) -> bool:
    """Whether the connection still works."""
    try:
        async with asyncio.timeout(ALIVE_SECONDS):
            await client.list_tools()
    except Exception:
        return False
    return True


def _usable(connection: asyncio.Task[Client]) -> bool:
    """Whether a connection has not failed and belongs to the running event loop; it may still be in
    the making."""
    if connection.get_loop() is not asyncio.get_running_loop():
        return False
    return not connection.done() or not (connection.cancelled() or connection.exception())


def server_tools(settings: McpSettings) -> list[McpTool]:
    """The tools that a server lists; the connection is closed again.

    Raises `UserError` if the server does not answer or lacks one of `settings.tools`.
    """
    listed = _listed(settings)
    names = [tool.name for tool in listed]
    if missing := [name for name in settings.tools if name not in names]:
        raise UserError(f"the server has no tool {missing[0]!r}; it has {', '.join(names)}")
    server = McpServer(settings)
    return [McpTool(server, t) for t in listed if not settings.tools or t.name in settings.tools]


def _observation(result: CallToolResult) -> Observation:
    """The result's texts, one per line, and its pictures; or else its structured content.

    Raises `InfraError` for a picture that cannot be read.
    """
    parts = [_part(block) for block in result.content]
    if not parts and result.structured_content is not None:
        parts.append(json.dumps(result.structured_content, ensure_ascii=False))
    return as_observation(parts)


def _part(block: ContentBlock) -> str | View:
    if block.type == "text":
        return block.text
    if block.type == "image":
        return _view(block.data)
    if block.type == "resource_link":
        return f"{block.name}: {block.uri}"
    if block.type == "resource":
        held = block.resource
        if isinstance(held, TextResourceContents):
            return held.text
        if (held.mime_type or "").startswith("image/"):
            return _view(held.blob)
    return f"[{block.type} that cannot be shown]"


def _view(data: str) -> View:
    try:
        return View.whole(read_picture(base64.b64decode(data, validate=True)))
    except (binascii.Error, PictureError) as error:
        raise InfraError(f"a picture cannot be read: {error}") from error


def _client(settings: McpSettings, errors: IO[str]) -> Client:
    if settings.url:
        return Client(streamable_http_client(settings.url), cache=None)
    program, *arguments = settings.command
    env = {name: os.environ[name] for name in settings.env if name in os.environ}
    parameters = StdioServerParameters(command=program, args=arguments, env=env)
    return Client(stdio_client(parameters, errors), cache=None)  # pyright: ignore[reportArgumentType]


def _listed(settings: McpSettings) -> list[ServerTool]:
    """Every tool of the server; raises `UserError` with the last line of the server's output."""
    with tempfile.TemporaryFile("w+") as said:
        try:
            return stopping.run(_ask(settings, said))
        except Exception as error:
            said.seek(0)
            last = said.read().strip().splitlines()[-1:]
            reason = "; it says: ".join([_reason(error), *last])
            raise UserError(f"no tools from {settings.address}: {reason}") from error


async def _ask(settings: McpSettings, errors: IO[str]) -> list[ServerTool]:
    tools: list[ServerTool] = []
    cursor: str | None = None
    async with asyncio.timeout(settings.start_seconds), _client(settings, errors) as client:
        while True:
            page = await client.list_tools(cursor=cursor)
            tools += page.tools
            cursor = page.next_cursor
            if cursor is None:
                return tools


def _reason(error: BaseException) -> str:
    """The innermost error in words; the SDK wraps errors in groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"
