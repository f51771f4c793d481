"""Building a corpus index: one SQLite file of the texts in a folder or a JSONL file.

SQLite's FTS5 was measured against bm25s on 1,000 to 100,000 short documents: it found known items
more often (a title's matches weigh more), builds in half the time, holds nothing in memory, lets
go of the interpreter lock while it searches, and is one file. bm25s is faster for queries with
words that most documents share; those are listed in the index and left out of queries instead.
"""

from __future__ import annotations

import re
import sqlite3
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from axpo.errors import UserError
from axpo.search.database import BuiltIndex, new_index

SUFFIXES = (".md", ".markdown", ".txt")
"""Endings of the files of a folder that are indexed."""
COMMON_SHARE = 1 / 3
"""A word in more than this share of the documents is common; FTS5's BM25 gives a word in half of
them no weight at all."""
COMMON_FROM = 1000
"""A corpus with fewer documents has no common words: searching it takes under 2 ms anyway."""
COMMON_SAMPLE = 5000
"""How many documents, evenly spread, the shares are counted on."""
Parsed = TypeVar("Parsed", bound=BaseModel)
WORD = re.compile(r"[^\W_]+")

_TABLES = """
CREATE TABLE documents (id INTEGER PRIMARY KEY, title TEXT, url TEXT, text TEXT);
CREATE TABLE common (word TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE VIRTUAL TABLE words USING fts5(
    title, text, content = 'documents', content_rowid = 'id',
    tokenize = 'porter unicode61 remove_diacritics 2'
);
"""


class Document(BaseModel):
    """One text of a corpus, or a line of a JSONL corpus, whose other fields are ignored.

    Several documents may share a `url` and are then one page.
    """

    model_config = ConfigDict(strict=True)

    title: str
    url: str
    text: str


def words(text: str) -> list[str]:
    """The words of `text` in order; an accent and its letter are one character."""
    return WORD.findall(unicodedata.normalize("NFC", text))


def build_index(source: Path, out: Path) -> BuiltIndex:
    """Index folder or JSONL file `source` at `out`, whole or not at all.

    A folder gives one document per text file, whose url is the path inside the folder; a line of
    JSONL has title, url and text. Raises `UserError` naming the file and line that cannot be read.
    """
    start = time.perf_counter()
    with new_index(out, "corpus") as index:
        index.connection.executescript(_TABLES)
        for document in read_documents(source):
            texts = (document.title, document.url, document.text)
            index.add("documents", *(unicodedata.normalize("NFC", text) for text in texts))
        if not index.entries:
            raise UserError(f"{source}: no document in it; expected {_EXPECTED}")
        _finish(index.connection, index.entries)
    return BuiltIndex(index.facts, out.stat().st_size, time.perf_counter() - start)


_EXPECTED = f"a folder of {', '.join(SUFFIXES)} files or a .jsonl file with title, url and text"


def read_documents(source: Path) -> Iterator[Document]:
    """The documents of a folder in order of their paths, or of a JSONL file line by line."""
    if source.is_dir():
        files = (file for file in source.rglob("*") if file.suffix.lower() in SUFFIXES)
        for file in sorted(file for file in files if file.is_file()):
            text = _read(file)
            url = file.relative_to(source).as_posix()
            yield Document(title=_title(text) or file.stem, url=url, text=text)
    elif source.is_file() and source.suffix == ".jsonl":
        yield from read_lines(Document, source)
    else:
        raise UserError(f"{source}: expected {_EXPECTED}")


def read_lines(model: type[Parsed], file: Path) -> Iterator[Parsed]:
    """The lines of a JSONL file as `model`s; raises `UserError` with the file, the line and the
    field."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                if line.strip():
                    yield model.model_validate_json(line)
            except ValidationError as error:
                problem = error.errors(include_url=False, include_context=False)[0]
                field = ".".join(str(part) for part in problem["loc"]) or "line"
                raise UserError(f"{file}:{number}: {field}: {problem['msg']}") from None


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 ({error.reason} at byte {error.start})") from None


def _title(text: str) -> str:
    """The first Markdown heading, without its marks."""
    heading = re.search(r"^#+[ \t]+(.*\S)", text, re.MULTILINE)
    return heading[1].rstrip("# ") if heading else ""


def _finish(connection: sqlite3.Connection, entries: int) -> None:
    connection.execute("CREATE INDEX pages ON documents (url)")
    connection.execute("INSERT INTO words (words) VALUES ('rebuild')")
    connection.execute("INSERT INTO words (words) VALUES ('optimize')")
    if entries < COMMON_FROM:
        return
    step = -(-entries // COMMON_SAMPLE)
    seen: Counter[str] = Counter()
    sample = 0
    for (text,) in connection.execute("SELECT text FROM documents WHERE id % ? = 0", (step,)):
        seen.update({word.lower() for word in words(text)})
        sample += 1
    common = sorted(word for word, count in seen.items() if count > COMMON_SHARE * sample)
    connection.executemany("INSERT INTO common VALUES (?)", ((word,) for word in common))
