"""What the rows of a benchmark are, and what differs from what its page says: for a machine with a
network, where what a page takes on trust can be looked up.

Every row is read; of pictures only headers are, so that nothing large is decoded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from axpo.errors import DataError, GradingError
from axpo.tasks.benchmarks.base import Benchmark, Source
from axpo.tasks.benchmarks.opened import source_rows
from axpo.tasks.data.pictures import picture_size
from axpo.tasks.data.rows import Rows
from axpo.tasks.grading import check_example
from axpo.wording import in_short, some

SHOWN = 3
"""Rows that are shown."""


@dataclass(slots=True)
class Checked:
    """What was found of one source of a benchmark.

    `columns` maps each column to the kinds of its values and how many rows have them. `samples` are
    the first rows, their values shortened. `pictures` counts pictures, `largest` is the width and
    height of the largest one and where it is, and `revision` the Hub's commit, if the rows come
    from there. `unused` names rows and pictures that cannot be used, and `differs` says in words
    what is not as the benchmark's page says; it is empty where all is.
    """

    benchmark: str
    source: Source
    rows: int = 0
    columns: dict[str, Counter[str]] = field(default_factory=dict[str, Counter[str]])
    samples: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    pictures: int = 0
    largest: tuple[int, int, str] | None = None
    revision: str | None = None
    unused: list[str] = field(default_factory=list[str])
    differs: list[str] = field(default_factory=list[str])


class _All:
    """All columns that there are."""

    skip = False

    def top_level(self, there: Sequence[str], source: object) -> list[str]:
        """As `axpo.tasks.data.rows.Columns` says."""
        return list(there)


def check_benchmark(benchmark: Benchmark) -> list[Checked]:
    """What each source of the benchmark holds, at its `path` or on the Hub; nothing is raised for
    what cannot be read."""
    ids: dict[str, str] = {}
    return [_checked(benchmark, source, ids) for source in benchmark.sources]


def kind(value: Any) -> str:
    """What a value is, in words: "text", "list of text", "{bytes, path}"."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(map(str, value))}}}"
    if isinstance(value, list):
        inner = list(dict.fromkeys(map(kind, value)))
        return f"list of {' or '.join(inner)}" if inner else "empty list"
    names = {str: "text", bool: "true or false", int: "whole number", type(None): "nothing"}
    return names.get(type(value), type(value).__name__)


def _checked(benchmark: Benchmark, source: Source, ids: dict[str, str]) -> Checked:
    found = Checked(benchmark.name, source)
    try:
        if benchmark.path is None:
            found.revision = _revision(source)
        parts = source_rows(benchmark.path, source, _All())
        found.rows = sum(map(len, parts))
        if found.rows != source.rows:
            found.differs.append(f"{found.rows:,} rows, expected {source.rows:,}")
        for part in parts:
            _look(benchmark, found, part, ids)
    except Exception as error:  # one set that is broken or not there stops no other
        found.differs.append(f"cannot be read: {type(error).__name__}: {error}")
    else:
        found.differs += _lacking(benchmark, found)
    return found


def _revision(source: Source) -> str | None:
    from huggingface_hub import HfApi

    return HfApi().dataset_info(source.hub, revision=source.revision).sha


def _look(benchmark: Benchmark, found: Checked, rows: Rows, ids: dict[str, str]) -> None:
    """Look at every row; equal pictures of neighbours count once."""
    last: list[Any] = []
    for index in range(len(rows)):
        row, place = rows.row(index), rows.place(index)
        for column, value in row.items():
            found.columns.setdefault(column, Counter())[kind(value)] += 1
        if len(found.samples) < SHOWN:
            found.samples.append({name: in_short(value) for name, value in row.items()})
        try:
            example = benchmark.read(row, found.source)
            check_example(example)
            if (other := ids.setdefault(example.id, place)) != place:
                raise ValueError(f"the id {example.id!r} is already at {other}")
        except (ValueError, GradingError) as error:
            found.unused.append(f"{place}: {error}")
        try:
            shown = benchmark.shown(row, row)
        except ValueError as error:
            found.unused.append(f"{place}: {error}")
            shown = []
        for value in shown if shown != last else ():
            found.pictures += 1
            try:
                size = picture_size(value, rows.folder, place)
            except DataError as error:
                found.unused.append(str(error))
            else:
                largest = found.largest or (0, 0, "")
                if size[0] * size[1] > largest[0] * largest[1]:
                    found.largest = (*size, place)
        last = shown


def _lacking(benchmark: Benchmark, found: Checked) -> Iterator[str]:
    if lacking := [name for name in benchmark.columns if name not in found.columns]:
        yield f"no column {', '.join(lacking)}"
    if not any(name in found.columns for name in benchmark.pictures):
        yield f"no column of pictures, expected {' or '.join(benchmark.pictures)}"
    if found.unused:
        yield f"{len(found.unused):,} rows or pictures cannot be used: {some(found.unused)}"
