"""The sources of a split's rows: files that a pattern names, or `datasets` and the Hub.

A split is named as the data names it.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from axpo.errors import ConfigError, DataError, NoDataError
from axpo.extras import require
from axpo.folder import files_digest
from axpo.tasks.data.arrow import Batches
from axpo.tasks.data.rows import (
    BATCH,
    ArrowRows,
    Columns,
    HubRows,
    JsonArray,
    JsonLines,
    Rows,
    parquet_batches,
    parquet_columns,
)
from axpo.tasks.data.sets import SUFFIXES
from axpo.tasks.data.stream import Shard
from axpo.tasks.sample import FILES, NAME

READERS: dict[str, Callable[[Path, Columns], Rows]] = dict(
    zip(SUFFIXES, (JsonLines, JsonArray, ArrowRows, ArrowRows), strict=True)
)


class Files:
    """The files that `task.path` names: `{split}` in a name is replaced, `*` is a pattern, and
    "sample" stands for the shipped rows."""

    def __init__(self, patterns: Sequence[str], fields: Columns) -> None:
        self._patterns = [FILES if pattern == NAME else pattern for pattern in patterns]
        self._fields = fields
        for pattern in self._patterns:
            if Path(pattern).suffix not in SUFFIXES:
                names = ", ".join(SUFFIXES)
                raise ConfigError(
                    f"task.path: {pattern!r}, expected a file's name with {names}, or {NAME!r}"
                )
            if not _matches(pattern, "*"):
                names = " (one file per split: train, sft, test)" if "{split}" in pattern else ""
                raise NoDataError(
                    f"{pattern}: no such file{names}; docs/data.md says what rows are, and "
                    f"task.path={NAME} takes 20 that ship"
                )

    def rows(self, split: str) -> list[Rows]:
        """The split's parts, by number."""
        return [READERS[path.suffix](path, self._fields) for path in self._files(split)]

    def shards(self, split: str) -> list[Shard]:
        """The split's parts, as they arrive."""
        return [self._shard(path) for path in self._files(split)]

    def _shard(self, path: Path) -> Shard:
        if READERS[path.suffix] is not ArrowRows:
            raise ConfigError(
                f"task.streaming: {path} is read by line anyway; streaming is for Parquet and the "
                "Hub: remove it"
            )
        columns = parquet_columns(path, self._fields)
        count, stamp = pq.read_metadata(path).num_rows, files_digest([path])
        return Shard(str(path), partial(parquet_batches, path, columns), path.parent, count, stamp)

    def _files(self, split: str) -> list[Path]:
        found: list[Path] = []
        for pattern in self._patterns:
            if not (files := _matches(pattern, split)):
                there = ", ".join(str(path) for path in _matches(pattern, "*")) or "none"
                raise DataError(
                    f"{pattern}: no file for split {split!r}; there are {there} (task.splits maps "
                    "split names)"
                )
            found += files
        return list(dict.fromkeys(found))


def _matches(pattern: str, split: str) -> list[Path]:
    """The files of a pattern, sorted; brackets stand for themselves."""
    plain = glob.escape(pattern).replace("[*]", "*").replace("[?]", "?").replace("{split}", split)
    return [Path(name) for name in sorted(glob.glob(plain))]  # noqa: PTH207 (absolute patterns)


class Hub:
    """A data set that `datasets` loads: a Hub id, or a folder laid out like one."""

    def __init__(self, id: str, subset: str | None, revision: str | None, fields: Columns) -> None:
        require("datasets", "task.hub")
        import datasets
        from datasets.exceptions import DatasetsError

        self._id, self._fields = id, fields
        self._folder = Path(self._id) if Path(self._id).is_dir() else Path()
        options = {"path": id, "name": subset, "revision": revision}
        self._load = partial(datasets.load_dataset, **options)
        self._find = partial(datasets.load_dataset_builder, **options)
        self._errors = (OSError, ValueError, DatasetsError)

    def rows(self, split: str) -> list[Rows]:
        """The split's only part, by number."""
        with self._told(split):
            data = self._load(split=split)
        return [HubRows(data, f"{self._id} {split}", self._folder, self._fields)]

    def shards(self, split: str) -> list[Shard]:
        """The split's parts, as they arrive."""
        name = f"{self._id} {split}"
        with self._told(split):
            found = self._find()  # its hash is the commit's, or of the files' sizes and times
            data: Any = found.as_streaming_dataset(split=split)
        names = data.column_names or list(next(iter(data), {}))  # JSON tells with its first row
        columns = self._fields.top_level(names, name)
        data = data.select_columns(columns).with_format("arrow")
        count = data.num_shards

        def read(index: int) -> Batches:
            return data.shard(num_shards=count, index=index).iter(batch_size=BATCH)

        return [
            Shard(f"{name} shard {i}", partial(read, i), self._folder, stamp=str(found.hash))
            for i in range(count)
        ]

    @contextmanager
    def _told(self, split: str) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            raise DataError(
                f"task.hub: {self._id}, split {split!r}: {error} (task.subset, task.splits and "
                "task.revision choose what is loaded)"
            ) from error
