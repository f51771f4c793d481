"""A task read from JSONL: one question a line, pictures as files beside it.

    {"id": "q1", "question": "Which digit is on the red card?", "images": ["pictures/q1.png"],
     "answer": "7", "grading": "exact", "demonstration": ["...</think>...<tool_call>..."]}

| field | |
|---|---|
| `id` | unique in the file |
| `question` | text; the pictures stand before it |
| `images` | paths relative to the JSONL file, possibly none |
| `answer` | the truth |
| `grading` | optional: a grader of `axpo.tasks.grading`, "exact" by default |
| `demonstration` | optional: a teacher's policy turns, without the end-of-turn token |
| `meta` | optional: an object that goes along into the trajectory trees |

Every line is checked when the task is made; pictures are opened when an example is asked for.
"""

from __future__ import annotations

import glob
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from axpo.config import UserError
from axpo.tasks.base import Example
from axpo.tasks.grading import GradingError, check_grader

Text = Annotated[str, Field(min_length=1)]


class DataError(UserError):
    """A data set that cannot be used; the message names file, line and field."""


class Record(BaseModel):
    """One line, as the module's docstring describes it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: Text
    question: Text
    images: list[Text]
    answer: Text
    grading: str = "exact"
    demonstration: list[Text] = []
    meta: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Line:
    """A checked record, `place` (file:line) and the absolute paths of its pictures."""

    place: str
    record: Record
    images: tuple[Path, ...]


class JsonlTask:
    """Reads `path`, a split a file where `{split}` is in it, else one file for every split."""

    def __init__(self, path: str | Path) -> None:
        self._path = path = str(path)
        # Only {split} is a pattern; brackets and stars in a folder's name stand for themselves.
        pattern = glob.escape(path).replace("{split}", "*")
        found = sorted(glob.glob(pattern))  # noqa: PTH207 (Path.glob takes no absolute pattern)
        if not found:
            raise DataError(f"{path}: no such file")
        self._lines = {name: read_jsonl(Path(name)) for name in found}

    def size(self, split: str) -> int:
        """Number of examples; raises `DataError` for a split without a file."""
        return len(self._split(split))

    def example(self, split: str, index: int) -> Example:
        """The `index`-th line; raises `IndexError` past the end."""
        lines = self._split(split)
        if not 0 <= index < len(lines):
            raise IndexError(f"{self._path}: no example {index} in {split}, it has {len(lines)}")
        line = lines[index]
        return Example(
            id=line.record.id,
            question=line.record.question,
            images=tuple(_open(path, line.place) for path in line.images),
            answer=line.record.answer,
            grading=line.record.grading,
            demonstration=tuple(line.record.demonstration),
            meta=line.record.meta,
        )

    def _split(self, split: str) -> list[Line]:
        name = self._path.replace("{split}", split)
        if name not in self._lines:
            raise DataError(f"no file {name} for split {split!r}; there are {list(self._lines)}")
        return self._lines[name]


def read_jsonl(path: Path) -> list[Line]:
    """All lines, checked; raises `DataError` for the first that is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}") from error
    lines: list[Line] = []
    seen: dict[str, str] = {}
    for number, row in enumerate(text.split("\n"), start=1):
        if not row.strip():
            continue
        place = f"{path}:{number}"
        line = _check(row, place, path.parent)
        if line.record.id in seen:
            raise DataError(f"{place}: id: {line.record.id!r} is already at {seen[line.record.id]}")
        seen[line.record.id] = place
        lines.append(line)
    if not lines:
        raise DataError(f"{path}: no lines; expected one JSON object a line")
    return lines


def _check(row: str, place: str, folder: Path) -> Line:
    try:
        record = Record.model_validate(json.loads(row))
        check_grader(record.grading)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: not JSON: {error}") from None
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in problem["loc"]) or "line"
        raise DataError(f"{place}: {field}: {problem['msg']}") from None
    except GradingError as error:
        raise DataError(f"{place}: grading: {error}") from None
    images = tuple(folder / name for name in record.images)
    for name, image in zip(record.images, images, strict=True):
        if not image.is_file():
            raise DataError(f"{place}: images: no file {name!r} in {folder}")
    return Line(place, record, images)


def _open(path: Path, place: str) -> Image.Image:
    """The picture upright and in RGB."""
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DataError(f"{place}: images: {path.name}: {error}") from error
