"""A split's rows by number, from files or from the Hub, whatever their size.

Nothing is held in memory whole. A JSONL file is an index of where its lines begin. A Parquet file
cannot be read by row (a row group may be the whole file), so the columns that are used are copied
once, a few rows at a time, to an Arrow file in the cache folder, which is memory-mapped; `datasets`
does the same with what it loads from the Hub.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from axpo.tasks.base import DataError
from axpo.tasks.data.fields import Fields, Row

BATCH = 64
"""Rows of a batch in the Arrow copy, and rows that are copied at a time."""
BUFFER = 1 << 20


class Rows(Protocol):
    """Rows by number, from 0."""

    name: str
    folder: Path
    """Where relative paths of pictures start."""
    encoded: bool
    """Whether there are encoded pictures, which `texts` leaves out."""

    def __len__(self) -> int: ...

    def row(self, index: int) -> Row: ...

    def texts(self, index: int) -> Row:
        """As `row` without encoded pictures, which is much less to read."""
        ...

    def place(self, index: int) -> str:
        """Where the row stands, for a reader."""
        ...


class JsonRows:
    """The lines of a .jsonl file, or the elements of the array in a .json file."""

    def __init__(self, path: Path, fields: Fields) -> None:
        self.name, self.folder, self.encoded = str(path), path.parent, False
        self._path = path
        self._starts = array("q")
        self._numbers = array("q")
        self._array: list[Any] | None = None
        names: dict[str, None] = {}
        try:
            if path.suffix == ".json":
                self._array = _json_array(path)
                rows = iter(self._array)
            else:
                rows = self._index()
            for row in rows:
                names |= dict.fromkeys(row)
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: {error}") from error
        if not len(self):
            raise DataError(f"{path}: no rows; expected at least one")
        fields.top_level(list(names), path)

    def __len__(self) -> int:
        return len(self._starts) if self._array is None else len(self._array)

    def row(self, index: int) -> Row:
        if self._array is not None:
            return self._array[index]
        with self._path.open("rb") as file:
            file.seek(self._starts[index])
            return json.loads(file.readline())

    def texts(self, index: int) -> Row:
        return self.row(index)

    def place(self, index: int) -> str:
        if self._array is not None:
            return f"{self._path} row {index}"
        return f"{self._path}:{self._numbers[index]}"

    def _index(self) -> Iterator[dict[str, Any]]:
        """Note where each line begins; gives them parsed, one after another."""
        start = 0
        with self._path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    self._starts.append(start)
                    self._numbers.append(number)
                    yield _parsed(line, f"{self._path}:{number}")
                start += len(line)


class ArrowRows:
    """Rows of Arrow batches that are memory-mapped: a Parquet file's copy."""

    def __init__(self, path: Path, fields: Fields) -> None:
        self.name, self.folder = str(path), path.parent
        columns = parquet_columns(path, fields)
        self._file = pa.ipc.open_file(pa.memory_map(str(arrow_copy(path, columns))))
        self._size = pq.read_metadata(path).num_rows
        self._texts = _texts(self._file.schema, fields)
        self.encoded = len(self._texts) < len(columns)

    def __len__(self) -> int:
        return self._size

    def row(self, index: int) -> Row:
        batch, place = divmod(index, BATCH)
        return self._file.get_batch(batch).slice(place, 1).to_pylist()[0]

    def texts(self, index: int) -> Row:
        batch, place = divmod(index, BATCH)
        return self._file.get_batch(batch).select(self._texts).slice(place, 1).to_pylist()[0]

    def place(self, index: int) -> str:
        return f"{self.name} row {index}"


class HubRows:
    """A split that `datasets` has prepared on this machine (`datasets.Dataset`)."""

    def __init__(self, data: Any, name: str, folder: Path, fields: Fields) -> None:
        self.name, self.folder = name, folder
        columns = fields.top_level(data.column_names, name)
        # As Arrow: pictures stay encoded, to be decoded as those of every other source.
        self._data = data.select_columns(columns).with_format("arrow")
        texts = _texts(self._data.features.arrow_schema, fields)
        self.encoded = len(texts) < len(columns)
        self._texts = self._data.select_columns(texts)

    def __len__(self) -> int:
        return len(self._data)

    def row(self, index: int) -> Row:
        return self._data[index].to_pylist()[0]

    def texts(self, index: int) -> Row:
        return self._texts[index].to_pylist()[0]

    def place(self, index: int) -> str:
        return f"{self.name} row {index}"


def parquet_columns(path: Path, fields: Fields) -> list[str]:
    """The columns of a Parquet file that are read; raises `DataError`."""
    try:
        return fields.top_level(pq.read_schema(path).names, path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: {error}") from error


def parquet_batches(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """A Parquet file from beginning to end, `BATCH` rows at a time, a page a column in memory."""
    with pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER) as file:
        yield from file.iter_batches(BATCH, columns=list(columns), use_threads=False)


def arrow_copy(path: Path, columns: Sequence[str]) -> Path:
    """The Arrow copy of a Parquet file's `columns`, made where there is none of this version."""
    about = path.stat()
    key = [str(path.resolve()), about.st_size, about.st_mtime_ns, list(columns), BATCH]
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "axpo" / "data"
    copy = base / f"{path.stem}-{name}.arrow"
    if copy.is_file():
        return copy
    base.mkdir(parents=True, exist_ok=True)
    partial = copy.with_suffix(f".{os.getpid()}.partial")
    try:
        batches = parquet_batches(path, columns)
        schema = pa.schema([pq.read_schema(path).field(name) for name in columns])
        with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, schema) as out:
            for batch in batches:
                out.write_batch(batch)
        partial.replace(copy)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: copying it to {copy}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
    return copy


def _texts(schema: pa.Schema, fields: Fields) -> list[str]:
    """Names of the columns that are read for more than encoded pictures."""
    return [
        column.name
        for column in schema
        if not (_holds_bytes(column.type) and fields.only_pictures(column.name))
    ]


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return True
    return any(_holds_bytes(kind.field(i).type) for i in range(kind.num_fields))


def _json_array(path: Path) -> list[Any]:
    rows = _parse(path.read_bytes(), str(path))
    if not isinstance(rows, list):
        raise DataError(f"{path}: got {type(rows).__name__}, expected an array of objects")
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f"{path} row {index}: got {type(row).__name__}, expected an object")
    return rows


def _parsed(line: bytes, place: str) -> dict[str, Any]:
    row = _parse(line, place)
    if not isinstance(row, dict):
        raise DataError(f"{place}: got {type(row).__name__}, expected an object")
    return row


def _parse(text: bytes, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: not JSON: {error}") from None
