"""Checks the rows of a split before anything is trained on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from axpo.errors import DataError
from axpo.tasks.data.fields import Fields
from axpo.tasks.data.pictures import check_picture
from axpo.tasks.data.rows import Rows

CHECKED = 100_000
"""How many rows of a split are checked when it is opened; later rows are checked when they are read
(choice)."""
WHOLE = 100
"""How many rows of a part are checked with the pictures encoded in them (choice)."""


def check_rows(
    parts: Sequence[Rows], fields: Fields, image_folder: Path | None, foreign: bool = False
) -> set[str]:
    """Return the names of the rows' graders.

    Raises `DataError` for the first row that cannot be used, a missing picture or a repeated id.
    No picture is decoded. `foreign` is as in `check_picture`.
    """
    seen: dict[str, str] = {}
    graders: set[str] = set()
    for part, index in _places(parts):
        pictures = index < WHOLE or not part.encoded
        row = part.row(index) if pictures else part.texts(index)
        place = part.place(index)
        record = fields.read(row, place, pictures)
        for picture in record.images:
            check_picture(picture, image_folder or part.folder, place, foreign)
        if record.id in seen:
            raise DataError(
                f"{place}: id: {record.id!r} is already at {seen[record.id]}; expected each once "
                "(task.columns.id names the column)"
            )
        seen[record.id] = place
        graders.add(record.grading)
    return graders


def _places(parts: Sequence[Rows]) -> Iterator[tuple[Rows, int]]:
    left = CHECKED
    for part in parts:
        for index in range(min(left, len(part))):
            yield part, index
        left -= min(left, len(part))
