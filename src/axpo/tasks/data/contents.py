"""What a data set's split held, as checksums: the columns of each row that are read, and pictures.

Of a picture file size, first and last 4 KB are looked at (a PNG ends with a checksum of all its
pixels; a JPEG or WEBP of other pixels has another size but by chance), of those in Parquet the
sizes and statistics that the file's footer gives for each row group. docs/data.md says what it
costs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from axpo.folder import files_digest
from axpo.tasks.contents import Contents, checksum
from axpo.tasks.data.check import CHECKED
from axpo.tasks.data.loaded import Part
from axpo.tasks.data.pictures import picture_file
from axpo.tasks.data.stream import Shard

END = 4096
"""Bytes at either end of a picture file that are looked at."""
READERS, FILES = 16, 256
"""Threads that read picture files, and files that one takes at a time: a network's disk takes a
millisecond per file."""


def rows_contents(parts: Sequence[Part]) -> Contents:
    """The contents of a split's parts, without rows that are left out; the picture files are those
    of the first 100,000 rows, which is how many are checked when a split is opened."""
    count = sum(len(part) for part in parts)
    sums: dict[str, np.ndarray] = {}
    keys: list[str] = []
    ids = True
    pictures: dict[Path, None] = {}
    for number, (part, index) in enumerate(_rows(parts)):
        fields, place = part.data.fields, part.rows.place(index)
        row = part.rows.light(index)
        id = fields.id(row, place)
        ids &= id is not None
        keys.append(place if id is None else id)
        for name, value in row.items():
            if value is not None and fields.reads(name):
                if name not in sums:
                    sums[name] = np.zeros(count, np.uint32)
                sums[name][number] = checksum(value)
        if number < CHECKED:
            folder = part.data.image_folder or part.rows.folder
            for picture in fields.pictures(row, place):
                file = picture_file(picture, folder, place, part.data.foreign)
                if file is not None:
                    pictures[file] = None
    files = {name: value for part in parts for name, value in part.rows.encoded_pictures().items()}
    return Contents(tuple(keys), sums, ids, files | _picture_sums(list(pictures)))


def shards_contents(shards: Iterable[Shard]) -> Contents:
    """The contents of a streamed split: a row stands for a shard of so many rows."""
    named = {
        shard.name if shard.count is None else f"{shard.name} of {shard.count} rows": checksum(
            shard.stamp
        )
        for shard in shards
    }
    return Contents(tuple(named), {"content": np.array(list(named.values()), np.uint32)})


def _rows(parts: Iterable[Part]) -> Iterator[tuple[Part, int]]:
    for part in parts:
        for index in part.kept:
            yield part, index


def _picture_sums(files: Sequence[Path]) -> dict[str, int]:
    batches = [files[start : start + FILES] for start in range(0, len(files), FILES)]
    with ThreadPoolExecutor(READERS) as pool:
        sums = [value for batch in pool.map(_batch_sums, batches) for value in batch]
    return {str(file): value for file, value in zip(files, sums, strict=True)}


def _batch_sums(files: Sequence[Path]) -> list[int]:
    return [checksum(files_digest([file], END)) for file in files]
