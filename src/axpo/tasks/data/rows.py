"""A split's rows by number, from files or from the Hub, whatever their size.

No file but a .json array is held in memory as a whole. A JSONL file is an index of where its lines
begin. A Parquet file cannot be read by row (a row group may be the whole file), so the columns that
are used are copied once, a few rows at a time, to an Arrow file in the cache folder, which is
memory-mapped; `datasets` does the same with what it loads from the Hub.
"""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from axpo.errors import DataError
from axpo.folder import whole_file
from axpo.tasks.contents import checksum
from axpo.tasks.data.fields import Fields, Row

BATCH = 64
"""How many rows a batch of the Arrow copy has, and how many rows are copied at a time."""
BUFFER = 1 << 20
Batches = Iterable[pa.RecordBatch | pa.Table]


class Rows(ABC):
    """Rows by number, from 0.

    Relative paths of pictures start at `folder`. `encoded` says whether there are encoded pictures,
    which `texts` leaves out.
    """

    encoded = False

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def row(self, index: int) -> Row:
        """The row with this number."""

    def texts(self, index: int) -> Row:
        """The row without encoded pictures, which is much less to read."""
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

    def __init__(self, path: Path, fields: Fields) -> None:
        super().__init__(str(path), path.parent)
        self._path = path
        self._starts = array("q")
        self._numbers = array("q")
        names: dict[str, None] = {}
        try:
            for row in self._index():
                names |= dict.fromkeys(row)
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: {error}") from error
        self.check()
        fields.top_level(list(names), path)

    def __len__(self) -> int:
        return len(self._starts)

    def row(self, index: int) -> Row:
        with self._path.open("rb") as file:
            file.seek(self._starts[index])
            return json.loads(file.readline())

    def place(self, index: int) -> str:
        return f"{self._path}:{self._numbers[index]}"

    def _index(self) -> Iterator[Row]:
        """Note where each line begins; yields each line parsed."""
        start = 0
        with self._path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    self._starts.append(start)
                    self._numbers.append(number)
                    place = f"{self._path}:{number}"
                    yield _object(_parse(line, place), place)
                start += len(line)


class JsonArray(Rows):
    """The elements of the array in a .json file, which is read whole."""

    def __init__(self, path: Path, fields: Fields) -> None:
        super().__init__(str(path), path.parent)
        try:
            rows = _parse(path.read_bytes(), self.name)
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: {error}") from error
        if not isinstance(rows, list):
            raise DataError(f"{path}: got {type(rows).__name__}, expected an array of objects")
        self._rows = [_object(row, self.place(index)) for index, row in enumerate(rows)]
        self.check()
        fields.top_level(list(dict.fromkeys(name for row in self._rows for name in row)), path)

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> Row:
        return self._rows[index]


class ArrowRows(Rows):
    """Rows of memory-mapped Arrow batches: the copy of a Parquet file."""

    def __init__(self, path: Path, fields: Fields) -> None:
        super().__init__(str(path), path.parent)
        columns = parquet_columns(path, fields)
        self._file = pa.ipc.open_file(pa.memory_map(str(arrow_copy(path, columns))))
        self._size = pq.read_metadata(path).num_rows
        self._path = path
        self._texts = _texts(self._file.schema, fields)
        self._pictures = [name for name in columns if name not in self._texts]
        self.encoded = bool(self._pictures)
        self.check()

    def __len__(self) -> int:
        return self._size

    def row(self, index: int) -> Row:
        batch, place = divmod(index, BATCH)
        return self._file.get_batch(batch).slice(place, 1).to_pylist()[0]

    def texts(self, index: int) -> Row:
        batch, place = divmod(index, BATCH)
        return self._file.get_batch(batch).select(self._texts).slice(place, 1).to_pylist()[0]

    def encoded_pictures(self) -> dict[str, int]:
        """Of each row group what the footer says of its pictures; hashing gigabytes of them would
        take minutes."""
        if not self.encoded:
            return {}
        footer = pq.read_metadata(self._path)
        groups = (footer.row_group(number) for number in range(footer.num_row_groups))
        return {
            f"{self.name} row group {number} (pictures)": checksum([
                (one.total_compressed_size, one.total_uncompressed_size, str(one.statistics))
                for one in map(group.column, range(group.num_columns))
                if one.path_in_schema.partition(".")[0] in self._pictures
            ])
            for number, group in enumerate(groups)
        }  # fmt: skip


