"""A judge measured against answers of which it is known whether they are right."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from pydantic import Field, StrictBool, ValidationError

from axpo.config import Section
from axpo.errors import DataError, GradingError
from axpo.judge.agreement import Agreement
from axpo.pictures import PictureError, read_picture
from axpo.tasks.base import Example
from axpo.tasks.grading import Verdict

LABELLED = "labelled"
"""The name of the labelled answers that ship with axpo."""
SHIPPED = Path(__file__).with_name("labelled.jsonl")


Ask = Callable[[Example, str], Awaitable[Verdict]]
"""Asks a judge about the text of an answer; raises `GradingError` where it gives no verdict."""


class Labelled(Section):
    """A row of a file of labelled answers."""

    question: str
    truths: tuple[str, ...] = Field(min_length=1)
    """All right answers."""
    answer: str
    """What the judge is asked about."""
    right: StrictBool
    """Whether the answer is right."""
    kind: str = "other"
    """What the row tries; figures are also given kind by kind."""
    images: tuple[str, ...] = ()
    """Paths of the question's pictures, from the file's folder."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A row, its number from 1, and what the judge says of it: whether it is right, None where it
    gives no verdict, and its words, or why there is none."""

    number: int
    row: Labelled
    said: bool | None
    words: str


def read_labelled(given: str) -> list[tuple[Labelled, Example]]:
    """The rows of the JSONL file `given`, or of the shipped one by its name, as questions to a
    judge.

    Raises `DataError` that names the row and the field.
    """
    path = Path(given)
    if not path.is_file() and given == LABELLED:
        path = SHIPPED
    try:
        with path.open(encoding="utf-8") as file:
            found = [_row(line, path, number) for number, line in enumerate(file, 1)]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: {getattr(error, 'strerror', None) or error}; expected a JSONL file of "
            f"labelled answers, or {LABELLED!r} for those that ship with axpo"
        ) from error
    if not found:
        raise DataError(f"{path} has no rows")
    return found


def _row(line: str, file: Path, number: int) -> tuple[Labelled, Example]:
    place = f"{file}, row {number}"
    try:
        row = Labelled.model_validate_json(line)
        images = tuple(_picture(file.parent / name) for name in row.images)
    except ValidationError as error:
        problem = error.errors()[0]
        where = "".join(f"{part}: " for part in problem["loc"])
        raise DataError(f"{place}: {where}{problem['msg']}") from None
    except PictureError as error:
        raise DataError(f"{place}: images: {error}") from error
    truth, *others = row.truths
    return row, Example(place, row.question, images, truth, tuple(others), "judge")


def _picture(file: Path) -> Image.Image:
    if not file.is_file():
        raise PictureError(f"no file {str(file)!r}")
    return read_picture(file)


async def judge_all(
    ask: Ask,
    rows: Sequence[tuple[Labelled, Example]],
    solved: float,
    done: Callable[[], None],
) -> list[Judged]:
    """What `ask` says of all rows, asked at once; a reward of at least `solved` says right.

    `done` is called after each.
    """

    async def one(number: int, row: Labelled, example: Example) -> Judged:
        try:
            verdict = await ask(example, row.answer)
            found = Judged(number, row, verdict.reward >= solved, verdict.detail or verdict.rule)
        except GradingError as error:
            found = Judged(number, row, None, str(error))
        done()
        return found

    work = (one(number, *pair) for number, pair in enumerate(rows, 1))
    return list(await asyncio.gather(*work))


def agreements(judged: Sequence[Judged]) -> list[tuple[str, Agreement]]:
    """The agreement of all rows, then of each kind of them in order of appearance."""
    kinds = dict.fromkeys(one.row.kind for one in judged)
    parts = [("all", list(judged))]
    parts += [(kind, [one for one in judged if one.row.kind == kind]) for kind in kinds]
    return [(name, Agreement.of((j.row.right, j.said) for j in part)) for name, part in parts]
