"""A split's rows by number, from files or from the Hub, whatever their size.

No file but a .json array is held in memory as a whole. A JSONL file is an index of where its lines
begin. A Parquet file cannot be read by row (a row group may be the whole file), so the columns that
are used are copied once, a few rows at a time, to an Arrow file in the cache folder, which is
memory-mapped; `datasets` does the same with what it loads from the Hub.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from axpo.errors import DataError
from axpo.folder import cache_folder, whole_file
from axpo.tasks.contents import checksum
from axpo.tasks.data.arrow import Layout, Row, chunks, encoded_columns, without_bytes

BATCH = 64
"""How many rows a batch of the Arrow copy has at most, and how many rows are copied at a time."""
BATCH_BYTES = 1 << 24
"""About how many bytes a batch has at most, unless a row has more: 8K pictures have 10 MB each."""
BUFFER = 1 << 20


class Columns(Protocol):
    """Says which columns of a source are read."""

    @property
    def skip(self) -> bool:
        """Whether a row that is no object does not end the command."""
        ...

    def top_level(self, there: Sequence[str], source: object) -> list[str]:
        """Those that are read, of the columns `there` of `source`; raises `DataError`."""
        ...


class Rows(ABC):
    """Rows by number, from 0.

    Relative paths of pictures start at `folder`.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def row(self, index: int) -> Row:
        """The row with this number."""

    def light(self, index: int) -> Row:
        """The row with one byte for each encoded picture, which is much less to read; quick for one
        row after another."""
        return self.row(index)

    def encoded_pictures(self) -> dict[str, int]:
        """What tells one content of the encoded pictures from another: checksums by name."""
        return {}

    def place(self, index: int) -> str:
        """The place of the row in words, for messages and ids."""
        return f"{self.name} row {index}"

    def check(self) -> None:
        """Raise `DataError` if there are no rows."""
        if not len(self):
            raise DataError(f"{self.name}: no rows; expected at least one")


class JsonLines(Rows):
    """The lines of a .jsonl file."""

    def __init__(self, path: Path, fields: Columns) -> None:
        super().__init__(str(path), path.parent)
        self._path = path
        self._starts = array("q")
        self._numbers = array("q")
        names: dict[str, None] = {}
        try:
            for line, place in self._index():
                try:
                    names |= dict.fromkeys(_object(_parse(line, place), place))
                except DataError:
                    if not fields.skip:
                        raise
        except OSError as error:
            raise DataError(f"{path}: {error}") from error
        self.check()
        fields.top_level(list(names), path)

    def __len__(self) -> int:
        return len(self._starts)

    def row(self, index: int) -> Row:
        with self._path.open("rb") as file:
            file.seek(self._starts[index])
            line = file.readline()
        place = self.place(index)
        return _object(_parse(line, place), place)

    def place(self, index: int) -> str:
        return f"{self._path}:{self._numbers[index]}"

    def _index(self) -> Iterator[tuple[bytes, str]]:
        """Note where each line begins; yields each line and its place."""
        start = 0
        with self._path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    self._starts.append(start)
                    self._numbers.append(number)
                    yield line, f"{self._path}:{number}"
                start += len(line)


class JsonArray(Rows):
    """The elements of the array in a .json file, which is read whole."""

    def __init__(self, path: Path, fields: Columns) -> None:
        super().__init__(str(path), path.parent)
        try:
            rows = _parse(path.read_bytes(), self.name)
        except OSError as error:
            raise DataError(f"{path}: {error}") from error
        if not isinstance(rows, list):
            raise DataError(f"{path}: got {type(rows).__name__}, expected an array of objects")
        self._rows = rows
        self.check()
        names: dict[str, None] = {}
        for index, row in enumerate(rows):
            if isinstance(row, dict) or not fields.skip:
                names |= dict.fromkeys(self.row(index))
        fields.top_level(list(names), path)

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> Row:
        return _object(self._rows[index], self.place(index))