class HubRows(Rows):
    """A split that `datasets` has prepared on this machine (`datasets.Dataset`)."""

    def __init__(self, data: Any, name: str, folder: Path, fields: Fields) -> None:
        super().__init__(name, folder)
        columns = fields.top_level(data.column_names, name)
        # As Arrow: pictures stay encoded, to be decoded as those of every other source.
        self._data = data.select_columns(columns).with_format("arrow")
        self._stamp = str(data._fingerprint)  # what `datasets` itself knows contents by
        texts = _texts(self._data.features.arrow_schema, fields)
        self.encoded = len(texts) < len(columns)
        self._texts = self._data.select_columns(texts)
        self.check()

    def __len__(self) -> int:
        return len(self._data)

    def row(self, index: int) -> Row:
        return self._data[index].to_pylist()[0]

    def texts(self, index: int) -> Row:
        return self._texts[index].to_pylist()[0]

    def encoded_pictures(self) -> dict[str, int]:
        """One for the data set."""
        return {f"{self.name} (pictures)": checksum(self._stamp)} if self.encoded else {}


def parquet_columns(path: Path, fields: Fields) -> list[str]:
    """The columns of a Parquet file that are read; raises `DataError`."""
    try:
        return fields.top_level(pq.read_schema(path).names, path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: {error}") from error


def parquet_batches(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """A Parquet file from beginning to end, `BATCH` rows at a time, with one page per column in
    memory."""
    with pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER) as file:
        yield from file.iter_batches(BATCH, columns=list(columns), use_threads=False)


def arrow_copy(path: Path, columns: Sequence[str]) -> Path:
    """The Arrow copy of a Parquet file's `columns`, made if there is none of this version."""
    about = path.stat()
    key = [str(path.resolve()), about.st_size, about.st_mtime_ns, list(columns), BATCH]
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "axpo" / "data"
    copy = base / f"{path.stem}-{name}.arrow"
    if copy.is_file():
        return copy
    try:
        base.mkdir(parents=True, exist_ok=True)
        # An Arrow file takes no dictionary that changes on the way (pandas' categories).
        schema = pa.schema([_plain(pq.read_schema(path).field(name)) for name in columns])
        with (
            whole_file(copy, durable=False) as partial,
            pa.OSFile(str(partial), "wb") as sink,
            pa.ipc.new_file(sink, schema) as out,
        ):
            for rows in chunks(parquet_batches(path, columns), BATCH):
                out.write_table(rows.cast(schema).combine_chunks())
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: copying it to {copy}: {error}") from error
    return copy


def chunks(batches: Batches, size: int) -> Iterator[pa.Table]:
    """The same rows in tables of `size` rows; the last may be smaller."""
    held: list[pa.Table] = []
    count = 0
    for batch in batches:
        table = pa.Table.from_batches([batch]) if isinstance(batch, pa.RecordBatch) else batch
        held.append(table)
        count += table.num_rows
        while count >= size:
            rows = pa.concat_tables(held)
            yield rows.slice(0, size)
            held, count = [rows.slice(size)], count - size
    if count:
        yield pa.concat_tables(held)


def _plain(column: pa.Field) -> pa.Field:
    kind = column.type
    return column.with_type(kind.value_type) if pa.types.is_dictionary(kind) else column


def _texts(schema: pa.Schema, fields: Fields) -> list[str]:
    """The names of the columns that are read for more than encoded pictures."""
    return [
        column.name
        for column in schema
        if not (_holds_bytes(column.type) and fields.only_pictures(column.name))
    ]


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return True
    return any(_holds_bytes(kind.field(i).type) for i in range(kind.num_fields))


def _object(row: Any, place: str) -> Row:
    if not isinstance(row, dict):
        raise DataError(f"{place}: got {type(row).__name__}, expected an object")
    return row


def _parse(text: bytes, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: not JSON: {error}") from None
