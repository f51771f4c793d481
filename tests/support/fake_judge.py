"""A judge's server: OpenAI's chat completions over HTTP in threads, well-behaved or not."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from axpo.config import JudgeSettings
from axpo.judge import Judge, make_judge
from axpo.tasks.base import Example
from axpo.tasks.grading import Graders, Verdict

SECRET = "sk-judge-5ecre7-0123456789abcdef"
MODEL = "fake-judge"
_PARTS = re.compile(r"one on each line:\n(.*?)\n\n.*<program>\n(.*?)\n</program>", re.S)


@dataclass(frozen=True)
class Answer:
    """What the server sends instead of a reply; None as a `body` hangs up without a word."""

    status: int = 200
    body: bytes | None = b""
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0


def by_truth(text: str) -> str:
    """`Score: 1` where what the program says holds one of the references."""
    found = _PARTS.search(text)
    assert found is not None, text
    truths = [line.removeprefix("- ").lower() for line in found[1].splitlines()]
    return f"Compared.\nScore: {int(any(truth in found[2].lower() for truth in truths))}"


class FakeJudge:
    """Replies `reply(text of the request)`; the next `faults` come instead.

    `asked` are the requests' bodies, `most` how many were under way at once. Every `fail_every`-th
    request fails with status 500, and a reply takes `delay` seconds. KEY in a body becomes the
    client's key.
    """

    def __init__(self, reply: Callable[[str], str] = by_truth) -> None:
        self.reply = reply
        self.faults: deque[Answer] = deque()
        self.fail_every = 0
        self.delay = 0.0
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.most = self.failed = self._under_way = 0
        self.url = ""
        self._lock = threading.Lock()

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
        return fault or said(self.reply(text_of(body)))


def said(text: str | None, finish: str = "stop") -> Answer:
    """A well-formed answer with this reply."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": finish,
    }
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "cost": 0.001}
    return Answer(body=json.dumps({"choices": [choice], "usage": usage}).encode())


def text_of(body: dict[str, Any]) -> str:
    """The text of a request's last message."""
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


@contextmanager
def judging(judge: FakeJudge | None = None) -> Iterator[FakeJudge]:
    """Such a server on a port of its own."""
    judge = judge or FakeJudge()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            headers = {name.lower(): value for name, value in self.headers.items()}
            answer = judge.answer(body, headers | {"path": self.path})
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
    judge.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield judge
    finally:
        server.shutdown()
        server.server_close()


def settings_for(judge: FakeJudge, folder: Path, **changes: Any) -> JudgeSettings:
    """Settings of a judge at the fake server that records in `folder`."""
    values: dict[str, Any] = {
        "url": judge.url, "model": MODEL, "record": str(folder / "judge.db"), "retries": 2,
        "timeout": 5.0, "deadline": 20.0,
    }  # fmt: skip
    return JudgeSettings(**(values | changes))


def question(id: str = "q", answer: str = "white", **more: Any) -> Example:
    """A question that the judge grades."""
    values: dict[str, Any] = {"grading": "judge", "images": ()} | more
    return Example(id, f"<image>What colour is flag {id}?", answer=answer, **values)


def ask(
    server: FakeJudge, folder: Path, work: Callable[[Judge], Awaitable[Any]], **changes: Any
) -> Any:
    """What `work` gives with a new judge at the server."""

    async def run() -> Any:
        judge = make_judge(settings_for(server, folder, **changes))
        try:
            return await work(judge)
        finally:
            await judge.close()

    return asyncio.run(run())


def graded(
    server: FakeJudge, folder: Path, answer: str, example: Example | None = None, **changes: Any
) -> Verdict:
    """The verdict on an answer by a new judge at the server."""

    async def work(judge: Judge) -> Verdict:
        return await Graders(judge).grade_answer(example or question(), answer)

    return ask(server, folder, work, **changes)
