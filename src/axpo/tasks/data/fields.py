"""Reads a question's fields from a row of a data set, by the columns in the settings.

A row is a dict as it was read (JSON, Arrow). A value that cannot be used raises `DataError` with
the row's place, the setting and the column.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from axpo.errors import DataError, GradingError
from axpo.tasks.base import IMAGE, Example
from axpo.tasks.data.columns import ColumnSettings
from axpo.tasks.data.pictures import flat
from axpo.tasks.grading import check_example
from axpo.tasks.grading.final import final_answer, tagged_answer
from axpo.tasks.grading.prose import normalise
from axpo.wording import in_short

Row = Mapping[str, Any]
REQUIRED = ("question", "answer")
NOTICED = ("images", "options", "demonstration")
"""Fields that a misspelt name would lose unnoticed."""
_PLACEHOLDER = re.compile(r"<image ?(\d*)>")
_LABEL = r"^\s*\(?{letter}(?:[.:)]|\s*$)"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Record:
    """The fields of a row: the question with a `<image>` where each picture stands (or none), its
    pictures as the row holds them, and all right answers."""

    place: str
    id: str
    question: str
    images: tuple[Any, ...]
    answers: tuple[str, ...]
    grading: str
    demonstration: tuple[str, ...]
    options: tuple[str, ...]
    cluster: str | None
    provenance: str | None
    meta: Mapping[str, Any]


class Fields:
    """Reads rows by `columns`; `grading` is the grader of rows that name none."""

    def __init__(self, columns: ColumnSettings, grading: str | None) -> None:
        self._columns = columns
        self._grading = grading
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
                    f"(task.columns.{field} names the {field}'s)"
                )
            near = difflib.get_close_matches(field, there, 1, 0.8) if field in NOTICED else []
            if near and paths and not found:
                raise DataError(
                    f"{source}: no column {field!r}, but {near[0]!r}: set task.columns.{field} = "
                    f"{near[0]!r}, or rename it if it is something else"
                )
            read += found
        return list(dict.fromkeys(read))

    def reads(self, column: str) -> bool:
        """Whether anything is read from the column."""
        if column not in self._read:
            paths = (path for several in _paths(self._columns).values() for path in several)
            self._read[column] = any(_column(path, [column]) for path in paths)
        return self._read[column]

    def only_pictures(self, column: str) -> bool:
        """Whether only pictures are read from the column."""
        readers = {
            field
            for field, paths in _paths(self._columns).items()
            if any(_column(path, [column]) for path in paths)
        }
        return readers == {"images"}

    def read(self, row: Row, place: str, pictures: bool = True) -> Record:
        """The fields of the row; without `pictures` its pictures are not looked at.

        Raises `DataError` for a value that cannot be used.
        """
        columns = self._columns
        images = self.pictures(row, place)
        question = _text(self._one(row, columns.question, place), f"{place}: question")
        options = _options(self._several(row, columns.options, place), f"{place}: options")
        question = _listed(question, options)
        if pictures:
            question, images = _place_pictures(question, images, f"{place}: question")
        answers = _answers(self._several(row, columns.answer, place), options, f"{place}: answer")
        grading = self._maybe(row, columns.grading, place, "grading") or self._grading
        grading = grading or ("choice" if options else "exact")
        asked = Example(place, question, (), answers[0], answers[1:], grading, options=options)
        try:
            check_example(asked)
        except GradingError as error:
            raise DataError(f"{place}: grading: {error}") from None
        return Record(
            place,
            self.id(row, place) or place,
            question,
            images,
            answers,
            grading,
            _turns(self._one(row, columns.demonstration, place), f"{place}: demonstration"),
            options,
            self._maybe(row, columns.cluster, place, "cluster"),
            self._maybe(row, columns.provenance, place, "provenance"),
            self._meta(row, place),
        )

    def id(self, row: Row, place: str) -> str | None:
        """The row's id, if it has one."""
        return self._maybe(row, self._columns.id, place, "id")

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
                raise DataError(f"{place}: no {part!r} of {path!r}; there is {there}")
            value = inner
        return value

    def _maybe(self, row: Row, path: str, place: str, field: str) -> str | None:
        """The text at `path`; None if the row has none."""
        value = self._one(row, path, place)
        return None if value is None else _text(value, f"{place}: {field}")

    def _several(self, row: Row, paths: Sequence[str], place: str) -> Any:
        """The value of one column, or the list of the values of several."""
        values = [self._one(row, path, place) for path in paths]
        return values[0] if len(values) == 1 else values

    def _meta(self, row: Row, place: str) -> dict[str, Any]:
        meta: dict[str, Any] = {}
        for path in self._columns.meta:
            value = self._one(row, path, place)
            meta |= value if isinstance(value, dict) else {} if value is None else {path: value}
        try:
            json.dumps(meta)
        except TypeError as error:
            raise DataError(f"{place}: meta: {error}; expected what JSON can hold") from None
        return meta


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


