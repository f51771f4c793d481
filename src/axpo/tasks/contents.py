"""What a split held when a run read it, small enough to keep beside the run: a run that goes on can
name the rows, fields and pictures that are others by now."""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from axpo.folder import whole_file
from axpo.wording import some

_IDS = b"ids"
"""The key of `Contents.ids` in the file's metadata."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What differs between two contents, in words: in `order` which rows came, went or moved, in
    `content` which rows and files hold something else."""

    order: tuple[str, ...] = ()
    content: tuple[str, ...] = ()


@dataclass(frozen=True)
class Contents:
    """The rows of a split in order, and the files beside them.

    `keys` are the rows' ids, or their places where not all rows have one (`ids` is false). `fields`
    holds a checksum of each field of each row (0 where it has none), `files` one of each picture
    file, and of what else is no row.
    """

    keys: tuple[str, ...]
    fields: Mapping[str, np.ndarray]
    ids: bool = True
    files: Mapping[str, int] = field(default_factory=dict[str, int])

    @cached_property
    def digest(self) -> str:
        """Tells one content from another."""
        found = hashlib.sha256("\n".join(self.keys).encode(errors="surrogatepass"))
        for name, values in sorted(self.fields.items()):
            found.update(name.encode(errors="surrogatepass") + values.tobytes())
        found.update(repr(sorted(self.files.items())).encode())
        return found.hexdigest()[:16]

    def save(self, path: Path) -> None:
        """Write it to `path` (Parquet): the rows, then the files."""
        keys = [_stored(key) for key in (*self.keys, *self.files)]
        empty = np.zeros(len(self.files), np.uint32)
        columns = {
            f"field {_stored(name)}": np.concatenate([values, empty])
            for name, values in self.fields.items()
        }
        sums = np.array([0] * len(self.keys) + list(self.files.values()), np.uint32)
        is_file = np.arange(len(keys)) >= len(self.keys)
        table = pa.table({"key": keys, "is_file": is_file, "file": sums, **columns})
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary:
            pq.write_table(table.replace_schema_metadata({_IDS: str(self.ids)}), temporary)

    @classmethod
    def load(cls, path: Path) -> Contents:
        """Read what `save` wrote."""
        table = pq.read_table(path)
        is_file, sums = (table[name].to_numpy() for name in ("is_file", "file"))
        rows = len(sums) - int(is_file.sum())
        keys: list[str] = table["key"].to_pylist()
        fields = {
            name.removeprefix("field "): table[name].to_numpy()[:rows]
            for name in table.column_names
            if name.startswith("field ")
        }
        files = dict(zip(keys[rows:], map(int, sums[rows:]), strict=True))
        ids = (table.schema.metadata or {}).get(_IDS) == b"True"
        return cls(tuple(keys[:rows]), fields, ids, files)

    def changes(self, now: Contents) -> Changes:
        """What is different in the contents of `now`.

        A row with an id is the same row wherever it stands. Without ids the row of a place has
        changed, unless a row's whole content is now at another place: then rows have moved.
        """
        compared = self._by_ids(now) if self.ids and now.ids else self._by_places(now)
        files = [n for n, is_ in now.files.items() if self.files.get(n, is_) != is_]
        content = [*compared.content, *([f"the content of {some(files)}"] if files else [])]
        return Changes(compared.order, tuple(content))

    def _by_ids(self, now: Contents) -> Changes:
        before = {_stored(key): place for place, key in enumerate(self.keys)}
        after = {_stored(key): place for place, key in enumerate(now.keys)}
        gone = [key for key in before if key not in after]
        new = [key for key in after if key not in before]
        both = [key for key in after if key in before]
        places = [before[key] for key in both]
        back = [key for key, (p, q) in zip(both[1:], pairwise(places), strict=False) if q < p]
        content = self._changed(now, places, [after[key] for key in both])
        return Changes(_order(gone, new, back[0] if back else None), content)

    def _by_places(self, now: Contents) -> Changes:
        rows, others = _rows(self, now), _rows(now, self)
        count = max(len(rows), len(others))
        differ = [i for i in range(count) if rows[i : i + 1] != others[i : i + 1]]
        was = Counter(rows[i] for i in differ if i < len(rows))
        is_ = Counter(others[i] for i in differ if i < len(others))
        if len(rows) == len(others) and not was & is_:
            return Changes((), self._changed(now, differ, differ))
        gone = _beyond([(self.keys[i], rows[i]) for i in differ if i < len(rows)], is_)
        new = _beyond([(now.keys[i], others[i]) for i in differ if i < len(others)], was)
        return Changes(_order(gone, new, now.keys[differ[0]] if was & is_ else None))

    def _changed(
        self, now: Contents, before: Sequence[int], after: Sequence[int]
    ) -> tuple[str, ...]:
        """The rows that stood at `before` and are at `after`, as far as a field is another."""
        a, b = np.array(before, np.int64), np.array(after, np.int64)
        changed: dict[int, list[str]] = {}
        for name in dict.fromkeys([*now.fields, *self.fields]):
            differ = _field(self, name)[a] != _field(now, name)[b]
            for place in b[differ].tolist():
                changed.setdefault(place, []).append(name)
        rows = [f"{now.keys[place]} ({', '.join(changed[place])})" for place in sorted(changed)]
        return (f"row {rows[0]}" if len(rows) == 1 else f"rows {some(rows)}",) if rows else ()


def checksum(value: Any) -> int:
    """Of a value as JSON or Arrow has it; never 0, which stands for no value."""
    return zlib.crc32(repr(value).encode(errors="surrogatepass")) or 1


def _stored(text: str) -> str:
    """The text as Parquet can hold it."""
    return text.encode(errors="backslashreplace").decode()


def _field(contents: Contents, name: str) -> np.ndarray:
    found = contents.fields.get(name)
    return np.zeros(len(contents.keys), np.uint32) if found is None else found


def _rows(contents: Contents, other: Contents) -> list[bytes]:
    """All fields of each row, those of `other` among them."""
    names = sorted({*contents.fields, *other.fields})
    columns = np.stack([_field(contents, name) for name in names], axis=1)
    return [row.tobytes() for row in columns]


def _beyond(rows: Iterable[tuple[str, bytes]], others: Counter[bytes]) -> list[str]:
    """The keys of the rows that are not among the `others`, each of which stands for one."""
    left = others.copy()
    found: list[str] = []
    for key, row in rows:
        if left[row] > 0:
            left[row] -= 1
        else:
            found.append(key)
    return found


def _order(gone: Sequence[str], new: Sequence[str], moved: str | None) -> tuple[str, ...]:
    said: list[str] = []
    for keys, what in ((gone, "gone"), (new, "new")):
        if keys:
            said.append(
                f"{len(keys)} {'row is' if len(keys) == 1 else 'rows are'} {what} ({some(keys)})"
            )
    if moved is not None:
        said.append(f"rows stand at other places from {moved} on")
    return tuple(said)
