"""A server that answers as Tavily's does."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import Any

import pytest

from axpo.search import tavily

SECRET = "tvly-dev-5ecre7-0123456789abcdef"
RESULTS = {
    "query": "x",
    "results": [
        {"title": "First", "url": "https://a.example", "content": "one  \n two", "score": 0.9},
        {"title": None, "url": "https://b.example", "content": "y" * 5000, "score": 0.8},
        {"title": "Third", "url": "https://c.example", "content": None, "score": 0.7},
    ],
}


class Server:
    """Answers each request with `status` and `body`, in which KEY becomes the client's key.

    Where `body` is None it never answers; where `status` is 0 it hangs up. `by_query` has other
    answers to some queries.
    """

    def __init__(self) -> None:
        self.status, self.body = 200, json.dumps(RESULTS).encode()
        self.usage: tuple[int, bytes] | None = (200, b"{}")
        self.by_query: dict[str, tuple[int, bytes | None]] = {}
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")
                pairs = (line.split(": ", 1) for line in lines[1:] if line)
                headers = {name.lower(): value for name, value in pairs}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                path = lines[0].split()[1]
                request = json.loads(body) if body else {}
                self.requests.append((path, headers, request or None))
                usual = self.by_query.get(request.get("query"), (self.status, self.body))
                answer = self.usage if path == "/usage" else usual
                if answer is None or answer[1] is None:
                    await reader.read()  # until the client gives up
                    return
                status, content = answer
                if status == 0:
                    return
                content = content.replace(b"KEY", headers["authorization"].split()[1].encode())
                start = f"HTTP/1.1 {status} X\r\nContent-Length: {len(content)}\r\n\r\n"
                writer.write(start.encode() + content)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving(timeout: float = 20.0) -> Any:
    """Such a server, to which `Tavily` goes; it gives a request up after `timeout` seconds."""
    server = Server()
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tavily, "URL", server.url)
            patch.setattr(tavily, "TIMEOUT", timeout)
            yield server
    finally:
        listener.close()
        await asyncio.sleep(0.01)
