"""Tavily against a server of our own: each failure has its name, and the key goes nowhere."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
import threading
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from axpo.errors import SourceFault, UserError
from axpo.recorded.cache import AnswerCache
from axpo.search.base import Hit, PageText
from axpo.search.recorded import RecordedSearch
from axpo.search.tavily import KEY, Tavily
from axpo.tools.base import ToolContext
from axpo.tools.web_search import WebSearchTool
from tests.support.tavily import RESULTS, SECRET, Server, serving


def ask(work: Callable[[Tavily, Server], Awaitable[Any]], timeout: float = 5.0) -> Any:
    async def run() -> Any:
        async with serving(timeout) as server:
            tavily = Tavily()
            try:
                return await work(tavily, server)
            finally:
                await tavily.close()

    return asyncio.run(run())


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, SECRET)


def test_results_are_ranked_and_bounded_and_the_request_is_a_basic_search() -> None:
    async def work(tavily: Tavily, server: Server) -> None:
        await tavily.start()
        await tavily.start()
        found = await tavily.search("red pandas", 2)
        assert found.items == [
            Hit("First", "https://a.example", "one two"),
            Hit("", "https://b.example", "y" * 1999 + "…"),
        ]
        assert [path for path, _, _ in server.requests] == ["/usage", "/search"]
        _, headers, body = server.requests[1]
        assert headers["authorization"] == f"Bearer {SECRET}"
        assert body == {"query": "red pandas", "search_depth": "basic", "max_results": 2}

    ask(work)


def test_nothing_found_is_an_answer() -> None:
    async def work(tavily: Tavily, server: Server) -> None:
        server.body = b'{"results": []}'
        tool = WebSearchTool(tavily, 5, 20)
        await tool.start()
        assert (await tool({"query": "x"}, ToolContext())).text == "No results."
        assert await tavily.page("https://a.example") is None
        server.body = json.dumps(RESULTS).encode()
        text = (await tool({"query": "x"}, ToolContext())).text
        assert text.startswith("[1] First\nhttps://a.example\none two\n\n[2]\nhttps://b")
        assert f"{'y' * 19}…\n" in text

    ask(work)


def test_a_page_is_extracted() -> None:
    async def work(tavily: Tavily, server: Server) -> None:
        server.body = json.dumps({"results": [{"url": "u", "raw_content": "# Text"}]}).encode()
        await tavily.start()
        assert await tavily.page("u") == PageText("", "u", "# Text")
        path, _, body = server.requests[-1]
        assert (path, body["urls"]) == ("/extract", ["u"])

    ask(work)


FAILURES = [
    (429, b'{"detail": {"error": "slow down KEY"}}', "too many requests (429)", True, False),
    (500, b"KEY oops", "status 500", True, False),
    (503, b"", "status 503", True, False),
    (404, b"", "status 404", False, False),
    (302, b"", "status 302", False, False),
    (432, b'{"detail": {"error": "plan"}}', "plan's limit", False, False),
    (403, b"no json", "plan's limit", False, False),
    (400, b'{"detail": {"error": "KEY"}}', "bad request (400)", False, False),
    (401, b'{"detail": {"error": "KEY"}}', "does not accept the key", False, False),
    (200, b"<html>KEY</html>", "not JSON", True, True),
    (200, b"\xff\xfe\x00", "not JSON", True, True),
    (200, b"", "not JSON", True, True),
    (200, b"[1, 2]", "expected form", True, True),
    (200, b'{"results": [{"title": "KEY"}]}', "expected form", True, True),
    (200, b'{"results": "KEY"}', "expected form", True, True),
    (0, b"", "no connection", True, True),
    (200, None, "did not answer in time", True, True),
]


@pytest.mark.parametrize(("status", "body", "message", "retryable", "charged"), FAILURES)
def test_a_failure_is_ours_and_says_what_it_was(
    status: int, body: Any, message: str, retryable: bool, charged: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    async def work(tavily: Tavily, server: Server) -> SourceFault:
        await tavily.start()
        server.status, server.body = status, body
        with pytest.raises(SourceFault) as error:
            await tavily.search("x", 5)
        return error.value

    caplog.set_level(logging.DEBUG)
    fault = ask(work, timeout=0.3)
    assert message in str(fault)
    assert (fault.retryable, fault.charged) == (retryable, charged)
    shown = "".join(traceback.format_exception(fault)) + repr(fault) + repr(vars(fault))
    assert SECRET not in shown and fault.__cause__ is None
    assert SECRET not in caplog.text


@pytest.mark.parametrize("value", [None, "", "tvly\nx", "schlüssel"])
def test_a_missing_or_impossible_key_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    async def work(tavily: Tavily, server: Server) -> list[Any]:
        with pytest.raises(UserError, match=KEY) as error:
            await tavily.start()
        assert value is None or value == "" or value not in str(error.value)
        return server.requests

    monkeypatch.delenv(KEY)
    if value is not None:
        monkeypatch.setenv(KEY, value)
    assert ask(work) == []


def test_a_refused_key_stops_the_start_and_a_server_that_is_down_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def work(tavily: Tavily, server: Server) -> None:
        server.usage = (401, b"KEY")
        with pytest.raises(UserError) as error:
            await tavily.start()
        assert str(error.value) == "Tavily does not accept the key in TAVILY_API_KEY"
        for usage in [(500, b""), (404, b""), (0, b""), None]:
            server.usage = usage
            await tavily.start()
            assert len((await tavily.search("x", 5)).items) == 3
            await tavily.close()
        with pytest.raises(SourceFault, match="not started"):
            await tavily.search("x", 5)

    monkeypatch.setattr("axpo.search.tavily.START_TIMEOUT", 0.3)
    ask(work)


def test_the_key_is_in_no_log_repr_answer_or_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    async def work(tavily: Tavily, server: Server) -> str:
        body = {
            "results": [{"title": "KEY", "url": "u/KEY", "content": "KEY", "raw_content": "KEY"}]
        }
        server.body = json.dumps(body).encode()
        search = RecordedSearch(tavily, AnswerCache(tmp_path / "answers.db", "record", 10))
        await search.start()
        found = await search.search("x", 5)
        page = await search.page("u")
        server.status = 500
        with pytest.raises(SourceFault) as error:
            await search.search("y", 5)
        shown = [found, page, tavily, search, tavily.identity, error.value, vars(tavily)]
        files = b"".join(file.read_bytes() for file in tmp_path.rglob("*"))
        await search.close()
        files += b"".join(file.read_bytes() for file in tmp_path.rglob("*"))
        assert b"[key]" in files  # the answer was recorded, the key cut out
        assert SECRET.encode() not in files
        with pytest.raises(TypeError):
            pickle.dumps(search)
        return "".join(map(repr, shown))

    caplog.set_level(logging.DEBUG)
    assert SECRET not in ask(work)
    assert len(caplog.records) > 5  # httpx and httpcore do log
    assert SECRET not in "".join(record.getMessage() for record in caplog.records)
    out, err = capfd.readouterr()
    assert SECRET not in out + err


def test_another_loop_gets_a_client_of_its_own_and_no_socket_stays() -> None:
    async def life(tavily: Tavily, close: bool) -> None:
        async with serving():
            await tavily.start()
            assert len((await tavily.search("x", 5)).items) == 3
            if close:
                await tavily.close()

    def sockets() -> int:
        folder = Path("/proc/self/fd")
        return sum("socket" in str(fd.readlink()) for fd in folder.iterdir() if fd.is_symlink())

    before = sockets(), threading.active_count()
    tavily = Tavily()
    asyncio.run(life(tavily, close=True))
    assert (sockets(), threading.active_count()) == before
    asyncio.run(life(tavily, close=False))
    asyncio.run(life(tavily, close=True))
