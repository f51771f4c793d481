"""Building a corpus index: texts of a folder or lines of a JSONL file into one SQLite file.

SQLite's FTS5 was measured against bm25s on 1,000 to 100,000 short documents: it found known items
more often (a title's matches weigh more), builds in half the time, holds nothing in memory, lets
go of the interpreter lock while it searches, and is one file. bm25s is faster for queries with
words that most documents share; those are listed in the index and left out of queries instead.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from axpo.errors import UserError
from axpo.search.database import Facts, Summary, new_index, write_facts

SUFFIXES = (".md", ".markdown", ".txt")
"""Files of a folder that are indexed."""
COMMON_SHARE = 1 / 3
"""Words in more than this share of the documents are common; FTS5's BM25 gives a word in half of
them no weight at all."""
COMMON_FROM = 1000
"""A corpus with fewer documents has no common words: searching it takes under 2 ms anyway."""
COMMON_SAMPLE = 5000
"""Documents, evenly spread, that shares are counted on."""
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


@dataclass(frozen=True, slots=True)
class Document:
    """One text of a corpus; several may share a `url` and are then one page."""

    title: str
    url: str
    text: str


class Line(BaseModel):
    """A line of a JSONL corpus; other fields are ignored."""

    model_config = ConfigDict(strict=True)

    title: str
    url: str
    text: str


def words(text: str) -> list[str]:
    """The words of `text` in order, accents not written apart."""
    return WORD.findall(unicodedata.normalize("NFC", text))


def build_index(source: Path, out: Path) -> Summary:
    """Index folder or JSONL file `source` at `out`, whole or not at all.

    A folder gives one document a text file, its url the path inside the folder; a line of JSONL
    has title, url and text. Raises `UserError` naming the file and line that cannot be read.
    """
    start = time.perf_counter()
    digest = hashlib.sha256()
    with new_index(out, "corpus") as connection:
        connection.executescript(_TABLES)
        entries = 0
        for document in read_documents(source):
            entries += 1
            row = [unicodedata.normalize("NFC", text) for text in _fields(document)]
            digest.update(json.dumps(row).encode())
            connection.execute("INSERT INTO documents VALUES (?, ?, ?, ?)", (entries, *row))
        if not entries:
            raise UserError(f"{source}: no document in it; expected {_EXPECTED}")
        _finish(connection, entries)
        facts = Facts("corpus", digest.hexdigest()[:32], entries)
        write_facts(connection, facts)
    return Summary(facts, out.stat().st_size, time.perf_counter() - start)


_EXPECTED = f"a folder of {', '.join(SUFFIXES)} files or a .jsonl file with title, url and text"


def read_documents(source: Path) -> Iterator[Document]:
    """The documents of a folder in order of their paths, or of a JSONL file line by line."""
    if source.is_dir():
        files = (file for file in source.rglob("*") if file.suffix.lower() in SUFFIXES)
        for file in sorted(file for file in files if file.is_file()):
            text = _read(file)
            url = file.relative_to(source).as_posix()
            yield Document(_title(text) or file.stem, url, text)
    elif source.is_file() and source.suffix == ".jsonl":
        yield from _read_lines(source)
    else:
        raise UserError(f"{source}: expected {_EXPECTED}")


def _read_lines(source: Path) -> Iterator[Document]:
    with source.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                found = parse_line(Line, line, source, number)
                yield Document(found.title, found.url, found.text)


def parse_line(model: type[Parsed], line: bytes, file: Path, number: int) -> Parsed:
    """A line of JSON as `model`; raises `UserError` with the file, the line and the field."""
    try:
        return model.model_validate_json(line)
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


def _fields(document: Document) -> tuple[str, str, str]:
    return document.title, document.url, document.text


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
