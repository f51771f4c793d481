"""A chat endpoint: OpenAI's chat completions over HTTP in threads, well-behaved or not."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar


@dataclass(frozen=True)
class Answer:
    """What the server sends instead of a reply; None as a `body` hangs up without a word."""

    status: int = 200
    body: bytes | None = b""
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0


USAGE = {"prompt_tokens": 100, "completion_tokens": 10, "cost": 0.001}


def said(text: Any, finish: str = "stop", usage: Any = USAGE, **message: Any) -> Answer:
    """A well-formed answer with this reply; `message` are further fields of it."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text} | message,
        "finish_reason": finish,
    }
    return Answer(body=json.dumps({"choices": [choice], "usage": usage}).encode())


class FakeChat:
    """A server whose replies are `reply_to(the request's body)`; the next `faults` come instead.

    `asked` are the requests' bodies, `most` how many were under way at once. Every `fail_every`-th
    request fails with status 500, and a reply takes `delay` seconds. KEY in a body becomes the
    client's key.
    """

    def __init__(self) -> None:
        self.faults: deque[Answer] = deque()
        self.fail_every = 0
        self.delay = 0.0
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.most = self.failed = self._under_way = 0
        self.url = ""
        self._lock = threading.Lock()

    def reply_to(self, body: dict[str, Any]) -> Answer:
        raise NotImplementedError

    @property
    def answered(self) -> int:
        """Requests that got a reply."""
        return len(self.asked) - self.failed

    def answer(self, body: dict[str, Any], headers: dict[str, str]) -> Answer:
        with self._lock:
            self.asked.append(body)
            self.headers.append(headers)
            self._under_way += 1
            self.most = max(self.most, self._under_way)
            fault = self.faults.popleft() if self.faults else None
            if fault is None and self.fail_every and len(self.asked) % self.fail_every == 0:
                fault = Answer(500, b"overloaded")
            self.failed += fault is not None
        time.sleep(self.delay if fault is None else fault.delay)
        with self._lock:
            self._under_way -= 1
        return fault or self.reply_to(body)


Served = TypeVar("Served", bound=FakeChat)


@contextmanager
def serving(chat: Served) -> Iterator[Served]:
    """Such a server on a port of its own."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            headers = {name.lower(): value for name, value in self.headers.items()}
            answer = chat.answer(body, headers | {"path": self.path})
            if answer.body is None:
                self.close_connection = True
                return
            key = headers.get("authorization", "").removeprefix("Bearer ").encode()
            content = answer.body.replace(b"KEY", key)
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def handle(self) -> None:
            with suppress(ConnectionError):  # the client gave up
                super().handle()

        def log_message(self, *_: Any) -> None: ...

    class Server(ThreadingHTTPServer):
        request_queue_size = 128  # all connections of a client may come at once
        daemon_threads = True

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    chat.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield chat
    finally:
        server.shutdown()
        server.server_close()
