"""From Arrow's tables to Python's rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Row = Mapping[str, Any]
Batches = Iterable[pa.RecordBatch | pa.Table]
Decoder = Callable[[Any], Any]


class Layout:
    """How the rows of a schema become Python's.

    A class label (`datasets.ClassLabel`) is its name, and a number of 16 or 32 bits is the shortest
    decimal that stands for it: 0.1, not the 0.10000000149011612 that 64 bits make of it.
    """

    def __init__(self, schema: pa.Schema) -> None:
        noted = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = noted.get("info", {}).get("features", {})
        found = {column.name: _decoder(column.type, features.get(column.name)) for column in schema}
        self._decoders = {name: decode for name, decode in found.items() if decode is not None}

    def rows(self, table: pa.RecordBatch | pa.Table) -> Sequence[Row]:
        """All rows of a table of this schema."""
        rows: list[dict[str, Any]] = table.to_pylist()
        for name, decode in self._decoders.items():
            for row in rows:
                row[name] = decode(row[name])
        return rows

    def row(self, table: pa.RecordBatch | pa.Table, index: int) -> Row:
        """One row of a table of this schema."""
        return self.rows(table.slice(index, 1))[0]


def without_bytes(table: pa.RecordBatch | pa.Table) -> pa.Table:
    """The table with one byte in the place of any: what is encoded is not read."""
    names = encoded_columns(table.schema)
    return pa.table({
        name: pa.chunked_array([_light(chunk) for chunk in _chunks(table.column(name))])
        if name in names
        else table.column(name)
        for name in table.schema.names
    })  # fmt: skip


def encoded_columns(schema: pa.Schema) -> list[str]:
    """The names of the columns with bytes in them."""
    return [column.name for column in schema if _holds_bytes(column.type)]


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


def _decoder(kind: pa.DataType, feature: Any) -> Decoder | None:
    """What makes Python's value of a type the one that is meant; None where it is already."""
    if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
        names = feature["names"]
        return lambda label: names[label] if label is not None and label >= 0 else None
    if pa.types.is_float32(kind) or pa.types.is_float16(kind):
        width = np.float32 if pa.types.is_float32(kind) else np.float16
        return lambda number: None if number is None else float(str(width(number)))
    if _is_list(kind):
        inner = feature[0] if isinstance(feature, list) else (feature or {}).get("feature")
        each = _decoder(kind.value_type, inner)
        return each and (lambda values: values and [each(value) for value in values])
    if pa.types.is_struct(kind):
        inside = feature if isinstance(feature, dict) else {}
        parts = {part.name: _decoder(part.type, inside.get(part.name)) for part in kind}
        named = {name: decode for name, decode in parts.items() if decode is not None}
        if named:
            return lambda value: value and value | {n: d(value[n]) for n, d in named.items()}
    return None


def _chunks(column: pa.Array | pa.ChunkedArray) -> list[pa.Array]:
    return column.chunks if isinstance(column, pa.ChunkedArray) else [column]


def _light(array: pa.Array) -> pa.Array:
    kind = array.type
    if not _holds_bytes(kind):
        return array
    if _is_list(kind):
        ends = np.cumsum(pc.call_function("list_value_length", [array]).fill_null(0).to_numpy())
        starts = pa.array(np.concatenate([[0], ends]).astype(np.int64))
        inner = _light(array.flatten())
        return pa.LargeListArray.from_arrays(starts, inner, mask=array.is_null())
    if pa.types.is_struct(kind):
        parts = [_light(part) for part in array.flatten()]
        names = [part.name for part in kind]
        return pa.StructArray.from_arrays(parts, names, mask=array.is_null())
    sizes = pc.call_function("binary_length", [array]).fill_null(0).to_pylist()
    return pa.array([b"." if size else None for size in sizes], pa.binary())


def _is_list(kind: pa.DataType) -> bool:
    return (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return True
    nested = _is_list(kind) or pa.types.is_struct(kind)
    return nested and any(_holds_bytes(kind.field(i).type) for i in range(kind.num_fields))
