"""Decides which rows of a split are used, before anything is trained on them."""

from __future__ import annotations

import warnings
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from axpo.errors import DataError, DataWarning
from axpo.tasks.data.arrow import Row
from axpo.tasks.data.loaded import DataSet
from axpo.tasks.data.rows import Rows

CHECKED = 100_000
"""How many rows of a set are checked when a split is opened; later rows are checked when they are
read (choice). Where bad rows are skipped, all are."""
SEEN = 1000
"""Rows of a streamed split by which its share of bad rows is judged at the earliest (choice)."""


class Sieve:
    """Looks at a set's rows of a split one by one: which are used, and why the others are not.

    A row that cannot be used ends the command (`DataError`), unless `share` says which share of
    them may be left out. No picture is decoded.
    """

    def __init__(self, data: DataSet, split: str, share: float | None) -> None:
        self._data, self._share = data, share
        self._what = f"{split} split of {data.name}" if data.name else f"{split} split"
        self._seen: dict[str, str] = {}
        self._bad: Counter[str] = Counter()
        self._first: dict[str, str] = {}
        self._looked = self._kept = 0
        self._told = False
        self.graders: set[str] = set()

    def kept(self, rows: Rows) -> Sequence[int]:
        """The numbers of the rows that are used; `DataError` for an id that there was before."""
        found = array("q")
        for number in range(len(rows)):
            check = self._share is not None or self._kept < CHECKED
            if not check and not self._data.settings.where:
                self._looked += len(rows) - number
                self._kept += len(rows) - number
                found.extend(range(number, len(rows)))
                break
            if self.keeps(lambda at=number: rows.light(at), rows.place(number), rows.folder, check):
                found.append(number)
        return range(len(rows)) if len(found) == len(rows) else found

    def keeps(
        self, row: Callable[[], Row], place: str, folder: Path, check: bool = True,
        unique: bool = True,
    ) -> bool:  # fmt: skip
        """Whether the row is used; with `unique` only if its id was not seen before."""
        self._looked += 1
        try:
            found = row()
            if not self._data.fields.passes(found, place):
                return False
            if check:
                example = self._data.check(found, place, folder)
                if unique and self._data.fields.id(found, place) is not None:
                    self._note_id(example.id, place)
                self.graders.add(example.grading)
        except DataError as error:
            if self._share is None:
                raise
            kind = str(error).removeprefix(f"{place}: ").partition(":")[0]
            self._bad[kind] += 1
            self._first.setdefault(kind, str(error))
            return False
        self._kept += 1
        return True

    def arrives(self, row: Row, place: str, folder: Path, check: bool) -> bool:
        """Whether a row of a streamed split is used; the first that is bad is told, and more than
        may be raise `DataError`."""
        bad = self._bad.total()
        used = self.keeps(lambda: row, place, folder, check, unique=False)
        if self._bad.total() > bad:
            self.end(SEEN)
        return used

    def end(self, least: int = 0) -> None:
        """Raise `DataError` where more rows are bad than may be, of the rows seen or of `least` if
        they are fewer, or where none is left; else warn of those that are left out."""
        bad = self._bad.total()
        if self._share is not None and bad > self._share * max(self._looked, least):
            raise DataError(
                f"{self._what}: {bad:,} of {self._looked:,} rows cannot be used, more than "
                f"task.bad_share = {self._share:g}: {self._reasons()}"
            )
        if not self._kept and not least:
            raise DataError(f"{self._what}: no row is left: {self}")
        if bad and not self._told:
            self._told = True
            warnings.warn(str(self), DataWarning, stacklevel=2)

    def __str__(self) -> str:
        said = f"{self._what}: {self._kept:,} of {self._looked:,} rows"
        bad = self._bad.total()
        if self._data.settings.where:
            said += f", task.where leaves out {self._looked - self._kept - bad:,}"
        return f"{said}, {bad:,} cannot be used: {self._reasons()}" if bad else said

    def _reasons(self) -> str:
        """How many rows each field makes unusable, and the first of them."""
        return "; ".join(
            f"{kind} {count:,} (first {self._first[kind]})"
            for kind, count in self._bad.most_common()
        )

    def _note_id(self, id: str, place: str) -> None:
        if id in self._seen:
            raise DataError(
                f"{place}: id: {id!r} is already at {self._seen[id]}; expected each once "
                "(task.columns.id names the column)"
            )
        self._seen[id] = place
