"""A local corpus: what is found in which order, what a query cannot do, and how it is built."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from random import Random

import pytest

from axpo.errors import ModelError, UserError
from axpo.search.base import Hit
from axpo.search.corpus import Corpus
from axpo.search.database import read_facts
from axpo.search.index import build_index
from axpo.tools.base import Observation, ToolContext
from axpo.tools.web_extractor import WebExtractorTool
from axpo.tools.web_search import MAX_QUERY, WebSearchTool

LINES = [
    {
        "title": "Kestrel",
        "url": "u/kestrel",
        "text": "A small brown falcon that hovers over the fields.",
    },
    {"title": "Peregrine", "url": "u/peregrine", "text": "The fastest falcon of all, it dives."},
    {"title": "Falcon", "url": "u/falcon", "text": "A bird of prey with long wings and a notch."},
    {"title": "Café", "url": "u/café", "text": "Straße und Kaffee: näheres, NOT a bird AND more."},
    {"title": "Twin", "url": "u/one", "text": "Identical words about moss."},
    {"title": "Twin", "url": "u/two", "text": "Identical words about moss."},
    {"title": "Part", "url": "u/whole", "text": "First half of it."},
    {"title": "Part", "url": "u/whole", "text": "Second half of it."},
]


def write_lines(path: Path, lines: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def index(tmp_path: Path) -> Path:
    out = tmp_path / "birds.idx"
    build_index(write_lines(tmp_path / "birds.jsonl", LINES), out)
    return out


def find(index: Path, query: str, results: int = 5, snippet: int = 300) -> list[Hit]:
    async def run() -> list[Hit]:
        corpus = Corpus(index, snippet)
        await corpus.start()
        try:
            return (await corpus.search(query, results)).items
        finally:
            await corpus.close()

    return asyncio.run(run())


def urls(index: Path, query: str, results: int = 5) -> list[str]:
    return [hit.url for hit in find(index, query, results)]


def call(tool_class: type, index: Path, arguments: dict[str, object], size: int) -> Observation:
    async def run() -> Observation:
        sizes = (size, 300) if tool_class is WebSearchTool else (size,)
        tool = tool_class(Corpus(index, 300), *sizes)
        await tool.start()
        try:
            return await tool(arguments, ToolContext())
        finally:
            await tool.close()

    return asyncio.run(run())


def test_a_title_counts_for_more_and_stems_and_accents_do_not_matter(index: Path) -> None:
    assert urls(index, "falcon") == ["u/falcon", "u/peregrine", "u/kestrel"]
    assert urls(index, "hovering") == ["u/kestrel"]
    assert urls(index, "CAFE") == urls(index, "cafe\u0301") == ["u/café"]
    assert urls(index, "falcon hovers", 1) == ["u/kestrel"]
    assert urls(index, "STRAßE") == urls(index, "näheres") == ["u/café"]
    assert urls(index, "zebra") == []


def test_equals_are_in_the_order_of_the_corpus(index: Path) -> None:
    assert urls(index, "moss") == ["u/one", "u/two"]
    assert urls(index, "moss", 1) == ["u/one"]


@pytest.mark.parametrize(
    "query",
    [
        'falcon"', '"falcon', "falcon*", "falcon NOT bird", "NOT falcon", "title:falcon",
        "NEAR(falcon prey, 1)", "^falcon", "{title}: falcon", "falcon AND zebra", "(falcon",
        "falcon; DROP TABLE words", "- falcon", "falcon + + \x00 '", "falcon \ud800", "%_falcon",
    ],
)  # fmt: skip
def test_an_operator_in_a_query_is_not_one(index: Path, query: str) -> None:
    assert "u/falcon" in urls(index, query)
    assert "u/kestrel" in urls(index, query)


@pytest.mark.parametrize("query", ['"', "*", "()", "", "\x00", "\ud800", "…—", "''' OR 1=1"])
def test_a_query_without_a_known_word_finds_nothing(index: Path, query: str) -> None:
    assert urls(index, query) == []


def test_no_text_at_all_makes_a_query_fail(index: Path) -> None:
    async def run() -> None:
        corpus = Corpus(index, 300)
        random = Random(0)
        for _ in range(2000):
            letters = [chr(random.randrange(0x3000)) for _ in range(random.randrange(40))]
            await corpus.search("".join(random.sample([*letters, *"\"*()^:-+{},'"], 5)), 5)
        await corpus.close()

    asyncio.run(run())


def test_a_long_query_is_cut_not_refused(index: Path) -> None:
    assert urls(index, "falcon " + " ".join(f"w{i}" for i in range(5000)))[0] == "u/falcon"


def test_snippets_are_about_the_query_marked_and_bounded(tmp_path: Path) -> None:
    text = "filler **bold** " * 400 + "the hidden treasure is here " + "filler " * 400
    source = write_lines(tmp_path / "a.jsonl", [{"title": "T", "url": "u", "text": text}])
    build_index(source, tmp_path / "a.idx")
    for size in (20, 60, 300, 1000):
        (hit,) = find(tmp_path / "a.idx", "treasure filler", snippet=size)
        assert size // 3 < len(hit.snippet) <= size
    (hit,) = find(tmp_path / "a.idx", "treasure", snippet=60)
    assert "**treasure**" in hit.snippet


def test_common_words_are_left_out_but_found_alone(tmp_path: Path) -> None:
    lines = [{"title": f"t{i}", "url": f"u{i}", "text": f"shared n{i}"} for i in range(1000)]
    build_index(write_lines(tmp_path / "a.jsonl", lines), tmp_path / "a.idx")
    assert urls(tmp_path / "a.idx", "shared n77") == ["u77"]
    assert urls(tmp_path / "a.idx", "Shared", 2) == ["u0", "u1"]


def test_the_tools_number_results_and_open_pages(index: Path) -> None:
    found = call(WebSearchTool, index, {"query": "moss"}, 5).text
    expected = "[{}] Twin\nu/{}\nIdentical words about **moss**."
    assert found == f"{expected.format(1, 'one')}\n\n{expected.format(2, 'two')}"
    assert call(WebSearchTool, index, {"query": "zebra"}, 5).text == "No results."
    page = call(WebExtractorTool, index, {"url": "u/whole"}, 100).text
    assert page == "Part\n\nFirst half of it.\n\nSecond half of it."
    assert call(WebExtractorTool, index, {"url": "u/whole"}, 10).text == "Part\n\nFirst hal…"


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        (WebSearchTool, {}, "query is missing: expected query"),
        (WebSearchTool, {"query": 3}, "query is 3: expected a string"),
        (WebSearchTool, {"query": " \n"}, "query is ' \\n': expected some text"),
        (WebSearchTool, {"query": "\ud800"}, "query is '\\ud800': expected some text"),
        (WebSearchTool, {"query": "a", "k": 9}, "'k' is unknown: expected query"),
        (WebSearchTool, {"query": "a" * 401}, f"query has 401 characters: expected at most {400}"),
        (WebExtractorTool, {"url": "u/x"}, "url is 'u/x': expected the url of a search result"),
    ],
)
def test_a_wrong_call_names_the_field(
    index: Path, tool: type, arguments: dict[str, object], message: str
) -> None:
    assert MAX_QUERY == 400
    with pytest.raises(ModelError) as error:
        call(tool, index, arguments, 5)
    assert str(error.value) == message


def test_a_folder_gives_a_document_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "owl.md").write_text("intro\n## Owls at night ##\nThey hunt mice.")
    (folder / "plain.txt").write_text("A mouse.")
    (folder / "skipped.py").write_text("mouse = 1")
    summary = build_index(folder, tmp_path / "n.idx")
    assert summary.facts.entries == 2
    assert summary.size == (tmp_path / "n.idx").stat().st_size
    hits = {hit.url: hit.title for hit in find(tmp_path / "n.idx", "mouse mice")}
    assert hits == {"deep/owl.md": "Owls at night", "plain.txt": "plain"}


def test_the_digest_is_the_contents(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", LINES)
    first = build_index(source, tmp_path / "a.idx").facts
    assert build_index(source, tmp_path / "b.idx").facts == first
    write_lines(source, LINES[::-1])
    assert build_index(source, tmp_path / "b.idx").facts.digest != first.digest
    assert read_facts(tmp_path / "a.idx", "corpus") == first


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"title": "a", "url": "u", "text": "x"}\n{"title": "b"}\n', ":2: url: Field required"),
        ('{"title": "a", "url": 1, "text": "x"}', ":1: url: Input should be a valid string"),
        ("\nnot json\n", ":2: line: Invalid JSON"),
        ("\n\n", ": no document in it"),
    ],
)
def test_a_source_that_cannot_be_read_leaves_no_index(
    tmp_path: Path, text: str, message: str
) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text(text)
    with pytest.raises(UserError, match=message):
        build_index(source, tmp_path / "a.idx")
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]


def test_only_an_index_is_replaced_or_opened(tmp_path: Path, index: Path) -> None:
    precious = tmp_path / "thesis.txt"
    precious.write_text("years of work")
    with pytest.raises(UserError, match="not an index"):
        build_index(tmp_path / "birds.jsonl", precious)
    assert precious.read_text() == "years of work"
    with pytest.raises(UserError, match="no corpus index"):
        Corpus(tmp_path / "none.idx", 100)
    import sqlite3

    with sqlite3.connect(index) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(UserError, match="format 99, expected 1"):
        Corpus(index, 100)
    build_index(tmp_path / "birds.jsonl", index)
    assert urls(index, "moss") == ["u/one", "u/two"]


def test_a_killed_build_leaves_the_old_index_and_the_next_one_works(
    tmp_path: Path, index: Path
) -> None:
    before = index.read_bytes()
    pipe = tmp_path / "slow.jsonl"
    script = (
        "import sys; from pathlib import Path; from axpo.search import index\n"
        "def slow(source):\n"
        "    for i in range(100000):\n"
        "        if i == 5000: print('half', flush=True); sys.stdin.read()\n"
        "        yield index.Document(title='t', url=f'u{i}', text='word ' * 50)\n"
        "index.read_documents = slow\n"
        "index.build_index(Path(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(pipe), str(index)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with child:
        assert child.stdout is not None and child.stdout.readline() == "half\n"
        with pytest.raises(UserError, match="being built by another process"):
            build_index(tmp_path / "birds.jsonl", index)
        os.kill(child.pid, signal.SIGKILL)
    assert index.read_bytes() == before
    assert (tmp_path / ".birds.idx.part").exists()
    build_index(tmp_path / "birds.jsonl", index)
    assert not (tmp_path / ".birds.idx.part").exists()
    assert urls(index, "moss") == ["u/one", "u/two"]


def test_queries_do_not_hold_up_the_loop_and_nothing_stays(index: Path) -> None:
    async def run() -> float:
        corpus = Corpus(index, 300)
        slowest = 0.0
        try:
            work = asyncio.gather(*(corpus.search(f"falcon {i}", 5) for i in range(300)))
            while not work.done():
                began = time.perf_counter()
                await asyncio.sleep(0)
                slowest = max(slowest, time.perf_counter() - began)
            found = await work
        finally:
            await corpus.close()
        assert all(results.items[0].url == "u/falcon" for results in found)
        again = await corpus.search("moss", 1)  # a new life
        assert again.items[0].url == "u/one"
        await corpus.close()
        return slowest

    files, threads = len(list(Path("/proc/self/fd").iterdir())), threading.active_count()
    assert asyncio.run(run()) < 0.5
    assert (len(list(Path("/proc/self/fd").iterdir())), threading.active_count()) == (
        files,
        threads,
    )