def _text(value: Any, what: str) -> str:
    """The value as a text that is not empty; a number becomes text."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{what}: got {in_short(value)}, expected a text that is not empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{what}: character {error.start} of {in_short(value)} is half of one (a surrogate "
            "without the other); write it whole or leave it out"
        ) from None
    return value


def _place_pictures(
    question: str, images: tuple[Any, ...], what: str
) -> tuple[str, tuple[Any, ...]]:
    """The question with plain placeholders, and the pictures in the order of their places."""
    marks = _PLACEHOLDER.findall(question)
    if not marks:
        return question, images
    order = [int(mark) - 1 if mark else place for place, mark in enumerate(marks)]
    if sorted(order) != list(range(len(images))):
        named = ", ".join(mark.group() for mark in _PLACEHOLDER.finditer(question))
        raise DataError(
            f"{what}: it places {named}, the row has {len(images)} pictures; expected each once, "
            "or no placeholders"
        )
    return _PLACEHOLDER.sub(IMAGE, question), tuple(images[place] for place in order)


def _options(value: Any, what: str) -> tuple[str, ...]:
    """The texts of the options in the order of their letters."""
    if isinstance(value, Mapping):
        value = {letter: text for letter, text in value.items() if text is not None}
        if list(value) != list(LETTERS[: len(value)]):
            raise DataError(f"{what}: letters {list(value)}, expected A, B, C, ...")
        value = list(value.values())
    values = value if isinstance(value, list) else [value]
    while values and values[-1] is None:
        values = values[:-1]
    if len(values) == 1 or len(values) > len(LETTERS):
        raise DataError(f"{what}: got {in_short(value)}, expected a list of 2 to 26 texts")
    return tuple(_text(one, what) for one in values)


def _answers(value: Any, options: Sequence[str], what: str) -> tuple[str, ...]:
    """All right answers, as letters if there are options."""
    values = [one for column in _as_list(value) for one in _as_list(column) if one is not None]
    found = tuple(dict.fromkeys(_answer(one, options, what) for one in values))
    if not found:
        raise DataError(
            f"{what}: got {in_short(value)}, expected a text, a number or a list of them"
        )
    return found


def _answer(value: Any, options: Sequence[str], what: str) -> str:
    text = _text(value, what)
    if "\\boxed" in text or tagged_answer(text) is not None:
        text = final_answer(text)
    if not options:
        return text
    same = [normalise(option) == normalise(text) for option in options]
    letters = {letter for letter, equal in zip(LETTERS, same, strict=False) if equal}
    if isinstance(value, int) and 0 <= value < len(options):
        letters.add(LETTERS[value])  # counted from 0
    letter = text.strip().strip("()").upper()
    if len(letter) == 1 and letter in LETTERS[: len(options)]:
        letters = {letter}
    if len(letters) != 1:
        raise DataError(
            f"{what}: got {in_short(value)}, expected a letter up to {LETTERS[len(options) - 1]}, "
            f"an option's text or its number from 0, and no doubt which: {in_short(list(options))}"
        )
    return letters.pop()


def _listed(question: str, options: Sequence[str]) -> str:
    """The question with its options below it, each after its letter unless the option begins with
    it."""
    if all(option.strip() == letter for letter, option in zip(LETTERS, options, strict=False)):
        return question  # they are in the picture
    lettered = list(zip(LETTERS, options, strict=False))
    labelled = all(re.match(_LABEL.format(letter=letter), option) for letter, option in lettered)
    lines = options if labelled else [f"{letter}. {option}" for letter, option in lettered]
    return "\n".join([question, *lines])


def _turns(value: Any, what: str) -> tuple[str, ...]:
    return tuple(_text(turn, what) for turn in _as_list(value) if turn is not None)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
