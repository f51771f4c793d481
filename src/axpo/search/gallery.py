"""Reverse search over a gallery: pictures that look the same as one, by perceptual hash.

A hash of 64 bits (`imagehash.phash`) stands for a whole picture. It finds copies of a gallery
picture that are resized, squeezed, compressed, blurred, brighter, or cropped by some 5 %. It does
not find narrower crops, turned or mirrored copies, or other pictures of the same thing: the index
knows how a picture looks, not what it shows. Hashes of windows of the pictures were tried and left
out: they find a crop only where it is off by less than 3 %.
"""

from __future__ import annotations

import sqlite3
import time
from abc import abstractmethod
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict

from axpo.errors import UserError
from axpo.extras import require
from axpo.pictures import PictureError, as_rgb, read_picture
from axpo.recorded.database import Database, open_index
from axpo.search.base import AnswerSource, Results
from axpo.search.database import BuiltIndex, new_index, read_facts
from axpo.search.index import read_lines

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
CAPTIONS = "captions.jsonl"
"""A file in the gallery's folder; its lines have a file, and a title, url and caption if any."""
BITS = 64
CUTOFF = 10
"""Bits of 64 in which a match may differ; the nearest of 400 unrelated pictures differs in 18."""
FLAT = 4.0
"""Standard deviation of grey levels (of 255) below which a picture is too plain to be found."""
THREADS = 2

_TABLE = """
CREATE TABLE pictures (id INTEGER PRIMARY KEY, title TEXT, url TEXT, caption TEXT, hash BLOB)
"""


@dataclass(frozen=True, slots=True)
class Match:
    """A gallery picture; `distance` is the number of bits (of 64) in which its hash differs."""

    title: str
    url: str
    caption: str
    distance: int


class PictureSource(AnswerSource):
    """A source of pictures."""

    @abstractmethod
    async def find(self, picture: Image.Image, results: int) -> Results[Match]:
        """At most `results` pictures that look like `picture`; raises `SourceFault`."""


class Caption(BaseModel):
    """A line of `CAPTIONS`; other fields are ignored."""

    model_config = ConfigDict(strict=True)

    file: str
    title: str = ""
    url: str = ""
    caption: str = ""


def perceptual_hash(picture: Image.Image) -> bytes | None:
    """Eight bytes, or None for a picture that is all of one shade."""
    from imagehash import phash

    grey = as_rgb(picture).convert("L")
    if float(np.asarray(grey).std()) < FLAT:
        return None
    return np.packbits(phash(grey).hash).tobytes()


def build_gallery(source: Path, out: Path) -> BuiltIndex:
    """Index the pictures in folder `source` at `out`, whole or not at all.

    A picture without a caption line has its file's name for a title and the path inside the
    folder for a url. Raises `UserError` naming the file or line that cannot be read.
    """
    start = time.perf_counter()
    require("imagehash", "--pictures")
    files = sorted(file for file in source.rglob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise UserError(f"{source}: no picture in it; expected a folder of {', '.join(SUFFIXES)}")
    captions = _captions(source)
    with new_index(out, "gallery") as index:
        index.connection.execute(_TABLE)
        for file in files:
            name = file.relative_to(source).as_posix()
            known = captions.pop(name, Caption(file=name))
            texts = (known.title or file.stem, known.url or name, known.caption)
            index.add("pictures", *texts, _file_hash(file))
        if captions:
            raise UserError(f"{source / CAPTIONS}: no picture {next(iter(captions))}")
    return BuiltIndex(index.facts, out.stat().st_size, time.perf_counter() - start)


class Gallery(PictureSource):
    """`PictureSource` over the index file `path`, whose hashes are kept in memory."""

    def __init__(self, path: Path) -> None:
        self.identity = f"gallery:{read_facts(path, 'gallery').digest}:{CUTOFF}"
        self._database = Database(path, lambda: open_index(path), THREADS)
        self._numbers: list[int] = []
        self._hashes = np.zeros((0, BITS // 8), np.uint8)

    async def start(self) -> None:
        """Read the hashes; raises `UserError` where the hashing library is missing."""
        require("imagehash", "image_search")
        rows = await self._database.run(_read_hashes)
        self._numbers = [number for number, _ in rows]
        joined = b"".join(hash for _, hash in rows)
        self._hashes = np.frombuffer(joined, np.uint8).reshape(-1, BITS // 8)

    async def find(self, picture: Image.Image, results: int) -> Results[Match]:
        """At most `results` pictures within the cutoff, nearest first; pictures that are equally
        near keep the index's order."""
        find = partial(self._find, picture=picture, results=results)
        return Results(await self._database.run(find))

    async def close(self) -> None:
        self._database.close()

    def _find(self, file: sqlite3.Connection, picture: Image.Image, results: int) -> list[Match]:
        hash = perceptual_hash(picture)
        if hash is None:
            return []
        different = self._hashes ^ np.frombuffer(hash, np.uint8)
        distances = np.unpackbits(different, axis=1).sum(axis=1)
        order = np.argsort(distances, kind="stable")
        query = "SELECT title, url, caption FROM pictures WHERE id = ?"
        matches: list[Match] = []
        for place in order[distances[order] <= CUTOFF][:results]:
            title, url, caption = file.execute(query, (self._numbers[place],)).fetchone()
            matches.append(Match(title, url, caption, int(distances[place])))
        return matches


def _file_hash(file: Path) -> bytes | None:
    try:
        return perceptual_hash(read_picture(file))
    except PictureError as error:
        raise UserError(f"{file}: {error}") from None


def _captions(source: Path) -> dict[str, Caption]:
    """The folder's caption lines by file."""
    path = source / CAPTIONS
    lines = read_lines(Caption, path) if path.is_file() else ()
    return {caption.file: caption for caption in lines}


def _read_hashes(file: sqlite3.Connection) -> list[tuple[int, bytes]]:
    query = "SELECT id, hash FROM pictures WHERE hash IS NOT NULL ORDER BY id"
    return file.execute(query).fetchall()
