"""Reads a question's fields from a row of a data set, by the columns in the settings.

A row is a dict as it was read (JSON, Arrow). A value that cannot be used raises `DataError` with
the row's place, the setting and the column.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from axpo.errors import DataError, GradingError
from axpo.tasks.base import Example
from axpo.tasks.data import values
from axpo.tasks.data.arrow import Row
from axpo.tasks.data.columns import ColumnSettings
from axpo.tasks.data.pictures import NO_VIDEO, flat
from axpo.tasks.data.sets import PLACEHOLDER, Scalar, SetSettings, is_range
from axpo.tasks.grading import check_example
from axpo.wording import in_short

REQUIRED = ("question", "answer")
NOTICED = ("images", "options", "demonstration", "rubric")
"""Fields that a misspelt name would lose unnoticed."""
SET = "set"
"""The key of `Example.meta` that holds the name of a mixture's set."""
_CONVERSATIONS = {"messages", "conversations", "message_list", "prompt"}
_ABSENT = object()


class Fields:
    """Reads the rows of a data set by its settings; `name` is its name in a mixture. With `skip`
    a row that cannot be used does not end the command."""

    def __init__(self, settings: SetSettings, name: str = "", skip: bool = False) -> None:
        self._settings = settings
        self._columns = settings.columns
        self._name, self.skip = name, skip
        self._read: dict[str, bool] = {}

    def top_level(self, there: Sequence[str], source: object) -> list[str]:
        """The columns that are read, of the columns `there` of `source`.

        Raises `DataError` if a column is missing, or if a column has nearly the name of a missing
        field.
        """
        read: list[str] = []
        for field, paths in _paths(self._columns).items():
            chosen = field in self._columns.model_fields_set
            found = [name for path in paths if (name := _column(path, there)) is not None]
            if len(found) < len(paths) and (chosen or field in REQUIRED):
                path = next(path for path in paths if _column(path, there) is None)
                raise DataError(
                    f"{source}: no column {path!r}; there are {', '.join(there)} "
                    f"(task.columns.{field} names the {field}'s){_conversations(there)}"
                )
            near = difflib.get_close_matches(field, there, 1, 0.8) if field in NOTICED else []
            if near and paths and not found:
                raise DataError(
                    f"{source}: no column {field!r}, but {near[0]!r}: set task.columns.{field} = "
                    f"{near[0]!r}, or rename it if it is something else"
                )
            read += found
        for path in self._settings.where:
            if (name := _column(path, there)) is None:
                near = difflib.get_close_matches(path, there, 1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise DataError(
                    f"{source}: task.where: no column {path!r}; {hint}there are {', '.join(there)}"
                )
            read.append(name)
        return list(dict.fromkeys(read))

    def reads(self, column: str) -> bool:
        """Whether a field is read from the column."""
        if column not in self._read:
            paths = (path for several in _paths(self._columns).values() for path in several)
            self._read[column] = any(_column(path, [column]) for path in paths)
        return self._read[column]

    def passes(self, row: Row, place: str) -> bool:
        """Whether `task.where` takes the row."""
        return all(
            _meets(self._one(row, path, place), wanted, f"{place}: where: {path}")
            for path, wanted in self._settings.where.items()
        )

    def read(self, row: Row, place: str) -> tuple[Example, tuple[Any, ...]]:
        """The row as an example without its pictures, and these as the row holds them in the order
        of their places; without a provenance it is empty.

        Raises `DataError` for a value that cannot be used.
        """
        columns = self._columns
        options = values.options(self._several(row, columns.options, place), f"{place}: options")
        turns = values.turns(
            self._one(row, columns.demonstration, place), f"{place}: demonstration"
        )
        asked, images = self._asked(row, options, place)
        truths = values.answers(
            self._several(row, columns.answer, place), options, self._settings.answer_lists,
            f"{place}: answer",
        )  # fmt: skip
        grading = self._maybe(row, columns.grading, place, "grading") or self._settings.grading
        found = Example(
            self.name_of(row, place),
            asked,
            (),
            truths[0],
            truths[1:],
            grading or default_grading(options),
            turns,
            options,
            self._rubric(row, place),
            self._maybe(row, columns.cluster, place, "cluster"),
            self._maybe(row, columns.provenance, place, "provenance") or "",
            self._meta(row, place),
        )
        try:
            check_example(found)
        except GradingError as error:
            raise DataError(f"{place}: grading: {error}") from None
        return found, images

    def _asked(self, row: Row, options: Sequence[str], place: str) -> tuple[str, tuple[Any, ...]]:
        """The whole question, and the pictures in the order of their places in it."""
        what = f"{place}: question"
        asked = values.question(self._one(row, self._columns.question, place), what)
        asked = values.with_options(asked, options)
        if "video" in (kind for kind, _ in PLACEHOLDER.findall(asked)):
            raise DataError(f"{place}: video: the question places a video; {NO_VIDEO}")
        asked, images = values.place_pictures(asked, self.pictures(row, place), what)
        instruction = self._settings.instruction
        return f"{asked}\n{instruction}" if instruction else asked, images

    def stored(self, row: Row, place: str) -> tuple[str, tuple[str, ...], tuple[Any, ...]]:
        """The question and the options without what is put around them, and the pictures as the
        row holds them."""
        asked = values.question(self._one(row, self._columns.question, place), f"{place}: question")
        options = values.options(
            self._several(row, self._columns.options, place), f"{place}: options"
        )
        return asked, options, self.pictures(row, place)

    def id(self, row: Row, place: str) -> str | None:
        """The row's id, if it has one."""
        found = self._maybe(row, self._columns.id, place, "id")
        return None if found is None else self._named(found)

    def name_of(self, row: Row, place: str) -> str:
        """The row's id, or its place where it has none."""
        return self.id(row, place) or self._named(place)

    def _named(self, id: str) -> str:
        return f"{self._name}/{id}" if self._name else id

    def pictures(self, row: Row, place: str) -> tuple[Any, ...]:
        """The row's pictures as it holds them."""
        paths = self._columns.images
        return tuple(one for path in paths for one in flat(self._one(row, path, place)))

    def _one(self, row: Row, path: str, place: str) -> Any:
        """The value at `path`; None if the row has no such column."""
        if path in row:
            return row[path]
        value: Any = row
        for depth, part in enumerate(path.split(".")):
            inner = _step(value, part)
            if inner is _ABSENT:
                if depth == 0 or value is None:
                    return None
                there = list(value) if isinstance(value, Mapping) else in_short(value)
                raise DataError(f"{place}: {path}: no {part!r} in it; there is {there}")
            value = inner
        return value

    def _maybe(self, row: Row, path: str, place: str, field: str) -> str | None:
        """The text at `path`; None if the row has none."""
        value = self._one(row, path, place)
        return None if values.missing(value) else values.text(value, f"{place}: {field}")

    def _several(self, row: Row, paths: Sequence[str], place: str) -> Any:
        """The value of one column, or the list of the values of several."""
        found = [self._one(row, path, place) for path in paths]
        return found[0] if len(found) == 1 else found

    def _rubric(self, row: Row, place: str) -> Any:
        columns = [self._one(row, path, place) for path in self._columns.rubric]
        return values.rubric(columns, f"{place}: rubric")

    def _meta(self, row: Row, place: str) -> dict[str, Any]:
        meta: dict[str, Any] = {}
        for path in self._columns.meta:
            value = self._one(row, path, place)
            meta |= value if isinstance(value, dict) else {} if value is None else {path: value}
        try:
            json.dumps(meta)
        except TypeError as error:
            raise DataError(f"{place}: meta: {error}; expected what JSON can hold") from None
        if self._name and SET in meta:
            raise DataError(f"{place}: meta: {SET!r} is the name of the row's set in a mixture")
        return meta | {SET: self._name} if self._name else meta


def _meets(value: Any, wanted: Sequence[Scalar], what: str) -> bool:
    """Whether a value is in a range, or among (has one of) these values."""
    if values.missing(value):
        return False
    if not is_range(tuple(wanted)):
        return any(one in wanted for one in values.as_list(value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{what}: got {in_short(value)}, expected a number for a range")
    low, high = wanted
    return low <= value <= high  # pyright: ignore[reportOperatorIssue]


def _conversations(there: Sequence[str]) -> str:
    """What to say of the columns that hold conversations."""
    if not (found := [name for name in there if name in _CONVERSATIONS]):
        return ""
    return (
        f". {found[0]!r} seems to hold conversations: '{found[0]}.-1.content' is the text of the "
        f"last message; as demonstrations: {values.CONVERSATION}"
    )


def default_grading(options: Sequence[str]) -> str:
    """The grader of a row with these options where neither it nor the recipe names one."""
    return "choice" if options else "short"


def _paths(columns: ColumnSettings) -> dict[str, tuple[str, ...]]:
    return {field: (value,) if isinstance(value, str) else tuple(value) for field, value in columns}


def _column(path: str, there: Sequence[str]) -> str | None:
    """The column that `path` begins with; the name of a column may itself have dots."""
    return next((name for name in (path, path.partition(".")[0]) if name in there), None)


def _step(value: Any, part: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(part, _ABSENT)
    if isinstance(value, list) and re.fullmatch(r"-?\d+", part):
        place = int(part)
        return value[place] if -len(value) <= place < len(value) else _ABSENT
    return _ABSENT