class ArrowRows(Rows):
    """Rows of memory-mapped Arrow batches: the copy of a Parquet file."""

    def __init__(self, path: Path, fields: Columns) -> None:
        super().__init__(str(path), path.parent)
        columns = parquet_columns(path, fields)
        self._rows = batch_rows(path, columns)
        self._file = pa.ipc.open_file(pa.memory_map(str(arrow_copy(path, columns))))
        self._size = pq.read_metadata(path).num_rows
        self._path = path
        self._layout = Layout(self._file.schema)
        self._pictures = encoded_columns(self._file.schema)
        self._light = LightRows(self._layout, self._batch, self._rows)
        self.check()

    def __len__(self) -> int:
        return self._size

    def row(self, index: int) -> Row:
        batch, place = divmod(index, self._rows)
        return self._layout.row(self._file.get_batch(batch), place)

    def light(self, index: int) -> Row:
        return self._light.row(index)

    def _batch(self, start: int) -> pa.RecordBatch:
        return self._file.get_batch(start // self._rows)

    def encoded_pictures(self) -> dict[str, int]:
        """Of each row group what the footer says of its pictures; hashing gigabytes of them would
        take minutes."""
        if not self._pictures:
            return {}
        footer = pq.read_metadata(self._path)
        groups = (footer.row_group(number) for number in range(footer.num_row_groups))
        return {
            f"{self.name} row group {number} (pictures)": checksum([
                (one.total_compressed_size, one.total_uncompressed_size, _plain_statistics(one))
                for one in map(group.column, range(group.num_columns))
                if one.path_in_schema.partition(".")[0] in self._pictures
            ])
            for number, group in enumerate(groups)
        }  # fmt: skip


class LightRows:
    """Rows without encoded pictures, one batch of `size` at a time; `batch` gives that which
    begins at a number."""

    def __init__(
        self, layout: Layout, batch: Callable[[int], pa.RecordBatch | pa.Table], size: int = BATCH
    ) -> None:
        self._layout, self._batch, self._size = layout, batch, size
        self._start = -1
        self._rows: Sequence[Row] = ()

    def row(self, index: int) -> Row:
        place = index % self._size
        if self._start != index - place:
            self._start = index - place
            self._rows = self._layout.rows(without_bytes(self._batch(self._start)))
        return self._rows[place]


class HubRows(Rows):
    """A split that `datasets` has prepared on this machine (`datasets.Dataset`)."""

    def __init__(self, data: Any, name: str, folder: Path, fields: Columns) -> None:
        super().__init__(name, folder)
        columns = fields.top_level(data.column_names, name)
        # As Arrow: pictures stay encoded, to be decoded as those of every other source.
        self._data = data.select_columns(columns).with_format("arrow")
        self._stamp = str(data._fingerprint)  # what `datasets` itself knows contents by
        schema = self._data.features.arrow_schema
        self._layout, self._encoded = Layout(schema), bool(encoded_columns(schema))
        self._light = LightRows(self._layout, self._batch)
        self.check()

    def __len__(self) -> int:
        return len(self._data)

    def row(self, index: int) -> Row:
        return self._layout.row(self._data[index], 0)

    def light(self, index: int) -> Row:
        return self._light.row(index)

    def _batch(self, start: int) -> pa.Table:
        return self._data[start : start + BATCH]

    def encoded_pictures(self) -> dict[str, int]:
        """One for the data set."""
        return {f"{self.name} (pictures)": checksum(self._stamp)} if self._encoded else {}


def parquet_columns(path: Path, fields: Columns) -> list[str]:
    """The columns of a Parquet file that are read; raises `DataError`."""
    try:
        return fields.top_level(pq.read_schema(path).names, path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: {error}") from error


def batch_rows(path: Path, columns: Sequence[str]) -> int:
    """How many rows of these columns of a Parquet file are read at a time."""
    footer = pq.read_metadata(path)
    size = sum(
        one.total_uncompressed_size
        for group in map(footer.row_group, range(footer.num_row_groups))
        for one in map(group.column, range(group.num_columns))
        if one.path_in_schema.partition(".")[0] in columns
    )
    return max(1, min(BATCH, BATCH_BYTES * footer.num_rows // max(1, size)))


def parquet_batches(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """A Parquet file from beginning to end, `batch_rows` at a time, with one page per column in
    memory."""
    rows = batch_rows(path, columns)
    with pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER) as file:
        yield from file.iter_batches(rows, columns=list(columns), use_threads=False)


def arrow_copy(path: Path, columns: Sequence[str]) -> Path:
    """The Arrow copy of a Parquet file's `columns`, made if there is none of this version."""
    about = path.stat()
    size = batch_rows(path, columns)
    key = [str(path.resolve()), about.st_size, about.st_mtime_ns, list(columns), size, "labels"]
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    base = cache_folder("data")
    copy = base / f"{path.stem}-{name}.arrow"
    if copy.is_file():
        return copy
    try:
        base.mkdir(parents=True, exist_ok=True)
        # An Arrow file takes no dictionary that changes on the way (pandas' categories).
        whole = pq.read_schema(path)
        schema = pa.schema([_plain(whole.field(name)) for name in columns], whole.metadata)
        with (
            whole_file(copy, durable=False) as partial,
            pa.OSFile(str(partial), "wb") as sink,
            pa.ipc.new_file(sink, schema) as out,
        ):
            for rows in chunks(parquet_batches(path, columns), size):
                out.write_table(rows.cast(schema).combine_chunks())
        pa.default_memory_pool().release_unused()  # it would keep what a row group took
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: copying it to {copy}: {error}") from error
    return copy


def _plain_statistics(column: pq.ColumnChunkMetaData) -> dict[str, Any] | None:
    """As values: their text says where they lie in memory."""
    return column.statistics.to_dict() if column.statistics else None


def _plain(column: pa.Field) -> pa.Field:
    kind = column.type
    return column.with_type(kind.value_type) if pa.types.is_dictionary(kind) else column


def _object(row: Any, place: str) -> Row:
    if not isinstance(row, dict):
        raise DataError(f"{place}: got {type(row).__name__}, expected an object")
    return row


def _parse(text: bytes, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # other encodings, and deep nesting, as well
        raise DataError(f"{place}: not JSON: {error}") from None
