"""What pictures are compared by, known again by the content of their files.

Decoding takes nearly all of the time that a comparison takes, so what was found of a picture's
encoded bytes is kept in the cache folder, in a file for each version of Pillow, which may decode
other pixels.
"""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import PIL
from PIL import Image

from axpo.folder import cache_folder
from axpo.pictures import (
    PictureError,
    as_rgb,
    check_shape,
    picture_digest,
    read_picture,
    shrunk,
)
from axpo.search.gallery import perceptual_hash

LOOKED_AT = 128 * 128
"""Pixels at most of which the perceptual hash is taken (choice): it looks at 32 x 32 of them."""
BATCH = 500
"""Pictures that are kept at a time."""
_STRIPES = 64
_TABLE = "CREATE TABLE IF NOT EXISTS prints (content BLOB PRIMARY KEY, print BLOB) WITHOUT ROWID"


@dataclass(frozen=True, slots=True)
class Print:
    """A picture: the hash of its RGB pixels, and the 64 bits of what it looks like."""

    digest: bytes
    look: int


class Prints:
    """The prints of pictures. All methods may be called from any thread."""

    def __init__(self) -> None:
        self._file = _open(cache_folder("pictures") / f"prints-1-pillow-{PIL.__version__}.sqlite")
        self._new: dict[bytes, bytes] = {}
        self._lock = Lock()
        self._stripes = [Lock() for _ in range(_STRIPES)]

    def of(self, picture: Path | bytes | Image.Image) -> Print | None:
        """The print of a picture, its file or its encoded bytes; None for a picture of one shade,
        which is like every other. Raises `PictureError`."""
        if isinstance(picture, Image.Image):
            return _print(_stored(as_rgb(picture)))
        try:
            encoded = picture if isinstance(picture, bytes) else picture.read_bytes()
        except OSError as error:
            raise PictureError(str(error)) from error
        content = hashlib.blake2b(encoded, digest_size=16).digest()
        with self._stripes[content[0] % _STRIPES]:  # equal pictures side by side are decoded once
            found = self._known(content)
            if found is None:
                found = _stored(read_picture(encoded))
                self._keep(content, found)
        return _print(found)

    def close(self) -> None:
        """Keep what is new."""
        with self._lock:
            self._write()
            self._file.close()

    def _known(self, content: bytes) -> bytes | None:
        with self._lock:
            if (found := self._new.get(content)) is not None:
                return found
            with suppress(sqlite3.Error):
                query = "SELECT print FROM prints WHERE content = ?"
                row = self._file.execute(query, (content,)).fetchone()
                return None if row is None else row[0]
        return None

    def _keep(self, content: bytes, found: bytes) -> None:
        with self._lock:
            self._new[content] = found
            if len(self._new) >= BATCH:
                self._write()

    def _write(self) -> None:
        with suppress(sqlite3.Error), self._file:  # without it, it only takes longer
            self._file.executemany("INSERT OR IGNORE INTO prints VALUES (?, ?)", self._new.items())
        self._new.clear()


def _open(path: Path) -> sqlite3.Connection:
    """The file, or one in memory where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = sqlite3.connect(path, timeout=30, check_same_thread=False)
        file.execute(_TABLE)
    except (sqlite3.Error, OSError):
        file = sqlite3.connect(":memory:", check_same_thread=False)
        file.execute(_TABLE)
    return file


def _stored(rgb: Image.Image) -> bytes:
    """16 bytes of the pixels' hash and eight of the perceptual one; nothing for a plain picture."""
    check_shape(*rgb.size)
    look = perceptual_hash(shrunk(rgb, LOOKED_AT))
    return b"" if look is None else bytes.fromhex(picture_digest(rgb)) + look


def _print(stored: bytes) -> Print | None:
    return Print(stored[:16], int.from_bytes(stored[16:])) if stored else None
