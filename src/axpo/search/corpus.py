"""Search over a local corpus: an index file of `index`, ranked by BM25 with stemming.

A query is words and nothing else: no operator of the search language has a meaning in it. A
document needs only one of the words to be found; a word in the title counts for more. Stemming is
English, and spaces and punctuation separate words: text without spaces (Chinese, Japanese) is found
only by whole runs of it.
"""

from __future__ import annotations

import sqlite3
from functools import partial
from pathlib import Path

from axpo.recorded.database import Database, open_index
from axpo.search.base import Hit, PageText, Results, TextSource, shortened
from axpo.search.database import read_facts
from axpo.search.index import words

TITLE_WEIGHT = 2.0
"""The weight of a match in the title against one in the text."""
MAX_WORDS = 32
"""How many distinct words of a query are looked for."""
THREADS = 2
MARK = "**"
"""This stands around the query's words in a snippet."""
_OPEN, _CLOSE = "\x02", "\x03"
"""They stand for `MARK` while a snippet is cut: texts have asterisks of their own."""
_WORD_CHARACTERS = 7
"""A word with its space, roughly; it decides how many words make a snippet."""
_SNIPPET_WORDS = (4, 64)
"""FTS5 cuts snippets of at most 64 words."""

_RANKED = f"""
SELECT rowid FROM words WHERE words MATCH ?
ORDER BY bm25(words, {TITLE_WEIGHT}, 1.0), rowid LIMIT ?
"""
_SHOWN = f"""
SELECT documents.title, url, snippet(words, 1, '{_OPEN}', '{_CLOSE}', '…', ?)
FROM words JOIN documents ON documents.id = words.rowid
WHERE words MATCH ? AND words.rowid = ?
"""


class Corpus(TextSource):
    """The texts of the index file `path`; snippets have at most `snippet` characters."""

    def __init__(self, path: Path, snippet: int) -> None:
        self.identity = f"corpus:{read_facts(path, 'corpus').digest}:{snippet}"
        self._snippet = snippet
        self._database = Database(path, lambda: open_index(path), THREADS)

    async def search(self, query: str, results: int) -> Results[Hit]:
        find = partial(self._find, query=query, results=results)
        return Results(await self._database.run(find))

    async def page(self, url: str) -> PageText | None:
        return await self._database.run(lambda connection: _page(connection, url))

    async def close(self) -> None:
        self._database.close()

    def _find(self, connection: sqlite3.Connection, query: str, results: int) -> list[Hit]:
        match = _match(connection, query)
        if not match:
            return []
        least, most = _SNIPPET_WORDS
        length = min(max(self._snippet // _WORD_CHARACTERS, least), most)
        hits: list[Hit] = []
        for (number,) in connection.execute(_RANKED, (match, results)).fetchall():
            shown = connection.execute(_SHOWN, (length, match, number))
            title, url, snippet = shown.fetchone()
            hits.append(Hit(title, url, _cut(snippet, self._snippet)))
        return hits


def _match(connection: sqlite3.Connection, query: str) -> str:
    """The query in FTS5's language: its words, quoted, without common ones where others are left;
    empty where it has no word."""
    terms = dict(list({word.lower(): word for word in words(query)}.items())[:MAX_WORDS])
    marks = ", ".join("?" * len(terms))
    rows = connection.execute(f"SELECT word FROM common WHERE word IN ({marks})", [*terms])
    common = {word for (word,) in rows}
    rare = [word for lower, word in terms.items() if lower not in common]
    return " OR ".join(f'"{word}"' for word in rare or terms.values())


def _page(connection: sqlite3.Connection, url: str) -> PageText | None:
    query = "SELECT title, text FROM documents WHERE url = ? ORDER BY id"
    rows = connection.execute(query, (url,)).fetchall()
    return PageText(rows[0][0], url, "\n\n".join(text for _, text in rows)) if rows else None


def _cut(snippet: str, characters: int) -> str:
    """One line of at most `characters`, no mark left open."""
    line = " ".join(snippet.split())
    marks = line.count(_OPEN) + line.count(_CLOSE)
    longer = (len(MARK) - 1) * marks
    if len(line) + longer <= characters:
        text = line
    else:
        text = shortened(line, max(characters - longer - 1, 1))
    if text.count(_OPEN) > text.count(_CLOSE):
        text += _CLOSE
    return text.replace(_OPEN, MARK).replace(_CLOSE, MARK)
