"""Settings become tools, and what is missing or has no effect is refused before a run starts."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from axpo.config import SearchSettings, ToolsSettings
from axpo.errors import UserError
from axpo.search.index import build_index
from axpo.tools import make_tools
from axpo.tools.base import Tool, ToolContext


def one(name: str, **search: Any) -> Tool:
    """The built-in tool `name` of these settings."""
    return make_tools([name], ToolsSettings(search=SearchSettings(**search)))[name]


def test_tools_of_a_corpus_share_a_backend_and_can_start_again(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# Moss\nGreen and wet.")
    build_index(tmp_path, tmp_path / "a.idx")
    search = SearchSettings(corpus=str(tmp_path / "a.idx"), cache=str(tmp_path / "cache.db"))
    tools = make_tools(["web_search", "web_extractor"], ToolsSettings(search=search))

    async def life() -> tuple[str, bool, str]:
        for tool in tools.values():
            await tool.start()
        found = await tools["web_search"]({"query": "wet"}, ToolContext())
        page = await tools["web_extractor"]({"url": "a.md"}, ToolContext())
        await asyncio.gather(*(tool.close() for tool in tools.values()))
        return found.text, found.cached, page.text

    text, page = "[1] Moss\na.md\n# Moss Green and **wet**.", "Moss\n\n# Moss\nGreen and wet."
    assert asyncio.run(life()) == (text, False, page)
    assert asyncio.run(life()) == (text, True, page)


def test_replay_of_the_web_needs_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TAVILY_API_KEY", raising=False)
    cache = str(tmp_path / "cache.db")
    record = one("web_search", backend="tavily", cache=cache)
    with pytest.raises(UserError, match="TAVILY_API_KEY is not set"):
        asyncio.run(record.start())

    async def replay() -> None:
        tool = one("web_search", backend="tavily", cache=cache, mode="replay")
        await tool.start()
        assert (await tool({"query": "x"}, ToolContext())).text == "No results."
        assert tool.figures["not_recorded"] == 1
        await tool.close()

    asyncio.run(replay())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "replay"}, "mode: no effect without cache"),
        ({"budget": 5}, "budget: no effect without cache"),
        ({"backend": "tavily", "corpus": "a"}, "corpus: no effect with backend = 'tavily'"),
        ({"results": 0}, "results"),
        ({"backend": "bing"}, "backend"),
    ],
)
def test_an_ineffective_setting_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SearchSettings(**settings)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(UserError, match=r"search\.corpus"):
        one("web_search")
    with pytest.raises(UserError, match="no corpus index at /nowhere"):
        one("web_extractor", corpus="/nowhere")
    with pytest.raises(UserError, match=r"search\.gallery"):
        one("image_search")


def test_a_recipes_web_tools_share_one_backend(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# Moss\nGreen and wet.")
    build_index(tmp_path, tmp_path / "a.idx")
    settings = ToolsSettings(search=SearchSettings(corpus=str(tmp_path / "a.idx")))
    tools: Any = make_tools(["web_search", "web_extractor"], settings)
    assert tools["web_search"].source is tools["web_extractor"].source
    with pytest.raises(ValueError, match=r"search\.corpus: web_search needs an index"):
        make_tools(["web_search"])
