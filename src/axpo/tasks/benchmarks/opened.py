"""The rows of a benchmark, opened and checked as a whole.

A row's texts and its pictures are read apart, so that checking all rows reads no encoded picture.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from axpo.errors import DataError, GradingError
from axpo.tasks.base import Example, Stored
from axpo.tasks.benchmarks.base import Benchmark, Row, Source, text_of
from axpo.tasks.contents import Contents, checksum
from axpo.tasks.data.pictures import check_picture, open_pictures, picture_source
from axpo.tasks.data.rows import Columns, Rows
from axpo.tasks.data.sources import Files, Hub
from axpo.tasks.grading import check_example


class _Columns:
    """The columns that are read: those of `names` that are there, of which one or all must be."""

    skip = False

    def __init__(self, names: Sequence[str], all_of: bool) -> None:
        self._names, self._all_of = names, all_of

    def top_level(self, there: Sequence[str], source: object) -> list[str]:
        """As `axpo.tasks.data.rows.Columns` says."""
        found = [name for name in self._names if name in there]
        if len(found) < (len(self._names) if self._all_of else 1):
            lacking = [name for name in self._names if name not in there]
            raise DataError(
                f"{source}: no column {' or '.join(map(repr, lacking))}; there are "
                f"{', '.join(there)}: these are not the benchmark's rows"
            )
        return found


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    source: Source
    texts: Rows
    pictures: Rows


class Opened:
    """The questions of a benchmark by number.

    Raises `DataError` for a number of rows that is not the source's, for the first row that cannot
    be used, and for an id that is there twice.
    """

    def __init__(self, benchmark: Benchmark) -> None:
        self._benchmark = benchmark
        self._parts = [part for source in benchmark.sources for part in self._open(source)]
        self._ends = list(accumulate(len(part.texts) for part in self._parts))
        self._last: tuple[list[Any], tuple[Image.Image, ...]] = [], ()
        self.graders: set[str] = set()
        self._ids: dict[str, str] = {}
        for part in self._parts:
            for index in range(len(part.texts)):
                self._check(part, index)

    def __len__(self) -> int:
        return self._ends[-1]

    def example(self, index: int) -> Example:
        """The `index`-th question; equal pictures of neighbours are one object, decoded once."""
        if not 0 <= index < len(self):
            raise IndexError(f"no question {index}, there are {len(self)}")
        number = bisect.bisect_right(self._ends, index)
        part, index = self._parts[number], index - (self._ends[number - 1] if number else 0)
        place = part.texts.place(index)
        values = self._pictures(part, index, part.pictures.row(index))
        if values != self._last[0]:
            self._last = values, open_pictures(values, part.pictures.folder, place, foreign=True)
        revision = part.source.revision if self._benchmark.path is None else None
        provenance = place if revision is None else f"{place}, revision {revision}"
        return replace(self._read(part, index), images=self._last[1], provenance=provenance)

    def stored(self) -> Iterator[Stored]:
        """All rows; a page whose `question` is none of its columns gives the prompt for it."""
        column = self._benchmark.question
        bare = column in self._benchmark.columns
        for part in self._parts:
            for index in range(len(part.texts)):
                found, place = self._read(part, index), part.texts.place(index)
                asked = text_of(part.texts.row(index), column) if bare else found.question
                values = self._pictures(part, index, part.pictures.row(index))
                pictures = [picture_source(v, part.pictures.folder, place, True) for v in values]
                yield Stored(place, found.id, asked, found.options, tuple(pictures))

    @cached_property
    def contents(self) -> Contents:
        """The texts of all rows, and what is known of encoded pictures without reading them."""
        places = [(part, index) for part in self._parts for index in range(len(part.texts))]
        sums = {name: np.zeros(len(places), np.uint32) for name in self._benchmark.columns}
        for number, (part, index) in enumerate(places):
            row = part.texts.row(index)  # of a .jsonl file with its encoded pictures
            for name, column in sums.items():
                column[number] = checksum(row.get(name))
        files: dict[str, int] = {}
        for part in self._parts:
            files |= part.pictures.encoded_pictures()
        return Contents(tuple(self._ids), sums, files=files)

    def _open(self, source: Source) -> list[_Part]:
        texts = self._rows(source, self._benchmark.columns, all_of=True)
        if (count := sum(map(len, texts))) != source.rows:
            raise DataError(
                f"{texts[0].name}: {count} rows, expected the {source.rows} of {source.hub}, split "
                f"{source.split!r}; with other rows the figures are another benchmark's"
            )
        pictures = self._rows(source, self._benchmark.pictures, all_of=False)
        return [_Part(source, *both) for both in zip(texts, pictures, strict=True)]

    def _rows(self, source: Source, names: Sequence[str], all_of: bool) -> list[Rows]:
        return source_rows(self._benchmark.path, source, _Columns(names, all_of))

    def _read(self, part: _Part, index: int) -> Example:
        try:
            found = self._benchmark.read(part.texts.row(index), part.source)
            check_example(found)
        except (ValueError, GradingError) as error:
            raise DataError(f"{part.texts.place(index)}: {error}") from error
        return found

    def _check(self, part: _Part, index: int) -> None:
        found, place = self._read(part, index), part.texts.place(index)
        if found.id in self._ids:
            raise DataError(
                f"{place}: the id {found.id!r} is already at {self._ids[found.id]}; expected each "
                "once"
            )
        self._ids[found.id] = place
        self.graders.add(found.grading)
        values = self._pictures(part, index, part.pictures.light(index))
        if not part.pictures.encoded_pictures():  # paths, or base64
            for value in values:
                check_picture(value, part.pictures.folder, place, foreign=True)

    def _pictures(self, part: _Part, index: int, pictures: Row) -> list[Any]:
        try:
            return self._benchmark.shown(part.texts.row(index), pictures)
        except ValueError as error:
            raise DataError(f"{part.texts.place(index)}: {error}") from error


def source_rows(path: str | None, source: Source, columns: Columns) -> list[Rows]:
    """The parts of a source, on the Hub or at a benchmark's `path`; raises `DataError`."""
    if path is None:
        return Hub(source.hub, source.subset, source.revision, columns).rows(source.split)
    if Path(path).is_dir():
        return Hub(path, source.subset, None, columns).rows(source.split)
    return Files([path], columns).rows(source.split)
