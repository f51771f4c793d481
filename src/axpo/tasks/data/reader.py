"""Reads the data set that a recipe names: the rows of a split as examples."""

from __future__ import annotations

import bisect
from itertools import accumulate
from pathlib import Path

from axpo.tasks.base import EPOCH, Example
from axpo.tasks.contents import Contents
from axpo.tasks.data.check import check_rows
from axpo.tasks.data.contents import rows_contents, shards_contents
from axpo.tasks.data.fields import Fields, Row
from axpo.tasks.data.pictures import open_pictures
from axpo.tasks.data.rows import Rows
from axpo.tasks.data.sources import Files, Hub
from axpo.tasks.data.stream import RowStream
from axpo.tasks.data.task import DataTask


class Reader:
    """The examples of `settings`; a split is opened and checked when first asked for.

    Raises `ConfigError` and `DataError`.
    """

    def __init__(self, settings: DataTask) -> None:
        self._settings = settings
        self._fields = Fields(settings.columns, settings.grading)
        self._pictures = Path(settings.image_folder) if settings.image_folder else None
        self._foreign = settings.hub is not None
        self._source: Files | Hub
        if settings.hub is not None:
            self._source = Hub(settings.hub, settings.subset, settings.revision, self._fields)
        else:
            self._source = Files(settings.path, self._fields)
        self._parts: dict[str, list[Rows]] = {}
        self._graders: dict[str, set[str]] = {}
        self._streams: dict[str, RowStream] = {}
        self._contents: dict[str, Contents] = {}

    def size(self, split: str) -> int | None:
        """The number of examples; None if the split is streamed."""
        if split in self._settings.streaming:
            return None
        return sum(len(part) for part in self._split(split))

    def example(self, split: str, index: int) -> Example:
        """The `index`-th row; raises `IndexError` past the end.

        In a streamed split it is the row at position `index % EPOCH` in the order of seed
        `index // EPOCH`.
        """
        if split in self._settings.streaming:
            seed, position = divmod(index, EPOCH)
            return self._example(*self._stream(split).row(position, seed))
        parts = self._split(split)
        ends = list(accumulate(len(part) for part in parts))
        if not 0 <= index < ends[-1]:
            raise IndexError(f"no example {index} in {split}, it has {ends[-1]}")
        number = bisect.bisect_right(ends, index)
        part, inner = parts[number], index - ends[number] + len(parts[number])
        return self._example(part.row(inner), part.place(inner), part.folder)

    def graders(self, split: str) -> set[str]:
        """Those that rows name or have by default; the setting's where the split is streamed."""
        if split not in self._settings.streaming:
            self._split(split)
        chosen = self._settings.grading
        return self._graders.get(split, set() if chosen is None else {chosen})

    def contents(self, split: str) -> Contents:
        """What the split holds; of a streamed one only its shards are looked at."""
        if split not in self._contents:
            if split in self._settings.streaming:
                found = shards_contents(self._source.shards(self._name_of(split)))
            else:
                parts = self._split(split)
                found = rows_contents(parts, self._fields, self._pictures, self._foreign)
            self._contents[split] = found
        return self._contents[split]

    def _example(self, row: Row, place: str, folder: Path) -> Example:
        record = self._fields.read(row, place)
        return Example(
            id=record.id,
            question=record.question,
            images=open_pictures(record.images, self._pictures or folder, place, self._foreign),
            answer=record.answers[0],
            alternatives=record.answers[1:],
            grading=record.grading,
            demonstration=record.demonstration,
            options=record.options,
            cluster=record.cluster,
            provenance=record.provenance or self._place(place),
            meta=record.meta,
        )

    def _place(self, place: str) -> str:
        """A row's place as its provenance, with the settings' revision of a data set of the Hub."""
        revision = self._settings.revision
        return place if revision is None else f"{place}, revision {revision}"

    def _split(self, split: str) -> list[Rows]:
        if split not in self._parts:
            parts = self._source.rows(self._name_of(split))
            graders = check_rows(parts, self._fields, self._pictures, self._foreign)
            self._parts[split], self._graders[split] = parts, graders
        return self._parts[split]

    def _stream(self, split: str) -> RowStream:
        if split not in self._streams:
            shards = self._source.shards(self._name_of(split))
            self._streams[split] = RowStream(shards, self._settings.window)
        return self._streams[split]

    def _name_of(self, split: str) -> str:
        return self._settings.splits.get(split, split)
