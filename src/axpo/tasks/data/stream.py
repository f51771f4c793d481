"""A split's rows as they arrive, in an order that depends on nothing but the seed.

Shards (files, or what `datasets` calls shards) come in a new seeded order each epoch, and their
rows pass through a window: a number of rows is held, shuffled by the seed and given out before the
next ones are read. So the row at a position is a pure function of data, window, seed and position.
A run that goes on reads past the rows that it has had (no picture is decoded, no row becomes
Python's) and needs no state in its checkpoints. A shuffle buffer, which draws a row and replaces
it, mixes as far but could not be resumed in this way: its contents are the state.
"""

from __future__ import annotations

import random
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from axpo.errors import DataError
from axpo.tasks.data.arrow import Batches, Layout, Row, chunks, without_bytes


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of a split: its `name` for a reader and in ids, a function that reads its rows from
    the beginning, and the folder where relative paths of pictures start. `count` is its number of
    rows, if that is known, and `stamp` tells one content of it from another."""

    name: str
    open: Callable[[], Batches]
    folder: Path
    count: int | None = None
    stamp: str = ""


Keep = Callable[[Row, str, Path], bool]
"""Whether a row is used, given without encoded pictures, with its place and its shard's folder."""


@dataclass(frozen=True, slots=True)
class Window:
    """Rows of a shard from number `start` on, the order in which those that are used are given out,
    and the position of the first of them."""

    shard: Shard
    start: int
    rows: pa.Table
    order: Sequence[int]
    position: int

    @property
    def end(self) -> int:
        """The position after the last row."""
        return self.position + len(self.order)


class RowStream:
    """Rows by position in a seed's endless order; going forward is cheap, going back starts
    again."""

    def __init__(self, shards: Sequence[Shard], size: int, keep: Keep | None = None) -> None:
        self._shards = shards
        self._size = size
        self._keep = keep
        self._seed: int | None = None
        self._reader: list[Iterator[Window]] = []
        # Threads of a shard that is still open would abort the process as it exits.
        weakref.finalize(self, self._reader.clear)
        self._window: Window | None = None

    def row(self, position: int, seed: int) -> tuple[Row, str, Path]:
        """The row at `position` (from 0) in the seed's order, its place, and its shard's folder."""
        window = self._window
        if window is None or seed != self._seed or position < window.position:
            self._seed, self._reader[:] = seed, [_read(self._shards, self._size, seed, self._keep)]
            window = next(self._reader[0])
        while position >= window.end:
            window = next(self._reader[0])
        self._window = window
        index = window.order[position - window.position]
        place = f"{window.shard.name} row {window.start + index}"
        return Layout(window.rows.schema).row(window.rows, index), place, window.shard.folder


def _read(shards: Sequence[Shard], size: int, seed: int, keep: Keep | None) -> Iterator[Window]:
    """One window after another, endlessly."""
    epoch, position = 0, 0
    while True:
        before = position
        for number in _shuffled(len(shards), f"{seed}/{epoch}"):
            start = 0
            for rows in chunks(shards[number].open(), size):
                order = _shuffled(rows.num_rows, f"{seed}/{epoch}/{number}/{start}")
                if keep is not None:
                    kept = _kept(shards[number], start, rows, keep)
                    order = [index for index in order if index in kept]
                yield Window(shards[number], start, rows, order, position)
                start += rows.num_rows
                position += len(order)
        if position == before:
            names = ", ".join(shard.name for shard in shards)
            raise DataError(f"{names}: no rows; expected at least one")
        epoch += 1


def each_row(shards: Iterable[Shard], keep: Keep | None) -> Iterator[tuple[Row, str, Path]]:
    """Every row that is used once, with its place and its shard's folder, in the shards' order."""
    for shard in shards:
        start = 0
        for rows in shard.open():
            kept = range(rows.num_rows) if keep is None else sorted(_kept(shard, start, rows, keep))
            read = Layout(rows.schema)
            for index in kept:
                yield read.row(rows, index), f"{shard.name} row {start + index}", shard.folder
            start += rows.num_rows


def _kept(shard: Shard, start: int, rows: pa.RecordBatch | pa.Table, keep: Keep) -> set[int]:
    """The numbers within a window of the rows that are used."""
    light = Layout(rows.schema).rows(without_bytes(rows))
    places = (f"{shard.name} row {start + index}" for index in range(len(light)))
    return {
        index
        for index, (row, place) in enumerate(zip(light, places, strict=True))
        if keep(row, place, shard.folder)
    }


def _shuffled(count: int, seed: str) -> list[int]:
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order
