"""Goes over the rows of a split and those of benchmarks, and remembers what it found.

Rows are read one after another, their pictures decoded beside by threads, a few at a time, so that
memory holds the questions and prints of the benchmarks alone, whatever is trained on.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from axpo import plugins, stopping
from axpo.config.base import Part
from axpo.contamination.index import Index, Pair, Row
from axpo.contamination.prints import Print, Prints
from axpo.contamination.words import question_words
from axpo.errors import ConfigError, DataWarning, PluginError
from axpo.extras import require
from axpo.folder import cache_folder, whole_file, write_whole
from axpo.pictures import PictureError
from axpo.tasks.base import Stored, Task
from axpo.tasks.benchmarks.base import TEST, Benchmark
from axpo.tasks.data.sets import SUFFIXES
from axpo.tasks.data.task import DataTask
from axpo.wording import listed, some

SHOWN = 20
"""Pairs that are kept for the screen."""
THREADS = min(8, os.cpu_count() or 1)
"""Threads that decode pictures; one holds 300 MB of an 8K picture (choice)."""
EVERY = 5.0
"""Seconds between two words of how far it is."""
RULES = 1
"""The version of the rules: another one remembers nothing of this one."""
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Found:
    """What was found among `rows` rows of a split: `pairs` in all, of `contaminated` rows, the
    first of them, how many there are of each benchmark (beside its number of rows), and how many
    pictures could not be read, on either side, which were left out."""

    split: str
    rows: int
    against: Mapping[str, tuple[int, int]]
    contaminated: int = 0
    pairs: int = 0
    unreadable: int = 0
    first: Sequence[Pair] = field(default_factory=list[Pair])

    def __str__(self) -> str:
        """One sentence."""
        are = "is" if self.contaminated == 1 else "are"
        names = listed(list(self.against), "or")
        said = f"{self.contaminated:,} of {self.rows:,} {self.split} rows {are} in {names}"
        if self.unreadable:
            said += f" ({self.unreadable:,} pictures could not be read)"
        return said


def benchmarks(entries: Sequence[str]) -> dict[str, Task]:
    """The benchmarks that these entries name: NAME or NAME=PATH, NAME a benchmark of axpo's or
    "module:Class"; or a data file with the columns that `task.columns` has by default.

    Raises `ConfigError`, which is a `MissingError` where one is not on this machine.
    """
    found = {entry: _benchmark(entry) for entry in dict.fromkeys(entries)}
    for one in found.values():
        one.check()
    return found


def _benchmark(entry: str) -> Task:
    name, _, path = entry.partition("=")
    if not path and Path(entry).suffix in SUFFIXES:
        return DataTask(path=(entry,))
    try:
        kind: type[Part] = plugins.find("task", name)
    except PluginError as error:
        raise ConfigError(f"against: {error}; or a data file ({', '.join(SUFFIXES)})") from error
    if not issubclass(kind, Benchmark):
        raise ConfigError(f"against: {name!r} is a task, but no benchmark")
    return kind(path=path or None)


def compare(
    task: Task, split: str, known: Mapping[str, Task], say: Say, write: Callable[[Pair], object]
) -> Found:
    """Compare the rows of a split with those of `benchmarks`; `write` is given each pair.

    Raises `ConfigError`, and `DataError` for rows that cannot be used.
    """
    index, sizes, pairs, first = Index(), dict[str, int](), dict.fromkeys(known, 0), list[Pair]()
    rows = contaminated = 0
    with closing(_Reader(say)) as reader:
        for entry, benchmark in known.items():
            what = f"reading {entry}"
            sizes[entry] = index.add(entry, reader.rows(benchmark.stored(TEST), what))
        size = task.size(split)
        of = "" if size is None else f" of {size:,}"
        for row in reader.rows(task.stored(split), f"comparing {split} rows", of):
            rows += 1
            found = index.matches(row)
            contaminated += bool(found)
            for pair in found:
                pairs[pair.benchmark] += 1
                write(pair)
            first += found[: SHOWN - len(first)]
        both = {entry: (pairs[entry], sizes[entry]) for entry in known}
        return Found(split, rows, both, contaminated, sum(pairs.values()), reader.unreadable, first)


def remembered(task: DataTask, split: str, say: Say) -> Found:
    """What `compare` finds of `task.against`; not made again while the rows of both sides, and the
    settings that they are read by, are the same."""
    known = benchmarks(task.against)
    read = task.model_dump(mode="json", exclude={"against", "contaminated"})
    told = [RULES, split, read, task.fingerprint(split)]
    told += [(entry, each.fingerprint(TEST)) for entry, each in known.items()]
    digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
    file = cache_folder("contamination") / f"{digest}.json"
    with suppress(OSError, ValidationError):
        return TypeAdapter(Found).validate_json(file.read_bytes())
    found = compare(task, split, known, say, lambda _: None)
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(asdict(found)))
    return found


def check(task: Task, split: str, say: Say) -> None:
    """Raise `ConfigError` where rows of the split are those of `task.against`; warn where
    `task.contaminated` allows it."""
    if not isinstance(task, DataTask) or not task.against:
        return
    found = remembered(task, split, say)
    if not found.pairs:
        return
    pairs = [f"{one.place} is {one.row} of {one.benchmark} ({one.rule})" for one in found.first]
    said = f"task.against: {found}: {some(pairs)}"
    if task.contaminated == "allow":
        warnings.warn(said, DataWarning, stacklevel=2)
        return
    raise ConfigError(
        f"{said}. What is trained on them cannot be measured by them: leave these rows out (`axpo "
        f"contaminated` with the same recipe lists all), or set task.contaminated = 'allow'"
    )


@contextmanager
def pairs_file(path: Path | None) -> Iterator[Callable[[Pair], object]]:
    """What writes pairs as lines of JSON to `path`, whole or not at all; to nowhere for None."""
    if path is None:
        yield lambda _: None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        yield lambda pair: file.write(json.dumps(asdict(pair), ensure_ascii=False) + "\n")


class _Reader:
    """Reads rows with their prints."""

    def __init__(self, say: Say) -> None:
        self._say, self._prints = say, Prints()
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="prints")
        self.unreadable = 0

    def rows(self, stored: Iterable[Stored], what: str, of: str = "") -> Iterator[Row]:
        """The rows in order; says how far it is."""
        waiting: deque[tuple[Stored, list[Future[Print | None]]]] = deque()
        told = 0.0
        for count, row in enumerate(stored):
            stopping.check()
            if time.monotonic() > told + EVERY:
                told = time.monotonic()
                self._say(f"{what}: {count:,}{of}")
            if row.pictures:
                require("imagehash", "comparing pictures")
            waiting.append((row, [self._pool.submit(self._prints.of, p) for p in row.pictures]))
            if len(waiting) > 2 * THREADS:
                yield self._row(*waiting.popleft())
        while waiting:
            yield self._row(*waiting.popleft())

    def close(self) -> None:
        """Keep what was found of pictures."""
        self._pool.shutdown(cancel_futures=True)
        self._prints.close()

    def _row(self, row: Stored, pictures: Sequence[Future[Print | None]]) -> Row:
        prints: list[Print] = []
        for one in pictures:
            try:
                found = one.result()
            except PictureError:
                self.unreadable += 1
            else:
                prints += [found] if found else []
        return Row(row.place, row.id, question_words(row.question, row.options), tuple(prints))
