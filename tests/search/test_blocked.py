"""Blocked pages are neither shown nor opened, however their address is written."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from axpo.build.cells import benchmark_names, benchmarks
from axpo.build.tools import recipe_tools
from axpo.config import SearchSettings, load_config
from axpo.errors import ConfigError, ModelError
from axpo.search.base import Hit, PageText, Results, TextSource
from axpo.search.blocked import BlockedPictures, BlockedSearch, blocks
from axpo.search.gallery import Match, PictureSource
from axpo.tasks.benchmarks.base import Benchmark
from axpo.tasks.lab import CORPUS
from axpo.tools.base import ToolContext
from axpo.tools.built_in import web_backend
from axpo.tools.web_extractor import WebExtractorTool
from axpo.tools.web_search import WebSearchTool

PIECES = ("http:", "//", "/", "..", "[", "]", "%", "%5", "@", ":", "?", "mmsearch.io", "℀", "xn--")
PAGES = ("huggingface.co/datasets/CaraJ/MMSearch", "github.com/CaraJ7/MMSearch", "mmsearch.io")


@pytest.mark.parametrize(
    "url",
    [
        "https://huggingface.co/datasets/CaraJ/MMSearch",
        "http://www.huggingface.co:443/datasets/caraj/mmsearch/viewer?row=3",
        "HTTPS://HuggingFace.co/datasets/CaraJ%2FMMSearch#top",
        "huggingface.co/datasets//CaraJ/MMSearch/",
        "https://user@github.com./CaraJ7/MMSearch/blob/main/a.json",
        "https://web.archive.org/web/2024/https://github.com/CaraJ7/MMSearch",
        "https://r.jina.ai/https://mmsearch.io/answers",
        "https://www.google.com/url?q=https%3A%2F%2Fmmsearch.io%2Fx&sa=U",
        "https://x.com/?to=https%253A%252F%252Fdata.mmsearch.io",
        "//mmsearch.io",
        "https://r.jina.ai/huggingface.co/datasets/CaraJ/MMSearch",
        "https://web.archive.org/web/2024/github.com/CaraJ7/MMSearch",
        "https://example.com/?about=github.com/CaraJ7/MMSearch",
        "https://huggingface.co/datasets/x/../CaraJ/./MMSearch",
        "https://u@huggingface.co:80/../datasets/../datasets/CaraJ/MMSearch",
        r"https:\\huggingface.co\datasets\CaraJ%5CMMSearch",
        "https://hugging\tface.co/datasets/CaraJ/MMSearch",
        "https://github.com/CaraJ7/MMSearch.git",
        "https:mmsearch.io",
        "https://ｍmsearch。io/",
    ],
)
def test_an_address_is_recognised(url: str) -> None:
    assert blocks(PAGES)(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://huggingface.co/datasets/CaraJ/MMSearch-more",
        "https://huggingface.co/CaraJ/MMSearch",
        "https://huggingface.co",
        "https://notmmsearch.io",
        "https://mmsearch.io.example.com",
        "https://github.com/CaraJ7",
        "https://example.com/github.com/other/MMSearch",
        "https://example.com/datasets/CaraJ/MMSearch",
        "",
        "..",
    ],
)
def test_others_are_not(url: str) -> None:
    assert not blocks(PAGES)(url)


@pytest.mark.parametrize(
    "page",
    ["https://github.com/CaraJ7/MMSearch/", "www.GitHub.com:443/CaraJ7/MMSearch?tab=readme#top"],
)
def test_a_page_may_be_written_as_an_address(page: str) -> None:
    assert blocks([page])("https://github.com/CaraJ7/MMSearch/blob/main/a.json")
    assert not blocks([page])("https://github.com/CaraJ7")


@pytest.mark.parametrize(
    "page", ["", "https://", "/datasets/CaraJ/MMSearch", "github", "http://[a"]
)
def test_a_page_without_a_host_is_refused(page: str) -> None:
    with pytest.raises(ValueError, match=r"search\.blocked: got .*, expected a host"):
        blocks([page])
    setting = f"tools.search.blocked={json.dumps([page])}"
    with pytest.raises(ConfigError, match=r"rollout\.tools: search\.blocked: got "):
        recipe_tools(load_config("lab", setting))


@given(st.text() | st.lists(st.sampled_from(PIECES)).map("".join))
@example("http://[x")
@example("https://exam℀ple/")
def test_a_policy_s_url_is_never_a_fault(url: str) -> None:
    """A fault would leave its rollout unscored."""
    web = Web()
    extractor = WebExtractorTool(BlockedSearch(web, PAGES), 100)
    try:
        asyncio.run(extractor({"url": url}, ToolContext((), "t")))
    except ModelError:
        assert not web.opened


def test_a_host_of_other_letters() -> None:
    assert blocks(["xn--bcher-kva.example"])("https://bücher.example/a")
    assert blocks(["bücher.example"])("https://xn--bcher-kva.example/a")


class Web(TextSource):
    identity = "web"

    def __init__(self) -> None:
        self.opened: list[str] = []

    async def search(self, query: str, results: int) -> Results[Hit]:
        urls = ("https://a.org/1", "https://mmsearch.io/2", "https://b.org/3")
        return Results([Hit(url[-1], url, "text") for url in urls][:results])

    async def page(self, url: str) -> PageText | None:
        self.opened.append(url)
        return PageText("title", url.replace("short.org", "mmsearch.io"), "text")

    async def close(self) -> None: ...


class Pictures(PictureSource):
    identity = "pictures"

    async def find(self, picture: Image.Image, results: int) -> Results[Match]:
        return Results(
            [Match("t", url, "c", 0) for url in ("https://mmsearch.io", "https://a.org")]
        )

    async def close(self) -> None: ...


def test_results_and_pages_are_left_out_and_counted() -> None:
    web = Web()
    source = BlockedSearch(web, PAGES)
    context = ToolContext((), "t")
    search, extractor = WebSearchTool(source, 5, 100), WebExtractorTool(source, 100)
    shown = asyncio.run(search({"query": "q"}, context))
    assert shown.text == "[1] 1\nhttps://a.org/1\ntext\n\n[2] 3\nhttps://b.org/3\ntext"
    for url in ("https://mmsearch.io/2", "https://short.org/2"):
        with pytest.raises(ModelError, match="expected the url of a search result"):
            asyncio.run(extractor({"url": url}, context))
    assert web.opened == ["https://short.org/2"]
    assert asyncio.run(extractor({"url": "https://a.org/1"}, context)).text == "title\n\ntext"
    assert search.figures == {"blocked": 1} and extractor.figures == {"blocked": 2}


def test_matches_are_left_out() -> None:
    source = BlockedPictures(Pictures(), PAGES)
    found = asyncio.run(source.find(Image.new("RGB", (8, 8)), 5))
    assert [match.url for match in found.items] == ["https://a.org"]
    assert source.figures("picture") == {"blocked": 1}


def test_the_setting_reaches_the_tools() -> None:
    plain = SearchSettings(corpus=str(CORPUS))
    assert not isinstance(web_backend(plain), BlockedSearch)
    blocked = plain.model_copy(update={"blocked": ("a.org",)})
    assert isinstance(web_backend(blocked), BlockedSearch)


def test_a_benchmark_names_its_pages() -> None:
    task = load_config("lab", "task={name='vstar'}").task
    assert isinstance(task, Benchmark)
    found = blocks(task.blocked())
    for url in (
        "https://hf-mirror.com/datasets/craigwu/vstar_bench/tree/main",
        "https://huggingface.co/api/datasets/lmms-lab/vstar-bench/parquet",
        "https://datasets-server.huggingface.co/rows?dataset=lmms-lab%2Fvstar-bench&split=test",
        "https://github.com/penghao-wu/vstar",
        "https://raw.githubusercontent.com/penghao-wu/vstar/main/README.md",
        "https://api.github.com/repos/penghao-wu/vstar/contents",
        "https://cdn.jsdelivr.net/gh/penghao-wu/vstar@main/a.json",
    ):
        assert found(url)
    assert not found("https://github.com/penghao-wu")


@pytest.mark.parametrize("name", benchmark_names())
def test_every_benchmark_names_pages_that_are_found(name: str) -> None:
    (task,) = benchmarks(name)
    pages = task.blocked()
    assert all("datasets/datasets" not in page for page in pages)
    found = blocks(pages)
    for source in task.sources:
        assert found(f"https://huggingface.co/datasets/{source.hub}/tree/main")
    assert found(f"https://github.com/{task.scorer.repository}/blob/main/{task.scorer.file}")
    assert all(found(f"https://{page}/") for page in pages)
