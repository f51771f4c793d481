"""Finds the file or the bytes of a picture from what a row holds for it.

The pictures of a row are foreign input, which `axpo.pictures` reads with care. Nothing is fetched
from a network.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from axpo.errors import DataError
from axpo.pictures import PictureError, check_shape, read_picture, read_size
from axpo.wording import in_short

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.I)
_DATA = re.compile(r"data:[\w/+.-]*;base64,")
_BASE64 = ("/9j/", "iVBORw0KGgo", "UklGR", "R0lGOD", "Qk", "SUkqA", "TU0AK")
"""The beginnings of JPEG, PNG, WEBP, GIF, BMP and TIFF in base64."""
_VIDEO = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")
NO_VIDEO = "only pictures are shown: leave such rows out (task.where, or task.bad_rows = 'skip')"
_SHORTEST = 64
"""A text with fewer characters is a path even if it begins like base64."""


def flat(value: Any) -> list[Any]:
    """The pictures in a cell: one, a list or none; empty places are left out."""
    values = value if isinstance(value, list | tuple) else [value]
    return [one for one in values if one is not None and one != ""]


def check_picture(value: Any, folder: Path, place: str, foreign: bool = False) -> None:
    """Raise `DataError` for what is wrong before the picture is read: no such file, or an address.

    The rows of a `foreign` data set may name only files below `folder`: any other file would bring
    the user's own pictures into the run.
    """
    source = picture_source(value, folder, place, foreign)
    if isinstance(source, Path) and not _is_file(source):
        raise DataError(
            f"{place}: images: no file {str(source)!r} (task.image_folder sets where paths start)"
        )


def picture_file(value: Any, folder: Path, place: str, foreign: bool) -> Path | None:
    """The picture's file; None for an encoded picture. Raises as `check_picture` does."""
    source = picture_source(value, folder, place, foreign)
    return source if isinstance(source, Path) else None


def open_pictures(
    values: Sequence[Any], folder: Path, place: str, foreign: bool = False
) -> tuple[Image.Image, ...]:
    """Decode all pictures; raises `DataError` as `check_picture` does, and for unreadable
    pictures."""
    return tuple(_open(picture_source(value, folder, place, foreign), place) for value in values)


def picture_size(value: Any, folder: Path, place: str) -> tuple[int, int]:
    """Width and height of a picture of a foreign data set by its header; raises `DataError`, also
    for a picture that `open_pictures` would not decode."""
    with _told(picture_source(value, folder, place, foreign=True), place) as source:
        size = read_size(source)
        check_shape(*size)
        return size


def picture_source(value: Any, folder: Path, place: str, foreign: bool) -> Path | bytes:
    """The file or the encoded bytes of a picture. Raises `DataError` as `check_picture` does, but
    not for a missing file."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not value:
        raise DataError(
            f"{place}: images: got {in_short(value)}, expected a path, bytes, base64 or "
            "{bytes, path}"
        )
    if value.lower().endswith(_VIDEO):
        raise DataError(f"{place}: video: {in_short(value)} is a video; {NO_VIDEO}")
    if found := _DATA.match(value):
        return _decode(value[found.end() :], place)
    if _URL.match(value) and not value.startswith("file://"):
        raise DataError(
            f"{place}: images: {in_short(value)}: pictures are not fetched from addresses, so that "
            "a run does not depend on them; download them and give paths"
        )
    if len(value) >= _SHORTEST and value.startswith(_BASE64):
        return _decode(value, place)
    file = folder / value.removeprefix("file://")
    if foreign and not file.resolve().is_relative_to(folder.resolve()):
        raise DataError(
            f"{place}: images: {in_short(value)} lies outside {folder}; rows of a data set of the "
            "Hub may name files below task.image_folder only"
        )
    return file


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long for the system
        return False


def _decode(text: str, place: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except binascii.Error as error:
        raise DataError(f"{place}: images: base64 {in_short(text)}: {error}") from None


def _open(source: Path | bytes, place: str) -> Image.Image:
    with _told(source, place):
        image = read_picture(source)
        check_shape(*image.size)
        return image


@contextmanager
def _told(source: Path | bytes, place: str) -> Iterator[Path | bytes]:
    try:
        yield source
    except PictureError as error:
        name = str(source) if isinstance(source, Path) else f"{len(source)} bytes"
        raise DataError(f"{place}: images: {name}: {error}") from error
