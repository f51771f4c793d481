"""Reads the data sets that a recipe names: the rows of a split as examples."""

from __future__ import annotations

import bisect
import warnings
from collections.abc import Iterator
from functools import partial
from itertools import accumulate

from axpo.errors import ConfigError, DataError, DataWarning
from axpo.tasks.base import EPOCH, Example, Stored
from axpo.tasks.contents import Contents
from axpo.tasks.data.check import SEEN, Sieve
from axpo.tasks.data.contents import rows_contents, shards_contents
from axpo.tasks.data.loaded import DataSet, Part
from axpo.tasks.data.sets import MixedSet
from axpo.tasks.data.stream import Keep, RowStream, each_row
from axpo.tasks.data.task import DataTask

REPEATED = ("train", "sft")
"""The splits in which a set of a mixture is repeated."""


class Reader:
    """The examples of `settings`; a split is opened and checked when first asked for.

    Raises `ConfigError` and `DataError`.
    """

    def __init__(self, settings: DataTask) -> None:
        self._settings = settings
        skip = settings.bad_rows == "skip"
        self._share = settings.bad_share if skip else None
        self._mixed: list[tuple[MixedSet, DataSet]] = [
            (one, DataSet(one.over(settings), one.name, skip)) for one in settings.sets
        ]
        self._only = None if settings.sets else DataSet(settings, "", skip)
        self._parts: dict[str, list[Part]] = {}
        self._sieves: dict[str, list[Sieve]] = {}
        self._streams: dict[str, RowStream] = {}
        self._contents: dict[str, Contents] = {}
        self._unreadable: dict[str, set[str]] = {}

    def size(self, split: str) -> int | None:
        """The number of examples; None if the split is streamed."""
        if split in self._settings.streaming:
            return None
        return sum(len(part) for part in self._split(split))

    def example(self, split: str, index: int) -> Example:
        """The `index`-th row that is used; raises `IndexError` past the end.

        In a streamed split it is the row at position `index % EPOCH` in the order of seed
        `index // EPOCH`. Where bad rows are skipped, the next row stands for one whose pictures
        cannot be read.
        """
        while True:
            try:
                return self._example(split, index)
            except DataError as error:
                size = self.size(split)
                self._note_unreadable(split, error, SEEN if size is None else size)
                index = index + 1 if size is None else (index + 1) % size

    def _example(self, split: str, index: int) -> Example:
        if split in self._settings.streaming:
            seed, position = divmod(index, EPOCH)
            row, place, folder = self._stream(split).row(position, seed)
            return self._sets(split)[0].example(row, place, folder)
        parts = self._split(split)
        ends = list(accumulate(len(part) for part in parts))
        if not 0 <= index < ends[-1]:
            raise IndexError(f"no example {index} in {split}, it has {ends[-1]}")
        number = bisect.bisect_right(ends, index)
        return parts[number].example(index - ends[number] + len(parts[number]))

    def _note_unreadable(self, split: str, error: DataError, rows: int) -> None:
        """Raise the error unless bad rows are skipped and it is among the share that may be."""
        seen = self._unreadable.setdefault(split, set())
        first = not seen
        seen.add(str(error))
        if self._share is None or len(seen) > self._share * rows:
            raise error
        if first:
            warnings.warn(
                f"{split} split: {error}. The next row stands for this one, and for others like it",
                DataWarning,
                stacklevel=2,
            )

    def stored(self, split: str) -> Iterator[Stored]:
        """Every row that is used once, a streamed split's too."""
        if split in self._settings.streaming:
            (data,) = self._sets(split)
            shards = data.source.shards(data.split(split))
            for row, place, folder in each_row(shards, self._keep(split, data)):
                yield data.stored(row, place, folder)
        else:
            for part in dict.fromkeys(self._split(split)):  # repeated ones once
                yield from part.stored()

    def graders(self, split: str) -> set[str]:
        """Those that rows name or have by default; the setting's where the split is streamed."""
        if split in self._settings.streaming:
            chosen = self._settings.grading
            return set() if chosen is None else {chosen}
        self._split(split)
        return {name for sieve in self._sieves[split] for name in sieve.graders}

    def notes(self, split: str) -> str:
        """A line per set: how many rows it has, how many are left out and why."""
        if split not in self._settings.streaming:
            self._split(split)
        return "\n".join(map(str, self._sieves.get(split, ())))

    def contents(self, split: str) -> Contents:
        """What the split holds; of a streamed one only its shards are looked at."""
        if split not in self._contents:
            if split in self._settings.streaming:
                (data,) = self._sets(split)
                found = shards_contents(data.source.shards(data.split(split)))
            else:
                found = rows_contents(list(dict.fromkeys(self._split(split))))
            self._contents[split] = found
        return self._contents[split]

    def _sets(self, split: str) -> list[DataSet]:
        """The sets that are part of the split."""
        if self._only is not None:
            return [self._only]
        found = [data for one, data in self._mixed if not one.only or split in one.only]
        if not found:
            raise ConfigError(f"task.sets: none is part of the split {split!r} (their only)")
        return found

    def _split(self, split: str) -> list[Part]:
        if split not in self._parts:
            repeats = {one.name: one.repeat for one, _ in self._mixed if split in REPEATED}
            parts: list[Part] = []
            sieves: list[Sieve] = []
            for data in self._sets(split):
                sieve = Sieve(data, split, self._share)
                rows = data.source.rows(data.split(split))
                found = [Part(data, one, sieve.kept(one)) for one in rows]
                sieve.end()
                sieves.append(sieve)
                parts += found * repeats.get(data.name, 1)
            self._parts[split], self._sieves[split] = parts, sieves
        return self._parts[split]

    def _stream(self, split: str) -> RowStream:
        if split not in self._streams:
            (data,) = self._sets(split)
            shards = data.source.shards(data.split(split))
            keep = self._keep(split, data)
            self._streams[split] = RowStream(shards, self._settings.window, keep)
        return self._streams[split]

    def _keep(self, split: str, data: DataSet) -> Keep | None:
        """What looks at the rows of a streamed split, where some may be left out."""
        if self._share is None and not data.settings.where:
            return None
        sieve = Sieve(data, split, self._share)
        self._sieves[split] = [sieve]
        return partial(sieve.arrives, check=self._share is not None)
